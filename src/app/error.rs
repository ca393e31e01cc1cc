//! Why the server could not start or go on, and what the shell is told.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::artifacts::ArtifactError;
use crate::backend::cuda::driver::Unusable;
use crate::catalog::CatalogError;
use crate::model::ModelError;
use crate::peft::PeftError;
use crate::pictures::PictureConfigError;
use crate::store::StoreError;
use crate::text::TextError;
use crate::worker::StartError;

/// Each variant has an exit code.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error(transparent)]
    Artifacts(#[from] ArtifactError),
    #[error("the database cannot be used: {}", chain(.0))]
    Store(#[from] StoreError),
    #[error("cannot listen on {listen}: {source}; choose another address with `--listen`")]
    Listen { listen: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Model(#[from] StartError),
    #[error("the model `{model}` cannot be used: {}", chain(.source))]
    Text { model: String, source: TextError },
    #[error("the model `{model}` cannot read pictures: {source}")]
    Pictures { model: String, source: PictureConfigError },
    #[error("the adapter `{name}` cannot be registered: {source}")]
    Adapter { name: String, source: Box<CatalogError> },
    #[error("the adapter `{name}` in {folder} cannot be used: {source}")]
    GgufAdapter { name: String, folder: PathBuf, source: Box<ModelError> },
    #[error("`--adapter {name}` names the base model `{base}`, which is not served")]
    AdapterBase { name: String, base: String },
    #[error("`--device` names a GPU that cannot be used: {0}")]
    Device(#[from] Unusable),
    #[error(
        "the device thread ended unexpectedly; the log says why, and a restart resumes the jobs"
    )]
    DeviceLost,
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("cannot write the adapter to {folder}: {source}")]
    Export { folder: PathBuf, source: std::io::Error },
}

impl AppError {
    /// 78 for model and adapter files and a GPU that cannot be used, 70 for a lost device, 1 for the rest.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Model(_)
            | Self::Text { .. }
            | Self::Pictures { .. }
            | Self::Adapter { .. }
            | Self::GgufAdapter { .. }
            | Self::AdapterBase { .. }
            | Self::Device(_) => 78,
            Self::DeviceLost => 70,
            Self::Artifacts(_)
            | Self::Store(_)
            | Self::Listen { .. }
            | Self::Catalog(_)
            | Self::Export { .. } => 1,
        }
    }
}

/// Why a model could not be converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    #[error("{0} exists already; remove it or choose another place")]
    Exists(PathBuf),
    #[error("`--type {name}` is not a type of {}", if *.gguf { "GGUF" } else { "safetensors; a file that ends in .gguf can hold it" })]
    Kind { name: String, gguf: bool },
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Pictures(#[from] PictureConfigError),
    #[error(
        "the model gives logits that are no numbers, before or after the conversion; nothing was \
         written: look for a wrong number in its configuration"
    )]
    NotFinite,
    #[error("`--adapter-only` writes an adapter; name it with `--adapter`")]
    NoAdapter,
    #[error("cannot read the adapter {folder}: {source}")]
    Adapter { folder: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Peft(#[from] PeftError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("the tokenizer cannot be used: {}", chain(.0))]
    Text(#[from] TextError),
}

impl ConvertError {
    /// 2 for a request that makes no sense, 78 for files that cannot be used, 1 for the rest.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Exists(_) | Self::Kind { .. } | Self::NoAdapter => 2,
            Self::Write { .. } | Self::Model(ModelError::Write { .. }) => 1,
            Self::Adapter { .. }
            | Self::Peft(_)
            | Self::Model(_)
            | Self::Text(_)
            | Self::Pictures(_)
            | Self::NotFinite => 78,
        }
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text.replace('\n', " ")
}
