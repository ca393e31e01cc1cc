//! What the upper half knows of a resident base model.

use std::sync::Arc;

use super::VisionInfo;

/// How a frozen weight is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WeightFormat {
    F32,
    F16,
    Bf16,
    /// 4-bit normal float, absmax per 64, optionally itself in 8 bits. Dettmers et al. 2023.
    Nf4 {
        double: bool,
    },
    /// 4-bit float, otherwise as NF4.
    Fp4 {
        double: bool,
    },
    /// int8 with one scale per 32, as GGUF's Q8_0.
    Q8_0,
    /// 4 bits with one scale per 32, as GGUF's Q4_0.
    Q4_0,
    /// 4 bits with a scale and an offset per 32, those in 6 bits per 256, as GGUF's Q4_K.
    Q4K,
}

impl WeightFormat {
    /// What options, reports and the API call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Nf4 { double: false } => "nf4",
            Self::Nf4 { double: true } => "nf4-dq",
            Self::Fp4 { double: false } => "fp4",
            Self::Fp4 { double: true } => "fp4-dq",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4K => "q4_k",
        }
    }
}

/// One linear layer an adapter may attach to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleShape {
    /// Its path in the checkpoint, for example `model.layers.0.self_attn.q_proj`.
    pub name: String,
    pub in_features: usize,
    pub out_features: usize,
    /// The decoder layer it belongs to; `None` for the output head and the embedding.
    pub layer: Option<usize>,
}

/// A module an adapter may replace whole: PEFT's `modules_to_save`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaveableModule {
    /// Its path in the checkpoint, for example `lm_head`.
    pub name: String,
    pub tensors: Vec<TensorShape>,
}

/// A matrix `(out, in)`, or a vector of length `in`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorShape {
    /// Its name below the module's: `weight`.
    pub name: String,
    pub shape: (usize, usize),
    pub is_vector: bool,
}

impl SaveableModule {
    /// One matrix `(out, in)`: an embedding, a head.
    pub fn table(name: impl Into<String>, out_features: usize, in_features: usize) -> Self {
        let tensors = vec![TensorShape::matrix("weight", (out_features, in_features))];
        Self { name: name.into(), tensors }
    }

    /// Numbers it holds.
    pub fn parameters(&self) -> usize {
        self.tensors.iter().map(TensorShape::parameters).sum()
    }
}

impl TensorShape {
    pub fn matrix(name: impl Into<String>, shape: (usize, usize)) -> Self {
        Self { name: name.into(), shape, is_vector: false }
    }

    pub fn vector(name: impl Into<String>, width: usize) -> Self {
        Self { name: name.into(), shape: (1, width), is_vector: true }
    }

    /// Numbers it holds.
    pub fn parameters(&self) -> usize {
        self.shape.0 * self.shape.1
    }

    /// Its shape in a file.
    pub fn stored(&self) -> Vec<usize> {
        match self.is_vector {
            true => vec![self.shape.1],
            false => vec![self.shape.0, self.shape.1],
        }
    }
}

/// What one token of a training run costs on a base model, in values of `f32`; of each count, that of
/// the largest layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrainingCost {
    /// Kept between forward and backward of a layer where memory allows it.
    pub kept_values: usize,
    /// At work in a layer's backward beside those.
    pub working_values: usize,
    /// Of those, what one operation rounds to half the size at a time.
    pub rounded_values: usize,
    /// All query heads side by side.
    pub attention_width: usize,
    /// Rows whose logits live at one time.
    pub head_rows: usize,
    /// At work while the tower looks at a picture; 0 for models that see none.
    pub picture_values: usize,
    /// At work while the projector turns a picture's features, forward or backward.
    pub projector_values: usize,
    /// Multiply-adds the tower spends on a picture.
    pub picture_products: usize,
}

/// Facts of a loaded base model, fixed for the life of the process.
#[derive(Clone, Debug)]
pub struct BaseInfo {
    /// The name requests use.
    pub name: Arc<str>,
    /// `model_type` of its `config.json`: `llama`, `gpt2`, …
    pub family: String,
    /// Most tokens a sequence may hold, prompt and answer together: what the model was made for, or
    /// less where the KV cache holds less.
    pub context_length: usize,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_layers: usize,
    pub parameters: u64,
    /// How the weights are held: `f32`, `bf16`, `nf4`, …
    pub dtype: String,
    /// Bytes the weights take in memory.
    pub size_bytes: u64,
    /// Hex SHA-256 over configuration and weights: "trained as served" is checked against it.
    pub fingerprint: String,
    /// Every linear layer an adapter may target, in forward order.
    pub modules: Vec<ModuleShape>,
    /// What an adapter may replace whole: the token embedding, the output head and, last, the
    /// projector of a model that sees.
    pub saveable: Vec<SaveableModule>,
    /// `target_modules` where a request names none.
    pub default_targets: Vec<String>,
    /// Present if it sees pictures.
    pub vision: Option<VisionInfo>,
    pub training: TrainingCost,
}

impl BaseInfo {
    /// What turns a picture's features into what stands in a prompt, of a model that sees.
    pub fn projector(&self) -> Option<&SaveableModule> {
        self.saveable.last().filter(|_| self.vision.is_some())
    }
}
