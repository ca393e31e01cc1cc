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

    /// How many heads of the tensor lie with their halves interleaved, if any.
    pub fn interleaved_heads(&self, name: &str) -> Option<usize> {
        match self {
            Self::HuggingFace => None,
            Self::Gguf(config) => gguf::interleaved_heads(config, name),
        }
    }

    /// Whether the file has added something to the values.
    pub fn has_added(&self, name: &str) -> bool {
        let Self::Gguf(config) = self else { return false };
        config.norm.plus_one && name.ends_with("norm.weight")
    }
}
