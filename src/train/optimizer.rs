//! Clipping and AdamW over everything a [`Trainee`] holds.

use crate::backend::{AdamStep, Backend};
use crate::domain::Hyperparameters;
use crate::model::{Parameter, Trainee};

/// First and second moments, one pair per trained tensor, in the trainee's order.
pub struct Optimizer<B: Backend> {
    moments: Vec<Moments<B>>,
    decay: Decay,
}

/// What weight decay applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decay {
    /// Every tensor: an adapter's are all matrices.
    All,
    /// Tensors of more than one row: neither norms nor biases, as transformers' trainer has it.
    Matrices,
}

/// AdamW's state for one tensor.
pub(super) struct Moments<B: Backend> {
    pub first: B::Rows,
    pub second: B::Rows,
}

impl<B: Backend> Optimizer<B> {
    /// Zeroed moments for every tensor of `trainee`.
    pub fn new(b: &mut B, trainee: &mut Trainee<B>, decay: Decay) -> Self {
        let zeros = |parameter: Parameter<'_, B>| {
            let (rows, width) = b.shape(parameter.value);
            Moments { first: b.zeros(rows, width), second: b.zeros(rows, width) }
        };
        let moments = trainee.parameters_mut().map(zeros).collect();
        Self { moments, decay }
    }

    /// Σ g² of each gradient, in order.
    pub fn gradient_squares(&self, b: &mut B, trainee: &mut Trainee<B>) -> Vec<f64> {
        trainee.parameters_mut().map(|parameter| b.sum_of_squares(parameter.gradient)).collect()
    }

    /// One step: gradients scaled down to the allowed norm, then AdamW on every tensor.
    /// `norm` is the global L2 norm of the gradients; `step` counts from 1.
    pub fn step(
        &mut self,
        b: &mut B,
        trainee: &mut Trainee<B>,
        h: &Hyperparameters,
        rate: f64,
        norm: f64,
        step: usize,
    ) {
        let clip = clip_factor(norm, h.max_grad_norm);
        for (parameter, moments) in trainee.parameters_mut().zip(&mut self.moments) {
            if clip < 1.0 {
                b.scale(parameter.gradient, clip as f32);
            }
            let decays = self.decay == Decay::All || b.shape(parameter.value).0 > 1;
            let adam = AdamStep {
                step,
                learning_rate: rate,
                beta1: h.adam_beta1,
                beta2: h.adam_beta2,
                epsilon: h.adam_epsilon,
                weight_decay: if decays { h.weight_decay } else { 0.0 },
            };
            let (first, second) = (&mut moments.first, &mut moments.second);
            b.adamw(parameter.value, parameter.gradient, first, second, &adam);
        }
    }

    pub(super) fn moments(&self) -> &[Moments<B>] {
        &self.moments
    }

    pub(super) fn moments_mut(&mut self) -> &mut [Moments<B>] {
        &mut self.moments
    }

    /// Gives the moments' memory back.
    pub fn release(self, b: &mut B) {
        for moments in self.moments {
            b.recycle(moments.first);
            b.recycle(moments.second);
        }
    }
}

/// `min(1, max / (norm + 1e-6))`, as torch's `clip_grad_norm_`; `max` 0 is off.
fn clip_factor(norm: f64, max: f64) -> f64 {
    if max > 0.0 { (max / (norm + 1e-6)).min(1.0) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_norm_above_the_limit_is_scaled() {
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert_eq!(clip_factor(5.0, 0.0), 1.0);
        assert!((clip_factor(4.0, 1.0) - 0.25).abs() < 1e-6);
    }
}
