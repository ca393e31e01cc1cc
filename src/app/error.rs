//! Why the server could not start or go on, and what the shell is told.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::artifacts::ArtifactError;
use crate::catalog::CatalogError;
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
    #[error("the tokenizer of the model `{model}` cannot be used: {}", chain(.source))]
    Text { model: String, source: TextError },
    #[error("the model `{model}` cannot read pictures: {source}")]
    Pictures { model: String, source: PictureConfigError },
    #[error("the adapter `{name}` cannot be registered: {source}")]
    Adapter { name: String, source: Box<CatalogError> },
    #[error("`--adapter {name}` names the base model `{base}`, which is not served")]
    AdapterBase { name: String, base: String },
    #[error(
        "the device thread ended unexpectedly; the log says why, and a restart resumes the jobs"
    )]
    DeviceLost,
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("cannot write the adapter to {folder}: {source}")]
    Export { folder: PathBuf, source: std::io::Error },
    #[error("a task of the start-up failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl AppError {
    /// 78 for model and adapter files, 70 for a lost device, 1 for the rest.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Model(_)
            | Self::Text { .. }
            | Self::Pictures { .. }
            | Self::Adapter { .. }
            | Self::AdapterBase { .. } => 78,
            Self::DeviceLost => 70,
            Self::Artifacts(_)
            | Self::Store(_)
            | Self::Listen { .. }
            | Self::Catalog(_)
            | Self::Export { .. }
            | Self::Task(_) => 1,
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
