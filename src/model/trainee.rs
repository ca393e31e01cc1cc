//! What a run trains: an adapter, or every weight.

use super::{Model, ModelError};
use crate::backend::Backend;
use crate::domain::AdapterWeights;

/// Master copies in `f32` of what is trained, each beside its gradient.
pub struct Trainee<B: Backend> {
    _device: std::marker::PhantomData<B>,
}

/// One trained tensor.
pub struct Parameter<'a, B: Backend> {
    /// As in its file: `model.layers.0.self_attn.q_proj.lora_A.weight`, or `model.norm.weight`.
    pub name: &'a str,
    pub value: &'a mut B::Rows,
    /// Sums up over micro-batches until [`Trainee::zero_gradients`].
    pub gradient: &'a mut B::Rows,
}

impl<B: Backend> Trainee<B> {
    /// Trains an adapter, from these weights on.
    ///
    /// # Errors
    /// As [`Model::attach`].
    pub fn adapter(
        _b: &mut B,
        _model: &Model<B>,
        _weights: &AdapterWeights,
    ) -> Result<Self, ModelError> {
        unimplemented!()
    }

    /// Trains every weight of `model`, from its present values on. After each optimiser step
    /// [`Trainee::refresh`] brings the new values into the model.
    ///
    /// # Errors
    /// [`ModelError::NotTrainable`] if the model has a weight whose gradient is not formed.
    pub fn full(_b: &mut B, _model: &Model<B>) -> Result<Self, ModelError> {
        unimplemented!()
    }

    /// Every trained tensor with its gradient, always in the same order.
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = Parameter<'_, B>> {
        std::iter::empty()
    }

    /// Numbers trained.
    pub fn trainable_parameters(&self) -> usize {
        unimplemented!()
    }

    /// Sets every gradient to zero.
    pub fn zero_gradients(&mut self, _b: &mut B) {
        unimplemented!()
    }

    /// The adapter as it stands, under the name `key`; `None` when every weight is trained.
    pub fn adapter_weights(&self, _b: &B, _key: String, _dropout: f32) -> Option<AdapterWeights> {
        unimplemented!()
    }

    /// After an optimiser step: packs the new values into the model where every weight is trained.
    /// An adapter is used as it is, so nothing is to do for it.
    pub fn refresh(&self, _b: &mut B, _model: &mut Model<B>) {
        unimplemented!()
    }
}
