//! The tensors a model is made of: their names, shapes and where they come from.

use super::ModelError;
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
            _ => vec![self.shape.1],
        }
    }
}

/// Where tensors come from: a checkpoint, or a seed.
pub trait TensorSource {
    /// Whether there is a tensor of that name still unread.
    fn has(&self, name: &str) -> bool;

    /// The values of a tensor as the file means them, row-major in our orientation.
    ///
    /// # Errors
    /// If it is missing, misshapen, of a type that is not read, or not finite.
    fn read(&mut self, spec: &TensorSpec) -> Result<Vec<f32>, ModelError>;
}

/// Fresh weights: matrices from a normal distribution, norms 1, biases 0.
pub struct Fresh {
    pub seed: u64,
    pub standard_deviation: f32,
}

impl TensorSource for Fresh {
    fn has(&self, _name: &str) -> bool {
        true
    }

    fn read(&mut self, spec: &TensorSpec) -> Result<Vec<f32>, ModelError> {
        let n = spec.parameters();
        Ok(match spec.kind {
            TensorKind::Bias => vec![0.0; n],
            TensorKind::Norm { minus } => vec![1.0 - minus; n],
            TensorKind::Weight(_) => {
                let mut key = self.seed ^ hash(&spec.name);
                (0..n).map(|_| self.standard_deviation * normal(&mut key)).collect()
            }
        })
    }
}

/// FNV-1a: each tensor draws from a stream of its own.
fn hash(name: &str) -> u64 {
    let step = |h: u64, byte| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    name.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

/// A standard normal number. Box & Muller 1958.
fn normal(state: &mut u64) -> f32 {
    let radius = (-2.0 * uniform(state).ln()).sqrt();
    (radius * (std::f64::consts::TAU * uniform(state)).cos()) as f32
}

/// A number in (0, 1]. SplitMix64, Steele et al. 2014.
fn uniform(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11).wrapping_add(1) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_matrices_are_normal_and_follow_seed_and_name() {
        let spec = |name: &str| TensorSpec {
            name: name.to_owned(),
            stored: name.to_owned(),
            shape: (100, 100),
            kind: TensorKind::Weight(WeightFormat::F32),
            transposed: false,
        };
        let mut fresh = Fresh { seed: 1, standard_deviation: 0.5 };
        let values = fresh.read(&spec("a")).unwrap();
        let mean = values.iter().sum::<f32>() / 1e4;
        let variance = values.iter().map(|x| x * x).sum::<f32>() / 1e4;
        assert!(mean.abs() < 0.02 && (variance - 0.25).abs() < 0.02, "{mean} {variance}");
        assert_eq!(values, fresh.read(&spec("a")).unwrap());
        assert_ne!(values, fresh.read(&spec("b")).unwrap());
        assert_ne!(values, Fresh { seed: 2, ..fresh }.read(&spec("a")).unwrap());
    }
}
