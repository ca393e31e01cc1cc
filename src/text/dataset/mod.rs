//! Training data: JSONL lines to examples, with every bad line named.
//!
//! ```text
//! lines (bounded, one at a time) > format (told by the keys) > record (checked) > example (ids, labels)
//! ```
//! One file holds one format. Nothing is repaired silently: what cannot be trained on is an error
//! with line, JSON path, reason and remedy; what is merely odd is a warning of the same form.
//!
//! Literal special tokens (`</s>`, `<|im_end|>`, …) in messages, ShareGPT turns and Alpaca fields
//! are refused, because there the template writes the structure. In `prompt`/`completion` and
//! `text`, where the author writes everything, they are taken as tokens, as `/v1/completions` does.
//!
//! Messages show pictures as in a chat request. A picture is decoded to be checked and stays in its
//! file ([`Seeing`]); its tokens count and bear no loss, and it is kept whole or not at all.

mod build;
mod format;
mod lines;
mod pictures;
mod records;
mod report;

use std::collections::HashSet;
use std::io::BufRead;

pub use format::Format;
pub use pictures::{Seeing, picture_url};
pub use records::alpaca_prompt;
pub use report::{Bucket, Finding, Piece, Problem, Report, Sample, Severity};

use super::model::TextModel;
use crate::domain::{Example, MAX_CONVERSATION_BYTES};

/// What bears loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrainOn {
    /// Completions, answers and outputs, with the token that ends them.
    #[default]
    Completion,
    /// Every token.
    All,
}

/// What one file may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longer lines are an error.
    pub max_line_bytes: usize,
    /// Longer examples lose their end, counted in tokens.
    pub max_seq_length: usize,
    /// Rows of the model's embedding: a tokenizer may know more tokens.
    pub vocab_size: usize,
    /// So many errors, and as many warnings, are kept; all are counted.
    pub max_findings: usize,
}

impl Limits {
    /// The usual ones; where pictures are `seen`, lines may be as long as a chat request.
    pub fn of(seen: bool) -> Self {
        match seen {
            true => Self { max_line_bytes: MAX_CONVERSATION_BYTES, ..Self::default() },
            false => Self::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_line_bytes: 4 << 20,
            max_seq_length: 2048,
            vocab_size: usize::MAX,
            max_findings: 1000,
        }
    }
}

/// Why a file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    #[error("the training data could not be read: {0}")]
    Unreadable(#[from] std::io::Error),
    /// The report tells which lines, and why.
    #[error("{}", .0.summary())]
    Invalid(Box<Report>),
}

/// A file turned into examples, and what was noticed on the way.
#[derive(Clone, Debug)]
pub struct Dataset {
    pub examples: Vec<Example>,
    pub report: Report,
}

/// Reads the whole file once, holding one line at a time, and reports everything found; without
/// `seeing` no line may show pictures.
///
/// # Errors
/// Only if reading itself fails; bad content is in the report.
pub fn validate(
    reader: impl BufRead,
    model: &TextModel,
    limits: &Limits,
    train_on: TrainOn,
    seeing: Option<Seeing<'_>>,
) -> std::io::Result<Report> {
    build::run(reader, model, (limits, train_on, seeing), |_| {})
}

/// Reads the examples of a file.
///
/// # Errors
/// [`DatasetError::Invalid`] with the report if any line is bad or there is no example.
pub fn load(
    reader: impl BufRead,
    model: &TextModel,
    limits: &Limits,
    train_on: TrainOn,
    seeing: Option<Seeing<'_>>,
) -> Result<Dataset, DatasetError> {
    let mut examples = Vec::new();
    let options = (limits, train_on, seeing);
    let report = build::run(reader, model, options, |example| examples.push(example))?;
    match report.is_usable() {
        true => Ok(Dataset { examples, report }),
        false => Err(DatasetError::Invalid(Box::new(report))),
    }
}

/// How many of `others` are also among `examples`: an overlap of training and validation data.
pub fn overlap(examples: &[Example], others: &[Example]) -> usize {
    let known: HashSet<_> = examples.iter().map(content).collect();
    others.iter().filter(|other| known.contains(&content(other))).count()
}

/// What makes an example the same as another.
fn content(example: &Example) -> (&[u32], Vec<[u8; 32]>) {
    let digests = example.pictures.iter().map(|placed| placed.picture.digest());
    (&example.ids, digests.collect())
}
