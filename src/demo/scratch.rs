//! Training the demo model from nothing.

/// Why the demo model could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error("the tokenizer could not be trained or used: {0}")]
    Tokenizer(String),
}
