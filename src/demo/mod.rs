//! The demo model: the corpus it learns from, its tokenizer, and the run that makes it.

pub mod corpus;
mod scratch;
pub mod tokenizer;

pub use scratch::DemoError;
