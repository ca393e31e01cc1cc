//! The tensors a model is made of: names, shapes and how they are held.

use crate::backend::WeightFormat;

/// One tensor of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// Its full name, `model.layers.0.mlp.up_proj.weight`.
    pub name: String,
    /// Its name in this copy of the checkpoint, where the prefix may be missing.
    pub stored: String,
    /// As we hold it: `(out, in)`, or `(1, d)` for a vector.
    pub shape: (usize, usize),
    pub kind: TensorKind,
    /// Stored `(in, out)`.
    pub transposed: bool,
}

/// What a tensor is for, and so how it is held.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TensorKind {
    /// A matrix, packed.
    Weight(WeightFormat),
    /// A convolution over patches of three planes, packed as a matrix and stored
    /// `(out, 3, side, side)`.
    Patches {
        side: usize,
        format: WeightFormat,
    },
    Bias,
    /// The weight of a norm, of which `minus` was subtracted in the file.
    Norm {
        minus: f32,
    },
}

impl TensorSpec {
    /// Numbers it holds.
    pub fn parameters(&self) -> usize {
        self.shape.0 * self.shape.1
    }

    /// Its shape in the file.
    pub fn stored_shape(&self) -> Vec<usize> {
        match (self.kind, self.transposed) {
            (TensorKind::Weight(_), false) => vec![self.shape.0, self.shape.1],
            (TensorKind::Weight(_), true) => vec![self.shape.1, self.shape.0],
            (TensorKind::Patches { side, .. }, _) => vec![self.shape.0, 3, side, side],
            _ => vec![self.shape.1],
        }
    }
}
