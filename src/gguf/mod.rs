//! GGUF files: what a header says, and how a file is written.
//!
//! The format is described in `docs/gguf.md` of ggml: a header of metadata and tensor descriptions,
//! then the tensors, aligned. A file comes from outside, so every count, length and offset is
//! checked against the file before memory is taken for it. What the metadata *mean* is not known
//! here: `model` reads a configuration from them, `text` a tokenizer.

mod error;
mod header;
mod kind;
mod metadata;
mod write;

pub use error::GgufError;
pub use header::{Gguf, TensorInfo};
pub use kind::TensorType;
pub use metadata::{Metadata, Value};
pub use write::{NewTensor, Writer};

/// Where tensors begin and how they are spaced, unless the file says otherwise.
const ALIGNMENT: u64 = 32;
const MAGIC: [u8; 4] = *b"GGUF";
const VERSION: u32 = 3;
