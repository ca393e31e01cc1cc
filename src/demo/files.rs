//! The demo model as a Hugging Face folder.

use std::path::Path;

use safetensors::tensor::Dtype;
use serde_json::Value;
use tokenizers::Tokenizer;

use super::scratch::{Options, Summary};
use super::shape::{Shape, safetensors};
use super::{DemoError, card, tokenizer};
use crate::backend::Backend;
use crate::model::Trainee;

/// Writes everything but the weights: configurations and tokenizer.
///
/// # Errors
/// [`DemoError::Write`], or [`DemoError::Tokenizer`] if the tokenizer has no JSON form.
pub fn write_tokenizer(out: &Path, made: &Tokenizer, shape: &Shape) -> Result<(), DemoError> {
    std::fs::create_dir_all(out)
        .map_err(|source| DemoError::Write { path: out.to_owned(), source })?;
    let json = made.to_string(false).map_err(|error| DemoError::Tokenizer(error.to_string()))?;
    write(out, "tokenizer.json", json.as_bytes())?;
    write_json(out, "tokenizer_config.json", &tokenizer::config(shape.context_length))?;
    write_json(out, "config.json", &shape.config("bfloat16"))?;
    write_json(out, "generation_config.json", &Shape::generation_config())
}

/// Writes the weights in bf16, first aside, so that the file is whole at every moment.
///
/// # Errors
/// [`DemoError::Write`], or [`DemoError::Weights`] if a tensor is not there.
pub fn write_weights<B: Backend>(
    b: &B,
    out: &Path,
    trainee: &mut Trainee<B>,
    shape: &Shape,
) -> Result<(), DemoError> {
    let mut tensors = Vec::new();
    for (name, axes) in shape.tensors() {
        let found = trainee.parameters_mut().find(|parameter| parameter.name == name);
        let found = found.ok_or_else(|| DemoError::Weights(format!("{name} is not trained")))?;
        tensors.push((name.clone(), axes, b.download(found.value)));
    }
    let bytes = safetensors(&tensors, Dtype::BF16)?;
    write(out, "model.safetensors.tmp", &bytes)?;
    let (from, to) = (out.join("model.safetensors.tmp"), out.join("model.safetensors"));
    std::fs::rename(from, &to).map_err(|source| DemoError::Write { path: to, source })
}

/// Writes the model card.
///
/// # Errors
/// [`DemoError::Write`].
pub fn write_card(out: &Path, options: &Options, summary: &Summary) -> Result<(), DemoError> {
    write(out, "README.md", card::text(options, summary).as_bytes())?;
    write_json(out, "held_out_loss.json", &card::held_out(summary))
}

fn write_json(out: &Path, name: &str, value: &Value) -> Result<(), DemoError> {
    write(out, name, format!("{value:#}\n").as_bytes())
}

fn write(out: &Path, name: &str, bytes: &[u8]) -> Result<(), DemoError> {
    let path = out.join(name);
    std::fs::write(&path, bytes).map_err(|source| DemoError::Write { path, source })
}
