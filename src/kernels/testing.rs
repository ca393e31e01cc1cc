//! Seeded values and comparisons for the tests of the kernels and of the backend.

use super::activations::Q8Rows;
use super::cpu::Cpu;
use super::output::Output;
use super::pool::Pool;
use super::quantized::{IntegerWeight, matmul};

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

/// Integer products of `m` rows, added to ones, on every instruction set and with two threads: equal as
/// bits, and those of the weights that `weight` tells and of activations as they are quantised.
pub(crate) fn check_products<W: IntegerWeight>(
    w: &W,
    weight: impl Fn(usize, usize) -> f32,
    m: usize,
) {
    let (n, k) = w.shape();
    let (x, mut all, mut rows) = (Seeded(9).values(m * k), Vec::new(), Q8Rows::new());
    for (cpu, threads) in every_cpu().into_iter().flat_map(|cpu| [(cpu, 1), (cpu, 2)]) {
        let (pool, mut y) = (Pool::new(threads), vec![1.0; m * n]);
        rows.quantize(cpu, &pool, &x, (m, k), W::STRETCH);
        matmul(cpu, &pool, &rows, w, &Output::new(&mut y, n, 0).adding(true));
        all.push(y);
    }
    assert!(all.iter().all(|y| *y == all[0]), "instruction sets or threads differ");
    for (i, row) in (0..m).flat_map(|i| (0..n).map(move |row| (i, row))) {
        let sum: f64 = (0..k).map(|c| rows.value(i, c) * f64::from(weight(row, c))).sum();
        let error = (f64::from(all[0][i * n + row]) - 1.0 - sum).abs();
        assert!(error < 1e-4, "row {i}, output {row}: {error}");
    }
}
