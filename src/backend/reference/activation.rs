//! The non-linearities of the MLP and their derivatives.

use std::f64::consts::{FRAC_2_SQRT_PI, PI, SQRT_2};

use crate::backend::Activation;

/// `u = act(gate) · up` of `[gate, up]`, or `act(up)`.
pub(super) fn mlp_inner(up: &[f32], act: Activation, gated: bool, u: &mut [f32]) {
    let ff = u.len();
    for (i, u) in u.iter_mut().enumerate() {
        let (value, _) = activate(f64::from(up[i]), act);
        *u = (value * if gated { f64::from(up[ff + i]) } else { 1.0 }) as f32;
    }
}

/// `dgate = act'(gate) up du`, `dup = act(gate) du`; or `act'(up) du`.
pub(super) fn mlp_inner_backward(
    du: &[f32],
    up: &[f32],
    act: Activation,
    gated: bool,
    dup: &mut [f32],
) {
    let ff = du.len();
    for (i, &du) in du.iter().enumerate() {
        let (value, slope) = activate(f64::from(up[i]), act);
        let factor = if gated { f64::from(up[ff + i]) } else { 1.0 };
        dup[i] = (slope * factor * f64::from(du)) as f32;
        if gated {
            dup[ff + i] = (value * f64::from(du)) as f32;
        }
    }
}

/// `act(x)` and `act'(x)`.
fn activate(x: f64, act: Activation) -> (f64, f64) {
    match act {
        Activation::Silu => {
            let sigmoid = 1.0 / (1.0 + (-x).exp());
            (x * sigmoid, sigmoid * (1.0 + x * (1.0 - sigmoid)))
        }
        Activation::Gelu => {
            let phi = 0.5 * (1.0 + erf(x / SQRT_2));
            (x * phi, phi + x * (-x * x / 2.0).exp() / (2.0 * PI).sqrt())
        }
        Activation::GeluTanh => {
            let c = (2.0 / PI).sqrt();
            let th = (c * (x + 0.044_715 * x.powi(3))).tanh();
            let slope = c * (1.0 + 3.0 * 0.044_715 * x * x);
            (0.5 * x * (1.0 + th), 0.5 * (1.0 + th) + 0.5 * x * (1.0 - th * th) * slope)
        }
        Activation::QuickGelu => {
            let sigmoid = 1.0 / (1.0 + (-1.702 * x).exp());
            (x * sigmoid, sigmoid * (1.0 + 1.702 * x * (1.0 - sigmoid)))
        }
        Activation::Relu => (x.max(0.0), if x > 0.0 { 1.0 } else { 0.0 }),
    }
}

/// The error function by its Taylor series, summed until it no longer changes; beyond 6 it is 1 to
/// the last bit of `f64`.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    // erf x = 2/√π e^(−x²) Σ 2ⁿ x^(2n+1) / (2n+1)!!: every term has the sign of x.
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > f64::EPSILON * sum.abs() {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

#[cfg(test)]
mod tests {
    use super::erf;

    #[test]
    fn erf_agrees_with_tabled_values() {
        // Abramowitz & Stegun, table 7.1.
        for (x, expected) in [(0.0, 0.0), (0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9)] {
            assert!((erf(x) - expected).abs() < 1e-10);
            assert!((erf(-x) + expected).abs() < 1e-10);
        }
        assert!((erf(2.0) - 0.995_322_265_0).abs() < 1e-10);
        assert_eq!(erf(7.0), 1.0);
    }
}
