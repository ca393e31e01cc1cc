//! RMSNorm and LayerNorm, forward and backward, over rows or over the heads of a row.

use super::lanes::{LANES, Simd, kernel};
use super::math::{dot, sum};

/// How a norm of one row of `weight.len()` values computes.
#[derive(Clone, Copy, Debug)]
pub struct NormRow<'a> {
    /// Whether the mean is taken off first (LayerNorm).
    pub centred: bool,
    pub eps: f32,
    pub weight: &'a [f32],
    pub bias: Option<&'a [f32]>,
}

/// Mean (0 for RMSNorm) and `1 / sqrt(variance + eps)` of a row.
#[inline(always)]
pub(crate) fn moments<S: Simd>(s: S, x: &[f32], norm: &NormRow<'_>) -> (f32, f32) {
    let n = x.len() as f32;
    if !norm.centred {
        return (0.0, 1.0 / (dot(s, x, x) / n + norm.eps).sqrt());
    }
    let mean = sum(s, x) / n;
    let mut squares = s.splat(0.0);
    for x in x.chunks(LANES) {
        let full = s.sub(s.load_part(x), s.splat(mean));
        let mut kept = s.lanes(full);
        kept[x.len()..].fill(0.0); // lanes past the row would count as −mean
        let kept = if x.len() == LANES { full } else { s.load(&kept) };
        squares = s.fma(kept, kept, squares);
    }
    (mean, 1.0 / (s.sum(squares) / n + norm.eps).sqrt())
}

/// `y = (x − mean) · rstd · w (+ b)` of one row.
#[inline(always)]
pub(crate) fn normalise<S: Simd>(s: S, x: &[f32], norm: &NormRow<'_>, y: &mut [f32]) {
    let (mean, rstd) = moments(s, x, norm);
    let (mean, rstd) = (s.splat(mean), s.splat(rstd));
    for (i, y) in y.chunks_mut(LANES).enumerate() {
        let part = i * LANES..i * LANES + y.len();
        let xhat = s.mul(s.sub(s.load_part(&x[part.clone()]), mean), rstd);
        let mut value = s.mul(xhat, s.load_part(&norm.weight[part.clone()]));
        if let Some(bias) = norm.bias {
            value = s.add(value, s.load_part(&bias[part]));
        }
        s.store_part(y, value);
    }
}

/// `(x − mean) · rstd` of up to sixteen values.
#[inline(always)]
fn xhat<S: Simd>(s: S, x: &[f32], mean: f32, rstd: f32) -> S::V {
    s.mul(s.sub(s.load_part(x), s.splat(mean)), s.splat(rstd))
}

/// `dx += rstd (g − mean(g) − xhat mean(g xhat))`, `g = dy w`; without `mean(g)` for RMSNorm.
/// Returns mean and rstd.
#[inline(always)]
pub(crate) fn denormalise<S: Simd>(
    s: S,
    dy: &[f32],
    x: &[f32],
    norm: &NormRow<'_>,
    dx: &mut [f32],
) -> (f32, f32) {
    let (mean, rstd) = moments(s, x, norm);
    let (mut g_sum, mut gx_sum) = (s.splat(0.0), s.splat(0.0));
    for (i, dy) in dy.chunks(LANES).enumerate() {
        let part = i * LANES..i * LANES + dy.len();
        let g = s.mul(s.load_part(dy), s.load_part(&norm.weight[part.clone()]));
        g_sum = s.add(g_sum, g);
        gx_sum = s.fma(g, xhat(s, &x[part], mean, rstd), gx_sum); // g is zero past the row
    }
    let n = x.len() as f32;
    let g_mean = s.splat(if norm.centred { s.sum(g_sum) / n } else { 0.0 });
    let gx_mean = s.splat(s.sum(gx_sum) / n);
    for (i, dx) in dx.chunks_mut(LANES).enumerate() {
        let part = i * LANES..i * LANES + dx.len();
        let g = s.mul(s.load_part(&dy[part.clone()]), s.load_part(&norm.weight[part.clone()]));
        let centred = s.sub(s.sub(g, g_mean), s.mul(xhat(s, &x[part], mean, rstd), gx_mean));
        let value = s.fma(s.splat(rstd), centred, s.load_part(dx));
        s.store_part(dx, value);
    }
    (mean, rstd)
}

kernel! {
    /// `y = norm(x)` for rows of `norm.weight.len()` values.
    pub fn forward(s, x: &[f32], norm: NormRow<'_>, y: &mut [f32]) {
        let width = norm.weight.len();
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            normalise(s, x, &norm, y);
        }
    }
}

kernel! {
    /// `dx += ∂norm` for rows of `norm.weight.len()` values; `moments` receives mean and rstd.
    pub fn backward(
        s,
        dy: &[f32],
        x: &[f32],
        norm: NormRow<'_>,
        dx: &mut [f32],
        moments: &mut [[f32; 2]],
    ) {
        let width = norm.weight.len();
        let rows = dy.chunks_exact(width).zip(x.chunks_exact(width));
        for (((dy, x), dx), moments) in rows.zip(dx.chunks_exact_mut(width)).zip(moments) {
            let (mean, rstd) = denormalise(s, dy, x, &norm, dx);
            *moments = [mean, rstd];
        }
    }
}

kernel! {
    /// `dw += Σ dy xhat` and `db += Σ dy` over rows in order, for the columns from `at` on that
    /// `dw` and `db` hold; either may be empty. Rows are `width` wide.
    pub fn weight_gradient(
        s,
        dy: &[f32],
        x: &[f32],
        moments: &[[f32; 2]],
        width: usize,
        at: usize,
        dw: &mut [f32],
        db: &mut [f32],
    ) {
        for (row, &[mean, rstd]) in moments.iter().enumerate() {
            let start = row * width + at;
            for (i, dw) in dw.chunks_mut(LANES).enumerate() {
                let part = start + i * LANES..start + i * LANES + dw.len();
                let xhat = s.mul(s.sub(s.load_part(&x[part.clone()]), s.splat(mean)), s.splat(rstd));
                let value = s.fma(s.load_part(&dy[part]), xhat, s.load_part(dw));
                s.store_part(dw, value);
            }
            for (i, db) in db.chunks_mut(LANES).enumerate() {
                let part = start + i * LANES..start + i * LANES + db.len();
                let value = s.add(s.load_part(&dy[part]), s.load_part(db));
                s.store_part(db, value);
            }
        }
    }
}
