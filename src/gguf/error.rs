//! What can be wrong with a GGUF file.

use std::path::PathBuf;

/// A GGUF file that cannot be read or written, and the place in it.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{file} is not a usable GGUF file: {place}: {reason}")]
    Malformed { file: String, place: String, reason: String },
    #[error("{file}: the metadata lack `{key}`")]
    MissingKey { file: String, key: String },
    #[error("{file}: the metadata value `{key}` must be {expected}")]
    WrongType { file: String, key: String, expected: &'static str },
    #[error("{file}: `{key}` = {value} is not supported; supported are {supported}")]
    Unsupported { file: String, key: String, value: String, supported: String },
}
