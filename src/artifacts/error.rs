//! What can go wrong between the program and its files.

use std::io;
use std::path::{Path, PathBuf};

/// Every operation on artifacts answers with this.
pub type ArtifactResult<T> = Result<T, ArtifactError>;

#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    #[error(
        "storage on `{scheme}://` is not supported yet; name a local folder, for example \
         --storage ./tandem-data/artifacts"
    )]
    Unsupported { scheme: String },
    #[error(
        "another server uses the folder {}; stop it, or give this one its own with --data", .0.display()
    )]
    InUse(PathBuf),
    #[error("cannot {action} {}: {source}", .path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("the disk of {} is full", .0.display())]
    Full(PathBuf),
    #[error("the upload is larger than {limit} bytes")]
    TooLarge { limit: u64 },
    /// The sender went away or sent nonsense; nothing was kept.
    #[error("the upload broke off: {0}")]
    Upload(String),
    #[error("`{0}` is not the name of a stored artifact")]
    BadName(String),
    /// The bytes on disk are not the bytes that were written.
    #[error("{} is damaged: {reason}", .path.display())]
    Corrupt { path: PathBuf, reason: String },
    #[error("the server is shutting down")]
    Stopping,
}

impl ArtifactError {
    /// For `map_err`: what was being done, and to which file.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full(path),
            _ => Self::Io { action, path, source },
        }
    }
}
