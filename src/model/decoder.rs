//! The decoder: embedding, layers, head.

use std::sync::Arc;

use super::{AdapterRows, LoadOptions, ModelError, ModelSource};
use crate::backend::{Backend, SequenceRows};
use crate::domain::BaseInfo;

/// A resident base model.
pub struct Model<B: Backend> {
    pub info: Arc<BaseInfo>,
    /// Tokens after which a generation is over, as the configuration names them.
    pub eos_token_ids: Vec<u32>,
    _device: std::marker::PhantomData<B>,
}

/// One step of serving: a flat ragged batch. Row `i` is token `tokens[i]` of the sequence whose
/// `rows` hold `i`; prefill chunks and decode tokens of any lengths share it.
pub struct Step<'a, B: Backend> {
    pub tokens: &'a [u32],
    /// Cover every row once, in order.
    pub sequences: &'a [SequenceRows],
    /// Rows that wear an adapter; the others are served by the base alone.
    pub adapters: &'a [AdapterRows<'a, B>],
    /// The rows whose logits are asked for, in the order of the answer.
    pub logits: &'a [usize],
}

impl<B: Backend> Model<B> {
    /// Reads a model and packs it for the device.
    ///
    /// # Errors
    /// If a file cannot be read, the configuration asks for something that is not supported, or a
    /// tensor is missing, superfluous, misshapen or not finite. Each names file and tensor.
    pub fn load(
        _b: &mut B,
        _source: &ModelSource,
        _options: &LoadOptions,
    ) -> Result<Self, ModelError> {
        unimplemented!()
    }

    /// Room for `blocks` KV blocks of this model.
    pub fn cache(&self, _b: &mut B, _blocks: usize) -> B::Cache {
        unimplemented!()
    }

    /// Bytes one KV block takes over all layers.
    pub fn kv_bytes_per_block(&self) -> usize {
        unimplemented!()
    }

    /// One forward pass over `step`, its keys and values written to `cache`: the logits
    /// `(step.logits.len(), v)` of the rows asked for.
    pub fn forward(&self, _b: &mut B, _cache: &mut B::Cache, _step: &Step<'_, B>) -> B::Rows {
        unimplemented!()
    }
}
