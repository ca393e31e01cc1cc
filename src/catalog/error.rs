//! What can be wrong with a name, an adapter or a file.

use crate::artifacts::ArtifactError;
use crate::peft::PeftError;
use crate::store::StoreError;
use crate::text::dataset::Report;

/// What every operation of the catalog answers with.
pub type CatalogResult<T> = Result<T, CatalogError>;

#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    #[error("the model `{0}` does not exist")]
    UnknownModel(String),
    #[error("the model `{0}` is a base model; only adapters and fine-tuned models can be deleted")]
    NotDeletable(String),
    #[error(
        "`{0}` is not a name for an adapter; use 1 to 64 letters, digits, `.`, `_` and `-`, and \
         begin with a letter or digit"
    )]
    BadName(String),
    #[error("`{0}` is the name of a base model; give the adapter another one")]
    NameOfBase(String),
    #[error("the base model `{0}` is not served here")]
    UnknownBase(String),
    #[error("the adapter `{name}` cannot be used: {source}")]
    Unusable { name: String, source: PeftError },
    #[error("the adapter `{name}` was made for the base model `{base}`, which is not served here")]
    BaseNotServed { name: String, base: String },
    /// What was sent is no usable adapter.
    #[error(transparent)]
    Adapter(#[from] PeftError),
    #[error("the adapter folder {folder} cannot be read: {source}")]
    Folder { folder: String, source: std::io::Error },
    #[error(
        "this server loads adapter folders only from beneath its adapter root, and it has none; \
         start it with --adapter-root, or upload the files"
    )]
    NoAdapterRoot,
    #[error("the folder `{0}` does not exist beneath this server's adapter root")]
    OutsideRoot(String),
    #[error("the file has no name that ends in .jsonl; fine-tuning reads JSON lines")]
    NotJsonLines,
    #[error("{}", .0.summary())]
    BadLines(Box<Report>),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Artifacts(#[from] ArtifactError),
    #[error("a thread of the server failed")]
    Thread(#[source] tokio::task::JoinError),
}
