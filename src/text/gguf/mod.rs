//! The tokenizer and chat template inside a GGUF file, read as the `tokenizer.json` they were made
//! from, and written.
//!
//! `tokenizer.huggingface.json` holds the original file, where a writer kept it. Else it is made anew
//! from the lists of ggml: model `gpt2` is byte-level BPE, `llama` a SentencePiece vocabulary whose
//! scores say what is merged first.

mod pre;
mod read;
mod sentencepiece;
mod write;

pub(super) use read::read;
pub use write::{metadata, without_tokenizer};

/// `tokenizer.ggml.token_type`.
mod kind {
    pub const NORMAL: i64 = 1;
    pub const UNKNOWN: i64 = 2;
    pub const CONTROL: i64 = 3;
    pub const USER_DEFINED: i64 = 4;
    pub const UNUSED: i64 = 5;
    pub const BYTE: i64 = 6;
}
