//! One micro-batch as a value with a next step.

use super::{Model, TrainBatch, Trainee};
use crate::backend::{Backend, LossSum};

/// How a micro-batch is run.
#[derive(Clone, Debug, Default)]
pub struct MicroBatchOptions {
    /// Multiplies each token's loss in the gradient: `1 /` labels of the accumulation window.
    pub weight: f32,
    /// Dropout before `A` of every site.
    pub dropout: Option<LoraDropout>,
    /// Added to the embeddings, `(t, d)`: NEFTune's noise (Jain et al. 2023), drawn by the caller.
    pub noise: Option<Vec<f32>>,
    /// Loss alone: no gradient is formed, and neither dropout nor noise should be given.
    pub evaluate: bool,
}

/// `lora_dropout`: the mask is drawn from `key`, the site and the element's index, so that the
/// recomputation meets it again.
#[derive(Clone, Copy, Debug)]
pub struct LoraDropout {
    pub p: f32,
    /// Differs between micro-batches.
    pub key: u64,
}

/// A micro-batch under way. Between two calls of [`MicroBatch::advance`] the device may serve.
pub struct MicroBatch<B: Backend> {
    _device: std::marker::PhantomData<B>,
}

impl<B: Backend> MicroBatch<B> {
    /// Sets a micro-batch up; nothing is computed yet.
    pub fn start(_batch: TrainBatch, _options: MicroBatchOptions) -> Self {
        unimplemented!()
    }

    /// Does one small unit: one layer forward, one chunk of head and loss, or one layer recomputed
    /// and backward. When the micro-batch is done its loss is returned, and the gradients have been
    /// added to those of `trainee`.
    pub fn advance(
        &mut self,
        _b: &mut B,
        _model: &Model<B>,
        _trainee: &mut Trainee<B>,
    ) -> Option<LossSum> {
        unimplemented!()
    }

    /// How many calls of [`MicroBatch::advance`] are left, the head counted by chunks.
    pub fn units_left(&self, _model: &Model<B>) -> usize {
        unimplemented!()
    }
}
