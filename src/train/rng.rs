//! Random numbers addressed by name instead of by order: the same (seed, step, site, index) gives
//! the same number whoever asks, and whenever, so a resumed run draws what the first one drew.
//!
//! The mixer is splitmix64's finaliser (Steele et al. 2014, "Fast Splittable Pseudorandom Number
//! Generators"), applied once per coordinate.

/// Where in a run a number is drawn; keeps the streams apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// First values of the adapter matrix (or weight) with this number.
    Init(usize),
    /// The order of the examples in one epoch.
    Shuffle,
    /// Dropout masks of one micro-batch.
    Dropout(usize),
    /// NEFTune noise of one micro-batch.
    Noise(usize),
}

impl Site {
    fn code(self) -> u64 {
        let (kind, number) = match self {
            Self::Init(n) => (1, n),
            Self::Shuffle => (2, 0),
            Self::Dropout(n) => (3, n),
            Self::Noise(n) => (4, n),
        };
        (kind << 56) | number as u64
    }
}

/// One stream of random numbers, addressed by index.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    key: u64,
}

impl Stream {
    /// The stream of `site` at `step` (or epoch) of the run with this seed.
    pub fn new(seed: u64, step: u64, site: Site) -> Self {
        Self { key: mix(mix(mix(seed) ^ step) ^ site.code()) }
    }

    /// The stream's own number, for kernels that do the addressing themselves.
    pub fn key(&self) -> u64 {
        self.key
    }

    /// 64 random bits at `index`.
    pub fn bits(&self, index: u64) -> u64 {
        mix(self.key ^ mix(index))
    }

    /// Uniform in `[0, 1)` at `index`, 24 bits fine so that it is exact in `f32`.
    pub fn uniform(&self, index: u64) -> f32 {
        (self.bits(index) >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Uniform in `[-bound, bound)` at `index`.
    pub fn symmetric(&self, index: u64, bound: f32) -> f32 {
        (2.0 * self.uniform(index) - 1.0) * bound
    }

    /// Standard normal at `index`, by Box and Muller's transform of two uniforms.
    pub fn normal(&self, index: u64) -> f32 {
        let u = ((self.bits(2 * index) >> 11) + 1) as f64 / (1u64 << 53) as f64;
        let angle = (self.bits(2 * index + 1) >> 11) as f64 / (1u64 << 53) as f64;
        ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()) as f32
    }

    /// Uniform in `0..bound` at `index`; `bound` is at least 1.
    pub fn below(&self, index: u64, bound: usize) -> usize {
        // Multiply-shift (Lemire 2019): the bias is below 2^-40 for any list that fits in memory.
        ((u128::from(self.bits(index)) * bound as u128) >> 64) as usize
    }

    /// `0..len` in random order (Fisher and Yates).
    pub fn permutation(&self, len: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..len).collect();
        for i in (1..len).rev() {
            order.swap(i, self.below(i as u64, i + 1));
        }
        order
    }
}

/// splitmix64's finaliser: a bijection on 64 bits in which every input bit moves every output bit.
fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_depends_on_its_address_alone() {
        let stream = Stream::new(7, 3, Site::Shuffle);
        let backwards: Vec<u64> = (0..8).rev().map(|i| stream.bits(i)).collect();
        let forwards: Vec<u64> = (0..8).map(|i| Stream::new(7, 3, Site::Shuffle).bits(i)).collect();
        assert!(forwards.iter().eq(backwards.iter().rev()));
    }

    #[test]
    fn neighbouring_addresses_share_nothing() {
        let mut seen = std::collections::HashSet::new();
        for seed in 0..4 {
            for step in 0..4 {
                for site in [Site::Shuffle, Site::Dropout(0), Site::Dropout(1), Site::Init(0)] {
                    assert!(seen.insert(Stream::new(seed, step, site).bits(0)));
                }
            }
        }
    }

    #[test]
    fn uniform_and_normal_have_their_moments() {
        let stream = Stream::new(1, 0, Site::Init(0));
        let n = 100_000;
        let mean = (0..n).map(|i| f64::from(stream.uniform(i))).sum::<f64>() / n as f64;
        assert!((mean - 0.5).abs() < 0.005, "mean of uniform {mean}");
        let var = (0..n).map(|i| f64::from(stream.normal(i)).powi(2)).sum::<f64>() / n as f64;
        assert!((var - 1.0).abs() < 0.02, "variance of normal {var}");
    }

    #[test]
    fn a_permutation_holds_every_index_once() {
        let mut order = Stream::new(5, 2, Site::Shuffle).permutation(101);
        assert_ne!(order, (0..101).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..101).collect::<Vec<_>>());
    }
}
