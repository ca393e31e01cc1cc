//! Why the demo model could not be made.

use std::path::PathBuf;

use crate::model::ModelError;

/// Why the demo model could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error("the tokenizer could not be trained or used: {0}")]
    Tokenizer(String),
    #[error("the weights could not be laid out: {0}")]
    Weights(String),
    #[error("cannot write {path}: {source}; choose a folder you may write to with --out")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("training diverged in step {step} (loss {loss}); try another --seed")]
    Diverged { step: usize, loss: f64 },
    #[error(transparent)]
    Model(#[from] ModelError),
}
