//! RMSNorm (Zhang & Sennrich 2019) and LayerNorm (Ba et al. 2016) of one row.

use super::Matrix;
use crate::backend::{Norm, NormKind};

/// `y = x̂ · w (+ b)`.
pub(super) fn forward(x: &[f32], norm: &Norm<Matrix>, y: &mut [f32]) {
    let (x_hat, _) = normalise(x, norm);
    for (i, y) in y.iter_mut().enumerate() {
        let bias = norm.bias.as_ref().map_or(0.0, |bias| f64::from(bias.values[i]));
        *y = (x_hat[i] * f64::from(norm.weight.values[i]) + bias) as f32;
    }
}

/// With `g = dy · w`: `dx += rstd (g − x̂ mean(g x̂))`, for LayerNorm less `rstd mean(g)`; and
/// `dw += dy · x̂`.
pub(super) fn backward(
    dy: &[f32],
    x: &[f32],
    norm: &Norm<Matrix>,
    dx: &mut [f32],
    dweight: Option<&mut [f32]>,
) {
    let (x_hat, rstd) = normalise(x, norm);
    let g: Vec<f64> =
        dy.iter().zip(&norm.weight.values).map(|(&dy, &w)| f64::from(dy) * f64::from(w)).collect();
    let n = x.len() as f64;
    let mean_g = match norm.kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => g.iter().sum::<f64>() / n,
    };
    let mean_gx = g.iter().zip(&x_hat).map(|(g, x)| g * x).sum::<f64>() / n;
    for (i, dx) in dx.iter_mut().enumerate() {
        *dx += (rstd * (g[i] - mean_g - x_hat[i] * mean_gx)) as f32;
    }
    for (i, dw) in dweight.into_iter().flatten().enumerate() {
        *dw += (f64::from(dy[i]) * x_hat[i]) as f32;
    }
}

/// `x̂`, and the factor `rstd` that made it.
fn normalise(x: &[f32], norm: &Norm<Matrix>) -> (Vec<f64>, f64) {
    let n = x.len() as f64;
    let mean = match norm.kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => x.iter().map(|&x| f64::from(x)).sum::<f64>() / n,
    };
    let centred: Vec<f64> = x.iter().map(|&x| f64::from(x) - mean).collect();
    let variance = centred.iter().map(|x| x * x).sum::<f64>() / n;
    let rstd = 1.0 / (variance + f64::from(norm.eps)).sqrt();
    (centred.iter().map(|x| x * rstd).collect(), rstd)
}
