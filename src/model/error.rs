//! What can go wrong between a folder and a running model.

use std::path::PathBuf;

use crate::gguf::GgufError;

/// A model, an adapter or a training set-up that cannot be used, and why.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{key} = {value} cannot be written in that format")]
    NotExportable { key: String, value: String },
    #[error("{file} is not valid JSON: {source}")]
    Json { file: String, source: serde_json::Error },
    #[error(transparent)]
    Gguf(Box<GgufError>),
    #[error("the folder {0} holds no config.json; is it a Hugging Face model folder?")]
    NoConfig(PathBuf),
    #[error(
        "the folder {0} holds neither model.safetensors nor model.safetensors.index.json; \
         only safetensors checkpoints are read"
    )]
    NoWeights(PathBuf),
    #[error("config.json: `{key}` is missing")]
    MissingKey { key: String },
    #[error("config.json: `{key}` must be {expected}, and is {found}")]
    BadValue { key: String, expected: &'static str, found: String },
    #[error(
        "config.json: `{key}` = {value} changes the mathematics in a way that is not supported"
    )]
    Unsupported { key: String, value: String },
    #[error(
        "its heads have {head_dim} values, and this device computes with at most {most}; serve it \
         with `--device cpu`"
    )]
    LargeHeads { head_dim: usize, most: usize },
    #[error("`model_type` {family} is not supported; supported are {supported}")]
    UnknownFamily { family: String, supported: String },
    #[error("{file} is not a usable checkpoint: {reason}")]
    BadFile { file: String, reason: String },
    #[error("the tensor {tensor} is missing from {place}")]
    MissingTensor { tensor: String, place: String },
    #[error("{file} holds the tensor {tensor}, which a {family} model does not have")]
    SuperfluousTensor { file: String, tensor: String, family: String },
    #[error(
        "{file}: the tensor {tensor} has shape {found:?}, and the configuration asks for {expected:?}"
    )]
    Misshapen { file: String, tensor: String, expected: Vec<usize>, found: Vec<usize> },
    #[error(
        "{file}: the tensor {tensor} has type {dtype}, which is not read; f32, f16 and bf16 are"
    )]
    TensorType { file: String, tensor: String, dtype: String },
    #[error("{file}: the tensor {tensor} holds a value that is not a finite number")]
    NotFinite { file: String, tensor: String },
    #[error("the adapter names the module {module}, which {model} does not have")]
    UnknownModule { module: String, model: String },
    #[error("the adapter names the module {module} twice")]
    RepeatedModule { module: String },
    #[error(
        "the adapter's {matrix} for {module} holds {found} numbers; rank {r} and this model ask \
         for {expected}"
    )]
    AdapterShape { module: String, matrix: &'static str, r: usize, expected: usize, found: usize },
    #[error("the adapter's {matrix} for {module} holds a value that is not a finite number")]
    AdapterNotFinite { module: String, matrix: &'static str },
    #[error("the adapter's {module} holds {found} numbers; this model asks for {expected}")]
    SavedShape { module: String, expected: usize, found: usize },
    #[error("the adapter attaches to no module")]
    EmptyAdapter,
    #[error("{feature} cannot be trained in full; train an adapter instead")]
    NotTrainable { feature: &'static str },
}

impl From<GgufError> for ModelError {
    fn from(error: GgufError) -> Self {
        Self::Gguf(Box::new(error))
    }
}
