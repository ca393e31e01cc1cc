//! Where a model comes from and how it shall be held.

use std::borrow::Cow;
use std::path::PathBuf;

use crate::backend::WeightFormat;

/// Where configuration and weights lie.
#[derive(Clone, Debug)]
pub enum ModelSource {
    /// A Hugging Face folder: `config.json` and `model.safetensors`, or its shards and their index.
    Folder(PathBuf),
    /// A GGUF file, with its configuration in its metadata.
    Gguf(PathBuf),
    /// The same two files in memory: the demo model inside the binary, or one just initialised.
    Embedded { config: Cow<'static, [u8]>, tensors: Cow<'static, [u8]> },
}

/// How to hold the model.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The name requests use.
    pub name: String,
    /// How the weights of linear layers are held; `None`: each tensor as the checkpoint stores it
    /// (halves as halves, blocks as blocks where there is a form for them, else in 8 bits). Embedding
    /// and head stay in bf16 beside NF4 and FP4, as in QLoRA, and in 8 bits beside Q4_0 and Q4_K.
    pub format: Option<WeightFormat>,
}
