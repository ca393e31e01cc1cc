//! Clipping and AdamW over everything a [`Trainee`] holds.

use std::io;
use std::path::Path;

use super::paging::HostState;
use crate::backend::{AdamStep, Backend};
use crate::domain::Hyperparameters;
use crate::model::{Parameter, Trainee};

/// Tensors of fewer values keep their state in `f32`: bitsandbytes' `min_8bit_size`.
const LEAST_8BIT: usize = 4096;

/// First and second moments, one pair per trained tensor, in the trainee's order.
pub struct Optimizer<B: Backend> {
    state: State<B>,
    decay: Decay,
}

/// Where the moments lie.
pub(super) enum State<B: Backend> {
    Device(Vec<Moments<B>>),
    Host(HostState),
}

/// What weight decay applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decay {
    /// Every tensor of an adapter.
    All,
    /// Tensors of more than one row: neither norms nor biases, as transformers' trainer has it.
    Matrices,
}

/// AdamW's state for one tensor on the device.
pub(super) struct Moments<B: Backend> {
    pub first: B::Rows,
    pub second: B::Rows,
}

impl<B: Backend> Optimizer<B> {
    /// Zeroed moments in `f32` on the device, for every tensor of `trainee`.
    pub fn new(b: &mut B, trainee: &mut Trainee<B>, decay: Decay) -> Self {
        let zeros = |parameter: Parameter<'_, B>| {
            let (rows, width) = b.shape(parameter.value);
            Moments { first: b.zeros(rows, width), second: b.zeros(rows, width) }
        };
        let moments = trainee.parameters_mut().map(zeros).collect();
        Self { state: State::Device(moments), decay }
    }

    /// The optimiser that `h` asks for; a paged one keeps its file in `scratch`.
    ///
    /// # Errors
    /// If that file cannot be made.
    pub fn of(
        b: &mut B,
        trainee: &mut Trainee<B>,
        h: &Hyperparameters,
        scratch: &Path,
    ) -> io::Result<Self> {
        let kind = h.optimizer;
        if !kind.is_8bit() && !kind.is_paged() {
            return Ok(Self::new(b, trainee, Decay::All));
        }
        let lengths: Vec<usize> = trainee
            .parameters_mut()
            .map(|parameter| b.shape(parameter.value))
            .map(|(rows, width)| rows * width)
            .collect();
        let bits8 = |len| kind.is_8bit() && len >= LEAST_8BIT;
        let budget = kind.is_paged().then(|| h.optimizer_memory_bytes.unwrap_or(0));
        let state = HostState::new(&lengths, bits8, budget, scratch)?;
        Ok(Self { state: State::Host(state), decay: Decay::All })
    }

    /// Σ g² of each gradient, in order.
    pub fn gradient_squares(&self, b: &mut B, trainee: &mut Trainee<B>) -> Vec<f64> {
        trainee.parameters_mut().map(|parameter| b.sum_of_squares(parameter.gradient)).collect()
    }

    /// One step: gradients scaled down to the allowed norm, then AdamW on every tensor.
    /// `norm` is the global L2 norm of the gradients; `step` counts from 1.
    ///
    /// # Errors
    /// If a paged state cannot be read or written; the step is then half done.
    pub fn step(
        &mut self,
        b: &mut B,
        trainee: &mut Trainee<B>,
        h: &Hyperparameters,
        rate: f64,
        norm: f64,
        step: usize,
    ) -> io::Result<()> {
        let clip = clip_factor(norm, h.max_grad_norm);
        for (index, parameter) in trainee.parameters_mut().enumerate() {
            if clip < 1.0 {
                b.scale(parameter.gradient, clip as f32);
            }
            let decays = self.decay == Decay::All || b.shape(parameter.value).0 > 1;
            let adam = AdamStep {
                step,
                learning_rate: rate * rate_factor(parameter.name, h),
                beta1: h.adam_beta1,
                beta2: h.adam_beta2,
                epsilon: h.adam_epsilon,
                weight_decay: if decays { h.weight_decay } else { 0.0 },
            };
            let Parameter { value, gradient, .. } = parameter;
            match &mut self.state {
                State::Device(moments) => {
                    let Moments { first, second } = &mut moments[index];
                    b.adamw(value, gradient, first, second, &adam);
                }
                State::Host(state) => state.update(index, |moments| {
                    b.adamw_on_host(value, gradient, moments, &adam);
                })?,
            }
        }
        Ok(())
    }

    pub(super) fn state(&self) -> &State<B> {
        &self.state
    }

    pub(super) fn state_mut(&mut self) -> &mut State<B> {
        &mut self.state
    }

    /// Gives the moments' memory back.
    pub fn release(self, b: &mut B) {
        let State::Device(moments) = self.state else { return };
        for moments in moments {
            b.recycle(moments.first);
            b.recycle(moments.second);
        }
    }
}

/// LoRA+: `B`, and DoRA's magnitude as PEFT has it, learn faster than the rest; modules trained
/// whole have a rate of their own.
/// Hayou et al. 2024, "LoRA+: Efficient Low Rank Adaptation of Large Models", section 3.
fn rate_factor(name: &str, h: &Hyperparameters) -> f64 {
    let faster = name.ends_with("lora_B.weight") || name.ends_with("lora_magnitude_vector");
    let ratio = match name.contains(".lora_") {
        true => h.loraplus_lr_ratio.filter(|_| faster),
        false => h.modules_to_save_lr_ratio,
    };
    ratio.unwrap_or(1.0)
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

    #[test]
    fn a_ratio_speeds_up_what_comes_behind_a() {
        let h = Hyperparameters { loraplus_lr_ratio: Some(16.0), ..Hyperparameters::default() };
        let factors = ["q.lora_A.weight", "q.lora_B.weight", "q.lora_magnitude_vector", "h.weight"]
            .map(|name| rate_factor(name, &h));
        assert_eq!(factors, [1.0, 16.0, 16.0, 1.0]);
        assert_eq!(rate_factor("q.lora_B.weight", &Hyperparameters::default()), 1.0);
        let whole = Hyperparameters { modules_to_save_lr_ratio: Some(0.1), ..h };
        let factors = ["q.lora_A.weight", "q.lora_B.weight", "projector.linear_1.bias"];
        assert_eq!(factors.map(|name| rate_factor(name, &whole)), [1.0, 16.0, 0.1]);
    }
}
