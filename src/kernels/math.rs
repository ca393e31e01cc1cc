//! Functions on sixteen lanes: exponential, hyperbolic tangent, error function, sums.
#![allow(clippy::excessive_precision)] // coefficients as published

use super::lanes::{LANES, Simd};

/// `e^x` within about one unit in the last place; 0 below −86.5, infinite above 88.7.
///
/// `x = n ln 2 + r`, `|r| ≤ ln 2 / 2`, and a polynomial for `e^r` (Cephes, `expf`).
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    let bounded = s.min(s.splat(89.5), x); // keeps the integer below in range
    let n = s.round(s.mul(bounded, s.splat(std::f32::consts::LOG2_E)));
    let r = s.fma(n, s.splat(-0.693_359_4), bounded);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    let coefficients =
        [1.987_569_2e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    let p = s.fma(s.mul(r, r), horner(s, r, &coefficients), s.add(r, s.splat(1.0)));
    // Two factors, since 2^128 is no number of its own.
    let half = s.mul(p, s.pow2(s.sub(n, s.splat(1.0))));
    s.select_lt(x, s.splat(-86.5), s.splat(0.0), s.add(half, half))
}

/// The polynomial with these coefficients, the highest power first.
#[inline(always)]
fn horner<S: Simd, const N: usize>(s: S, x: S::V, coefficients: &[f32; N]) -> S::V {
    let mut sum = s.splat(coefficients[0]);
    for &c in &coefficients[1..] {
        sum = s.fma(sum, x, s.splat(c));
    }
    sum
}

/// `1 / (1 + e^−x)`.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.sub(s.splat(0.0), x))))
}

/// Hyperbolic tangent: a polynomial near zero (Cephes, `tanhf`), `1 − 2 / (e^2x + 1)` elsewhere.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    let (size, z, one) = (s.abs(x), s.mul(x, x), s.splat(1.0));
    let coefficients =
        [-5.704_988_7e-3, 2.063_908_9e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328_2e-1];
    let near = s.fma(s.mul(horner(s, z, &coefficients), z), x, x);
    let e = exp(s, s.add(size, size));
    let far = s.sub(one, s.div(s.splat(2.0), s.add(e, one)));
    let far = s.select_lt(x, s.splat(0.0), s.sub(s.splat(0.0), far), far);
    s.select_lt(size, s.splat(0.625), near, far)
}

/// Error function: a rational approximation over −4..4, 1 beyond.
#[inline(always)]
pub(crate) fn erf<S: Simd>(s: S, x: S::V) -> S::V {
    let x = s.max(s.splat(-4.0), s.min(s.splat(4.0), x));
    let z = s.mul(x, x);
    let above = [
        -2.726_142_2e-10,
        2.770_681_4e-8,
        -2.101_024e-6,
        -5.692_506_4e-5,
        -7.349_906e-4,
        -2.954_599_8e-3,
        -1.609_603_3e-2,
    ];
    let below = [-1.456_607_2e-5, -2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2];
    s.div(s.mul(x, horner(s, z, &above)), horner(s, z, &below))
}

/// `Σ f(x, y)` of two rows of equal length by `fma`-like steps: four chains of sixteen lanes, then
/// one fixed tree. The order depends on the length alone.
#[inline(always)]
pub(crate) fn dot<S: Simd>(s: S, x: &[f32], y: &[f32]) -> f32 {
    let mut sums = [s.splat(0.0); 4];
    let (x, x_rest) = x.as_chunks::<LANES>();
    let (y, y_rest) = y.as_chunks::<LANES>();
    for i in 0..x.len().min(y.len()) {
        sums[i % 4] = s.fma(s.load(&x[i]), s.load(&y[i]), sums[i % 4]);
    }
    sums[0] = s.fma(s.load_part(x_rest), s.load_part(y_rest), sums[0]);
    s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
}

/// `Σ x` in the order of [`dot`].
#[inline(always)]
pub(crate) fn sum<S: Simd>(s: S, x: &[f32]) -> f32 {
    let mut sums = [s.splat(0.0); 4];
    let (x, rest) = x.as_chunks::<LANES>();
    for i in 0..x.len() {
        sums[i % 4] = s.add(s.load(&x[i]), sums[i % 4]);
    }
    sums[0] = s.add(s.load_part(rest), sums[0]);
    s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
}

#[cfg(test)]
mod tests {
    use crate::kernels::cpu::Cpu;
    use crate::kernels::lanes::kernel;
    use crate::kernels::testing::every_cpu;

    kernel! {
        fn all(s, x: &[f32; 16]) -> [[f32; 16]; 4] {
            let x = s.load(x);
            [
                s.lanes(super::exp(s, x)),
                s.lanes(super::tanh(s, x)),
                s.lanes(super::erf(s, x)),
                s.lanes(super::sigmoid(s, x)),
            ]
        }
    }

    /// By its power series, which converges everywhere; beyond 4 erf is 1 to seven digits.
    fn erf(x: f64) -> f64 {
        if x.abs() > 4.0 {
            return x.signum();
        }
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn functions_are_accurate_to_a_few_units_in_the_last_place() {
        for step in 0..2000 {
            let x: [f32; 16] = std::array::from_fn(|i| (step * 16 + i) as f32 * 0.005 - 80.0);
            let [e, t, r, g] = all(Cpu::detect(), &x);
            for i in 0..16 {
                let x = f64::from(x[i]);
                let close = |y: f32, z: f64, relative: f64, absolute: f64| {
                    assert!(
                        (f64::from(y) - z).abs() <= relative * z.abs() + absolute,
                        "{x} {y} {z}"
                    );
                };
                close(e[i], x.exp(), 1.5e-7, 0.0);
                close(t[i], x.tanh(), 2.5e-7, 0.0);
                close(r[i], erf(x), 1e-7, 3e-7);
                close(g[i], 1.0 / (1.0 + (-x).exp()), 3e-7, 0.0);
            }
        }
    }

    #[test]
    fn limits_are_kept_and_every_instruction_set_agrees() {
        let mut x = [0.0; 16];
        x[..5].copy_from_slice(&[f32::NEG_INFINITY, f32::INFINITY, -1000.0, 1000.0, 88.6]);
        let [e, t, r, g] = all(Cpu::detect(), &x);
        assert_eq!(e[..4], [0.0, f32::INFINITY, 0.0, f32::INFINITY]);
        assert!(e[4].is_finite() && e[5] == 1.0);
        assert_eq!((t[0], t[1], r[0], r[1], g[0], g[1]), (-1.0, 1.0, r[2], r[3], 0.0, 1.0));
        let x = std::array::from_fn(|i| (i as f32 - 7.5) * 1.3);
        for cpu in every_cpu() {
            assert_eq!(all(cpu, &x), all(Cpu::SCALAR, &x));
        }
    }
}
