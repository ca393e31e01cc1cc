//! A norm of the model, with its place among the model's tensors.

use super::gradients::Gradients;
use crate::backend::{Backend, Norm};

pub(super) struct ModelNorm<B: Backend> {
    pub norm: Norm<B::Rows>,
    /// Its weight's index among the model's tensors; the bias follows.
    pub slot: usize,
}

impl<B: Backend> ModelNorm<B> {
    /// `norm(x)`, a new matrix.
    pub fn forward(&self, b: &mut B, x: &B::Rows) -> B::Rows {
        let (t, d) = b.shape(x);
        let mut y = b.room(t, d);
        b.norm(x, &self.norm, &mut y);
        y
    }

    /// Adds `∂norm` to `dx`, and its own gradients where it is trained.
    pub fn backward(
        &self,
        b: &mut B,
        dy: &B::Rows,
        x: &B::Rows,
        gradients: &mut Gradients<'_, B>,
        dx: &mut B::Rows,
    ) {
        let (dweight, dbias) = gradients.with_bias(self.slot, self.norm.bias.is_some());
        b.norm_backward(dy, x, &self.norm, dx, dweight, dbias);
    }
}

/// `x += norm(y)`, or `x += y` where there is no norm after the block.
pub(super) fn add_normed<B: Backend>(
    b: &mut B,
    norm: Option<&ModelNorm<B>>,
    y: &B::Rows,
    x: &mut B::Rows,
) {
    match norm {
        None => b.add(y, x),
        Some(norm) => {
            let normed = norm.forward(b, y);
            b.add(&normed, x);
            b.recycle(normed);
        }
    }
}

/// The backward of [`add_normed`] into `y`: a new matrix, or none where it is `dx` itself.
pub(super) fn normed_backward<B: Backend>(
    b: &mut B,
    norm: Option<&ModelNorm<B>>,
    dx: &B::Rows,
    y: &B::Rows,
    gradients: &mut Gradients<'_, B>,
) -> Option<B::Rows> {
    let norm = norm?;
    let (t, d) = b.shape(dx);
    let mut dy = b.zeros(t, d);
    norm.backward(b, dx, y, gradients, &mut dy);
    Some(dy)
}
