//! One number per token, addressed by name instead of by order, so that it does not matter what
//! else is drawn before it.

/// Uniform in `[0, 1)` for token `index` of the answer with this `seed`.
///
/// The mixer is splitmix64's finaliser (Steele et al. 2014, "Fast Splittable Pseudorandom Number
/// Generators"), once per coordinate.
pub(super) fn at(seed: u64, index: u64) -> f64 {
    let bits = mix(mix(seed) ^ mix(!index));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::at;

    #[test]
    fn neighbouring_seeds_and_indices_are_independent() {
        let n = 40_000;
        let correlation = |pair: &dyn Fn(u64) -> (f64, f64)| {
            (0..n).map(pair).map(|(x, y)| (x - 0.5) * (y - 0.5)).sum::<f64>() / n as f64
        };
        assert!(correlation(&|i| (at(7, i), at(7, i + 1))).abs() < 2e-3);
        assert!(correlation(&|i| (at(7, i), at(8, i))).abs() < 2e-3);
        assert!(correlation(&|i| (at(i, 0), at(i + 1, 0))).abs() < 2e-3);
        assert!((correlation(&|i| (at(7, i), at(7, i))) - 1.0 / 12.0).abs() < 2e-3);
    }
}
