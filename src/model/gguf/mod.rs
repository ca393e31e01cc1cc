//! GGUF as a source and as a target: a file is read as the Hugging Face folder it was made from.

mod adapter;
mod config;
mod describe;
mod names;
mod rope;

pub use adapter::{read_adapter, write_adapter};
pub use config::config;
pub use describe::{Described, described};
pub use names::{interleave_halves, interleaved_heads, split_halves, stored_name};
