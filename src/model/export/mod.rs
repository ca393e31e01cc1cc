//! A model to files that other tools read: the weights are read once more from their source, one
//! tensor at a time, merged with an adapter where there is one, and written in another type.

mod encode;
mod gguf;
mod merge;
mod safetensors;

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::checkpoint::{Checkpoint, Layout, Stored};
use super::config::DecoderConfig;
use super::families::{PROJECTOR, canonical_name};
use super::load::{config_bytes, parse};
use super::tensors::TensorSpec;
use super::{Model, ModelError, ModelSource};
use crate::backend::{Backend, HostThreads};
use crate::domain::{AdapterWeights, SaveableModule};
use crate::gguf::{TensorType, Value as Meta};

/// The tensors of a model as its source holds them.
pub struct Weights<'a> {
    specs: Vec<&'a TensorSpec>,
    config: &'a DecoderConfig,
    /// The `config.json`, or what a GGUF file says in its place.
    json: Value,
    checkpoint: Checkpoint,
    threads: Arc<HostThreads>,
    adapter: Option<&'a AdapterWeights>,
    /// What an adapter may replace whole.
    saveable: &'a [SaveableModule],
}

/// What a tensor that does not fit the type that was asked for was written as instead.
#[derive(Clone, Debug, Default)]
pub struct Written {
    pub tensors: usize,
    pub bytes: u64,
    /// Tensors whose rows are no whole blocks, and the type they have got.
    pub fallbacks: Vec<(String, TensorType)>,
}

impl<B: Backend> Model<B> {
    /// Opens the source of this model once more, to be written with `adapter` merged into it.
    ///
    /// # Errors
    /// If it cannot be read any more.
    pub fn weights<'a>(
        &'a self,
        source: &ModelSource,
        adapter: Option<&'a AdapterWeights>,
    ) -> Result<Weights<'a>, ModelError> {
        let bytes = config_bytes(source)?;
        let threads = Arc::new(HostThreads::for_this_machine());
        let mut checkpoint =
            Checkpoint::open(source, &bytes, &self.config.family, Arc::clone(&threads))?;
        if let ModelSource::Gguf(_) = source {
            checkpoint.set_layout(Layout::Gguf(Box::new(self.config.clone())));
        }
        if self.vision.is_some() {
            checkpoint.rename(canonical_name);
        }
        let json = parse("config.json", &bytes)?;
        let saved = adapter.iter().flat_map(|adapter| &adapter.saved);
        let mut of_two = saved.filter(|saved| self.is_tied_to(&saved.module));
        if let Some(saved) = of_two.next() {
            // Embedding and head are one matrix there, and would have to become two.
            return Err(unsupported("a module saved whole over tied weights", &saved.module));
        }
        let seen = self.vision.iter().flat_map(|vision| &vision.specs);
        let specs = self.specs.iter().chain(seen).collect();
        let (config, saveable) = (&self.config, &self.info.saveable[..]);
        Ok(Weights { specs, config, json, checkpoint, threads, adapter, saveable })
    }

    /// Whether `module` is the embedding or the head of a model in which they are one matrix.
    fn is_tied_to(&self, module: &str) -> bool {
        self.config.tied && module != PROJECTOR.trim_end_matches('.')
    }
}

impl Weights<'_> {
    /// Writes a GGUF file whose matrices are of `kind`; `text` are the metadata of the tokenizer.
    ///
    /// # Errors
    /// [`ModelError`], also for a model whose mathematics GGUF has no words for.
    pub fn write_gguf(
        mut self,
        path: &Path,
        name: &str,
        kind: TensorType,
        text: Vec<(String, Meta)>,
    ) -> Result<Written, ModelError> {
        gguf::write(&mut self, path, name, kind, text)
    }

    /// Writes `config.json` and `model.safetensors` into a folder, in f32, f16 or bf16.
    ///
    /// # Errors
    /// [`ModelError`].
    pub fn write_safetensors(
        mut self,
        folder: &Path,
        kind: TensorType,
    ) -> Result<Written, ModelError> {
        safetensors::write(&mut self, folder, kind)
    }

    /// The values of a tensor in our orientation, merged.
    fn values(&mut self, spec: &TensorSpec) -> Result<Vec<f32>, ModelError> {
        let mut values = match self.checkpoint.read(spec)? {
            Stored::Values { values, .. } => values.to_vec(&self.threads),
            Stored::Blocks(_) => unreachable!("formats are not kept"),
        };
        if let Some(saved) = self.saved(&spec.name) {
            values.clone_from(saved);
        }
        let module = spec.name.strip_suffix(".weight").unwrap_or("");
        let sites = self.adapter.iter().flat_map(|adapter| &adapter.sites);
        for site in sites.filter(|site| site.module == module) {
            merge::merge(&mut values, site, spec.shape);
        }
        Ok(values)
    }

    /// What the adapter has in place of the tensor `name`.
    fn saved(&self, name: &str) -> Option<&Vec<f32>> {
        let saved = &self.adapter?.saved;
        saved.iter().find_map(|saved| {
            let module = self.saveable.iter().find(|module| module.name == saved.module)?;
            let within = name.strip_prefix(&module.name)?.strip_prefix('.')?;
            let at = module.tensors.iter().position(|tensor| tensor.name == within)?;
            saved.values.get(at)
        })
    }
}

fn unsupported(key: &str, value: impl ToString) -> ModelError {
    ModelError::NotExportable { key: key.to_owned(), value: value.to_string() }
}

/// The rows of a matrix, or the one row of a vector, turned into the file's order.
fn turned<'a>(values: &'a [f32], (out, inner): (usize, usize)) -> Cow<'a, [f32]> {
    let mut turned = Vec::with_capacity(values.len());
    for i in 0..inner {
        turned.extend((0..out).map(|o| values[o * inner + i]));
    }
    turned.into()
}
