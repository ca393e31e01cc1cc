//! Seeded values and comparisons for the tests of the kernels and of the backend.

use super::cpu::Cpu;

/// A small generator (splitmix64): the same values on every machine.
pub(crate) struct Seeded(pub u64);

impl Seeded {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A value in −1..1.
    pub fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// `count` values in −1..1.
    pub fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.value()).collect()
    }
}

/// Every instruction set that this machine can run, the plain one first.
pub(crate) fn every_cpu() -> Vec<Cpu> {
    let wide = [Some(Cpu::without_tiles()), Some(Cpu::detect())];
    [Some(Cpu::SCALAR), Cpu::avx2_only()].into_iter().chain(wide).flatten().collect()
}
