//! DoRA: a weight decomposed into the length of each of its rows, which is trained, and their
//! direction, which low-rank matrices move.
//!
//! Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", equation 5:
//! `y = magnitude / norm ⊙ (W x + scaling · B A x) + bias`, where `norm` is the length of each row
//! of `W + scaling · B A`, held fixed in the backward (section 4.3). Dropout thins the input of `A`
//! alone.

use super::adapter::{SiteWeights, check_site};
use super::linear::Linear;
use super::{Model, ModelError};
use crate::backend::Backend;
use crate::domain::AdapterSite;

/// What one site has beside its matrices.
pub(super) struct Dora<B: Backend> {
    /// Trained, `(1, out)`.
    pub magnitude: B::Rows,
    /// Of the rows of `W + scaling · B A`, `(1, out)`.
    pub norm: B::Rows,
    /// `magnitude / norm`.
    pub factor: B::Rows,
    /// `B`, its rows times `factor`: what is added to a product whose columns were scaled.
    pub scaled_b: B::Rows,
}

impl<B: Backend> Dora<B> {
    /// Its buffers.
    pub fn into_rows(self) -> [B::Rows; 4] {
        [self.magnitude, self.norm, self.factor, self.scaled_b]
    }
}

impl<B: Backend> Model<B> {
    /// The magnitudes a site begins with: the length of each row of `W + scaling · B A`, so that
    /// nothing is scaled yet.
    ///
    /// # Errors
    /// [`ModelError::UnknownModule`], or [`ModelError::AdapterShape`].
    pub fn first_magnitudes(&self, b: &mut B, site: &AdapterSite) -> Result<Vec<f32>, ModelError> {
        let (index, module) = self.module(&site.module)?;
        check_site(site, module)?;
        let a = b.upload(&site.a, site.r, module.in_features);
        let up = b.upload(&site.b, module.out_features, site.r);
        let norms = self.adapted_norms(b, index, &a, &up, site.scaling);
        [a, up].into_iter().for_each(|rows| b.recycle(rows));
        Ok(norms)
    }

    /// The DoRA part of a site of these matrices.
    pub(super) fn decompose(
        &self,
        b: &mut B,
        site: usize,
        (a, up, scaling): (&B::Rows, &B::Rows, f32),
        magnitude: B::Rows,
    ) -> Dora<B> {
        let norms = self.adapted_norms(b, site, a, up, scaling);
        let factors: Vec<f32> =
            b.download(&magnitude).iter().zip(&norms).map(|(m, norm)| m / norm).collect();
        let (out, r) = b.shape(up);
        let mut scaled = b.download(up);
        for (row, factor) in scaled.chunks_exact_mut(r).zip(&factors) {
            row.iter_mut().for_each(|value| *value *= factor);
        }
        Dora {
            magnitude,
            norm: b.upload(&norms, 1, out),
            factor: b.upload(&factors, 1, out),
            scaled_b: b.upload(&scaled, out, r),
        }
    }

    /// Brings norms and factors up to date after the matrices or the magnitude changed.
    pub(super) fn renew(&self, b: &mut B, site: usize, weights: &mut SiteWeights<B>) {
        let Some(dora) = weights.dora.take() else { return };
        let [magnitude, norm, factor, scaled_b] = dora.into_rows();
        [norm, factor, scaled_b].into_iter().for_each(|rows| b.recycle(rows));
        let matrices = (&weights.a, &weights.b, weights.scaling);
        weights.dora = Some(self.decompose(b, site, matrices, magnitude));
    }

    /// `‖W + s B A‖` by row, without forming the sum:
    /// `‖w‖² + 2 s b · (A w) + s² b · (A Aᵀ) b` for a row `w` of `W` and `b` of `B`.
    fn adapted_norms(
        &self,
        b: &mut B,
        site: usize,
        a: &B::Rows,
        up: &B::Rows,
        scaling: f32,
    ) -> Vec<f32> {
        let linear = self.linear(site);
        let ((r, k), (out, _)) = (b.shape(a), b.shape(up));
        let mut cross = b.zeros(r, out);
        b.matmul(a, &linear.weight, None, &mut cross, 0);
        let (aw, gram) = (b.download(&cross), gram(&b.download(a), k));
        b.recycle(cross);
        let (up, s) = (b.download(up), f64::from(scaling));
        let squares = linear.row_squares(b).iter().enumerate();
        squares
            .map(|(o, square)| {
                let row = &up[o * r..][..r];
                let mixed = row.iter().enumerate().map(|(j, &x)| {
                    let quadratic: f64 =
                        gram[j * r..][..r].iter().zip(row).map(|(g, &y)| g * f64::from(y)).sum();
                    f64::from(x) * (2.0 * f64::from(aw[j * out + o]) + s * quadratic)
                });
                // A row of zeros has no direction; whatever it is divided by, it stays zero.
                (square + s * mixed.sum::<f64>()).max(1e-30).sqrt() as f32
            })
            .collect()
    }

    /// The linear layer at `site`.
    fn linear(&self, site: usize) -> &Linear<B> {
        let layers = self.layers.iter().flat_map(|l| [&l.qkv, &l.o, &l.up, &l.down]);
        let linears = layers.chain(&self.head.projection).flat_map(|part| &part.linears);
        linears
            .into_iter()
            .find(|linear| linear.site == site)
            .expect("every site is a linear layer")
    }
}

impl<B: Backend> Linear<B> {
    /// `‖w‖²` of each row of the weight; computed once.
    fn row_squares(&self, b: &B) -> &[f64] {
        self.row_squares.get_or_init(|| {
            let (_, k) = b.weight_shape(&self.weight);
            let square = |x: &f32| f64::from(*x) * f64::from(*x);
            let weight = b.unpack(&self.weight);
            weight.chunks_exact(k).map(|row| row.iter().map(square).sum()).collect()
        })
    }
}

/// `A Aᵀ (r, r)` of `A (r, k)`.
fn gram(a: &[f32], k: usize) -> Vec<f64> {
    let dot = |x: &[f32], y: &[f32]| -> f64 {
        x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
    };
    let rows = || a.chunks_exact(k);
    rows().flat_map(|x| rows().map(move |y| dot(x, y))).collect()
}
