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

use std::borrow::Cow;

use crate::backend::cpu::CpuBackend;
use crate::model::ModelSource;
use crate::text::TextFiles;

const CONFIG: &[u8] = include_bytes!("model/config.json");
const WEIGHTS: &[u8] = include_bytes!("model/model.safetensors");
const TOKENIZER: &[u8] = include_bytes!("model/tokenizer.json");
const TOKENIZER_CONFIG: &[u8] = include_bytes!("model/tokenizer_config.json");
const GENERATION_CONFIG: &[u8] = include_bytes!("model/generation_config.json");

/// Trains the demo model on the CPU and writes it to `options.out`, telling each step.
///
/// # Errors
/// [`DemoError`] if the folder cannot be written or the run fails.
pub fn train_from_scratch(
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> Result<Summary, DemoError> {
    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        asked => asked,
    };
    scratch::train_on(&mut CpuBackend::new(threads), options, progress)
}

/// Configuration and weights of the embedded model.
pub fn weights() -> ModelSource {
    ModelSource::Embedded { config: Cow::Borrowed(CONFIG), tensors: Cow::Borrowed(WEIGHTS) }
}

/// Tokenizer and chat template of the embedded model.
pub fn text_files() -> TextFiles<'static> {
    TextFiles {
        tokenizer: TOKENIZER,
        tokenizer_config: Some(TOKENIZER_CONFIG),
        generation_config: Some(GENERATION_CONFIG),
        config: Some(CONFIG),
        chat_template: None,
    }
}
