//! How a file names and lays out its tensors.

use super::super::config::DecoderConfig;
use super::super::gguf;
use super::super::tensors::{TensorKind, TensorSpec};

/// The conventions of a checkpoint.
#[derive(Clone, Debug)]
pub enum Layout {
    /// Names and shapes as `transformers` writes them.
    HuggingFace,
    /// Names by role; matrices `(out, in)` in every family; q and k of `llama` with the two halves
    /// of each head interleaved; norms of Gemma with the 1 added.
    Gguf(Box<DecoderConfig>),
}

impl Layout {
    /// What the file calls the tensor that Hugging Face calls `name`.
    pub fn stored_name(&self, name: &str) -> String {
        match self {
            Self::HuggingFace => name.to_owned(),
            Self::Gguf(config) => {
                gguf::stored_name(config, name).unwrap_or_else(|| name.to_owned())
            }
        }
    }

    pub fn stored_shape(&self, spec: &TensorSpec) -> Vec<usize> {
        match (self, spec.kind) {
            (Self::Gguf(_), TensorKind::Weight(_)) => vec![spec.shape.0, spec.shape.1],
            _ => spec.stored_shape(),
        }
    }

    /// Whether rows and columns are exchanged in the file.
    pub fn is_turned(&self, spec: &TensorSpec) -> bool {
        spec.transposed && matches!(self, Self::HuggingFace)
    }

    /// Rows in the order of the heads' halves, for a tensor of `rows` equal rows.
    pub fn in_our_order(&self, name: &str, bytes: Vec<u8>, rows: usize) -> Vec<u8> {
        let Self::Gguf(config) = self else { return bytes };
        match gguf::interleaved_heads(config, name) {
            Some(heads) => gguf::split_halves(&bytes, rows, heads),
            None => bytes,
        }
    }

    /// Takes off what the file has added to the values.
    pub fn restore(&self, name: &str, values: &mut [f32]) {
        if let Self::Gguf(config) = self
            && config.norm.plus_one
            && name.ends_with("norm.weight")
        {
            values.iter_mut().for_each(|value| *value -= 1.0);
        }
    }
}
