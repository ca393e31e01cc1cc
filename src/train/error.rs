//! Why a run cannot start.

use std::path::PathBuf;

use crate::model::ModelError;

/// A run that cannot start, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error("the training data is empty; give at least one example")]
    NoExamples,
    #[error(
        "none of the {examples} training examples has a token to learn within its first \
         {max_seq_length} tokens: every label is masked; check roles and weights, or raise \
         `max_seq_length`"
    )]
    NothingToLearn { examples: usize, max_seq_length: usize },
    #[error("`{name}` must be {expected}, and is {found}")]
    Hyperparameter { name: &'static str, expected: &'static str, found: String },
    #[error(
        "the base model {base} has no module {module}; name modules it has in `target_modules`"
    )]
    UnknownModule { base: String, module: String },
    #[error("the adapter to go on from {problem}; make `lora` the same as it was for that adapter")]
    InitAdapter { problem: String },
    #[error("cannot read the checkpoint {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the checkpoint {path} cannot be gone on from: {reason}")]
    Resume { path: PathBuf, reason: String },
    #[error("the optimizer's state has no room: {0}")]
    Paging(std::io::Error),
    #[error("a picture of the training data cannot be read any more: {reason}")]
    Picture { reason: String },
    #[error(transparent)]
    Model(#[from] ModelError),
}
