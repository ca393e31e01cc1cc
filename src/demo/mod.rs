//! The demo model: the corpus it learns from, its tokenizer, and the run that makes it.

pub mod bar;
mod card;
pub mod corpus;
mod error;
pub mod exam;
mod files;
pub mod scratch;
pub mod shape;
pub mod tokenizer;

pub use error::DemoError;
pub use scratch::{Options, Progress, Summary};
