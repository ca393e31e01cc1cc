//! A model to files that other tools read: the weights are read once more from their source, one
//! tensor at a time, merged with an adapter where there is one, and written in another type.

mod encode;
mod gguf;
mod merge;
mod mmproj;
mod safetensors;
mod tower;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::checkpoint::{Checkpoint, Layout, Stored};
use super::config::DecoderConfig;
use super::families::canonical_name;
use super::load::{config_bytes, parse};
use super::saved::Part;
use super::tensors::TensorSpec;
use super::{Model, ModelError, ModelSource};
use crate::backend::{Backend, HostThreads};
use crate::domain::AdapterWeights;
use crate::gguf::{Gguf, TensorType, Value as Meta};
pub use mmproj::Normalisation;

/// The tensors of a model as its source holds them.
pub struct Weights<'a> {
    specs: Vec<TensorSpec>,
    config: &'a DecoderConfig,
    /// The `config.json`, or what a GGUF file says in its place.
    json: Value,
    checkpoint: Checkpoint,
    threads: Arc<HostThreads>,
    adapter: Option<&'a AdapterWeights>,
    /// What it has in place of whole tensors, by their names.
    replaced: BTreeMap<String, &'a [f32]>,
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
        let replaced = adapter.map(|adapter| self.replaced(adapter)).transpose()?;
        let (specs, config) = (self.all_specs(&checkpoint), &self.config);
        let replaced = replaced.unwrap_or_default();
        Ok(Weights { specs, config, json, checkpoint, threads, adapter, replaced })
    }

    /// Every tensor of the checkpoint that belongs to the model.
    fn all_specs(&self, checkpoint: &Checkpoint) -> Vec<TensorSpec> {
        let seeing = self.vision.iter().flat_map(|vision| {
            let unused = tower::unused(&vision.config.tower, &vision.specs, checkpoint);
            vision.specs.iter().cloned().chain(unused)
        });
        self.specs.iter().cloned().chain(seeing).collect()
    }

    /// The tensors that `adapter` has whole.
    fn replaced<'a>(
        &self,
        adapter: &'a AdapterWeights,
    ) -> Result<BTreeMap<String, &'a [f32]>, ModelError> {
        let mut replaced = BTreeMap::new();
        for saved in &adapter.saved {
            let (part, module) = self.saveable(&saved.module)?;
            if self.config.tied && part != Part::Projector {
                // Embedding and head are one matrix there, and would have to become two.
                return Err(unsupported("a module saved whole over tied weights", &saved.module));
            }
            for (tensor, values) in module.tensors.iter().zip(&saved.values) {
                replaced.insert(format!("{}.{}", module.name, tensor.name), &values[..]);
            }
        }
        Ok(replaced)
    }
}

impl Weights<'_> {
    /// Writes the decoder as a GGUF file whose matrices are of `kind`; `text` are the metadata of the
    /// tokenizer.
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

    /// Writes the vision tower and the projector as a GGUF file, in f16 where `kind` is quantised.
    ///
    /// # Errors
    /// As [`Weights::write_gguf`], and for a model that sees nothing.
    pub fn write_mmproj(
        mut self,
        path: &Path,
        name: &str,
        kind: TensorType,
        normalisation: &Normalisation,
    ) -> Result<Written, ModelError> {
        let written = mmproj::write(&mut self, path, name, kind, normalisation)?;
        // Nothing here computes with the file; its header at least is read back.
        Gguf::open(path)?;
        Ok(written)
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
        if let Some(whole) = self.replaced.get(&spec.name) {
            values.copy_from_slice(whole);
        }
        let module = spec.name.strip_suffix(".weight").unwrap_or("");
        let sites = self.adapter.iter().flat_map(|adapter| &adapter.sites);
        for site in sites.filter(|site| site.module == module) {
            merge::merge(&mut values, site, spec.shape);
        }
        Ok(values)
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
