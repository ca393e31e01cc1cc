//! Measurements a user can repeat: what this machine can do, what each stage of a model reaches of
//! it, and what a running server delivers.
//!
//! - [`machine`], [`cuda`]: facts and limits, for `tandem doctor`.
//! - [`offline`]: load, prefill and decode of one model, without a server.
//! - [`table`]: how the figures are printed.
//! - [`load`]: a closed loop of requests against a URL.

pub mod cuda;
pub mod load;
pub mod machine;
pub mod offline;
pub mod table;

use std::time::Duration;

use indicatif::ProgressBar;

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error("cannot load the model: {0}")]
    Model(#[from] crate::model::ModelError),
    #[error("the context of {context} tokens is too short; {needed} are measured")]
    Context { context: usize, needed: usize },
    #[error("{url} does not answer: {source}")]
    Unreachable { url: String, source: reqwest::Error },
    #[error("every request failed; the first one with: {first}")]
    AllFailed { first: String },
}

/// A line on standard error that says what is being done; nothing where that is no terminal.
pub fn progress() -> ProgressBar {
    let line = ProgressBar::new_spinner();
    line.enable_steady_tick(Duration::from_millis(200));
    line
}

/// The middle of `values`, 0 without any.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
