//! What the operations of a backend take besides its buffers: weights on their way in, the shapes
//! of caches and adapters, the choices of one layer.

use std::ops::Range;
use std::sync::Arc;

use super::rope::Rope;
use super::{Absmax, Backend, FourBitBlocks, FourBitCode, HostValues, Moments8, WeightFormat};
use crate::domain::{AdapterWeights, KvFormat};
use crate::kernels::optimiser::Adam;

impl WeightFormat {
    /// Whether a weight `(out, in)` fits this format: NF4 and FP4 want rows of whole blocks of 64,
    /// Q8_0 and Q4_0 of 32, Q4_K of 256.
    pub fn fits(self, _out_features: usize, in_features: usize) -> bool {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => true,
            Self::Nf4 { .. } | Self::Fp4 { .. } => in_features.is_multiple_of(64),
            Self::Q8_0 | Self::Q4_0 => in_features.is_multiple_of(32),
            Self::Q4K => in_features.is_multiple_of(256),
        }
    }

    /// This format, or what holds rows of `in_features` values in its place.
    pub fn or_fallback(self, in_features: usize) -> Self {
        let fits = |format: &Self| format.fits(1, in_features);
        [self, Self::Q8_0].into_iter().find(fits).unwrap_or(Self::Bf16)
    }
}

/// A weight `(out, in)` in blocks, as a file holds them.
#[derive(Clone, Debug)]
pub enum HostBlocks<'a> {
    /// Blocks of GGUF, row after row, in a `format` that has them.
    Gguf { format: WeightFormat, bytes: &'a [u8] },
    /// NF4 or FP4 as bitsandbytes has it, an absmax per so many whole 64s.
    FourBit(FourBitBlocks),
}

impl HostBlocks<'_> {
    /// The format that holds them as they are.
    pub fn format(&self) -> WeightFormat {
        match self {
            Self::Gguf { format, .. } => *format,
            Self::FourBit(blocks) => {
                let double = matches!(blocks.absmax, Absmax::Double { .. });
                match blocks.code {
                    FourBitCode::Nf4 => WeightFormat::Nf4 { double },
                    FourBitCode::Fp4 => WeightFormat::Fp4 { double },
                }
            }
        }
    }
}

/// A weight `(out, in)` on its way to the device, row-major.
#[derive(Clone, Copy, Debug)]
pub struct HostWeight<'a> {
    pub values: HostValues<'a>,
    pub out_features: usize,
    pub in_features: usize,
}

/// What a norm does. Weights of the norm travel beside it as buffers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NormKind {
    /// `x / sqrt(mean(x²) + eps) · w`. Zhang & Sennrich 2019.
    Rms,
    /// `(x − mean) / sqrt(var + eps) · w (+ b)`. Ba et al. 2016.
    Layer,
}

/// A norm over the last axis: kind, epsilon, weight `(1, d)` and bias `(1, d)` if it has one.
#[derive(Debug)]
pub struct Norm<R> {
    pub kind: NormKind,
    pub eps: f32,
    pub weight: R,
    pub bias: Option<R>,
}

/// The non-linearity of the MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    Silu,
    /// Exact, through the error function.
    Gelu,
    /// `x/2 (1 + tanh(√(2/π)(x + 0.044715 x³)))`: "gelu_new", "gelu_pytorch_tanh".
    GeluTanh,
    /// `x · σ(1.702 x)`: CLIP.
    QuickGelu,
    /// `max(x, 0)`, whose slope at 0 is 0.
    Relu,
}

/// How one layer attends.
#[derive(Clone, Debug)]
pub struct AttentionSpec {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Multiplies `q · k`.
    pub scale: f32,
    /// A token sees itself and the `window − 1` tokens before it.
    pub window: Option<usize>,
    /// `cap · tanh(score / cap)`, Gemma 2.
    pub softcap: Option<f32>,
    /// ALiBi slope per query head: `−slope · distance` is added to the scaled score.
    pub alibi: Option<Vec<f32>>,
    /// A token sees itself and those before it; otherwise all of its span, in
    /// [`Backend::attention`] alone, without window or ALiBi and without a backward.
    pub causal: bool,
}

/// How a raw projection `(t, (h + 2 kv) hd)` becomes q, k and v: clip, split, q/k norm, RoPE.
#[derive(Debug)]
pub struct HeadsSpec<R> {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// MPT's `clip_qkv`.
    pub clip: Option<f32>,
    /// Norm of q and of k before RoPE: of each head where the weight is `(1, hd)`, of all heads
    /// together where it is `(1, h · hd)` (MPT's `qk_ln`).
    pub q_norm: Option<Norm<R>>,
    pub k_norm: Option<Norm<R>>,
    pub rope: Rope,
}

/// How many tokens one KV block holds. Attention walks keys in blocks of this size from the first
/// token on, whatever the batch, so that cached, chunked and recomputed attention agree to the bit.
pub const BLOCK_TOKENS: usize = 16;

/// What a KV cache is to hold.
#[derive(Clone, Copy, Debug)]
pub struct CacheShape {
    pub layers: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub blocks: usize,
    /// The numbers are rounded as they are written, so that whoever reads them, in whatever step,
    /// reads the same.
    pub format: KvFormat,
}

/// One sequence's share of a step: rows `rows` of the batch are its tokens at positions
/// `start .. start + rows.len()`, and `blocks` hold its keys and values from position 0 on.
#[derive(Clone, Debug)]
pub struct SequenceRows {
    pub rows: Range<usize>,
    pub start: usize,
    /// Its first tokens that are read as one, over however many steps; see [`Places`].
    pub read: usize,
    pub blocks: Vec<u32>,
}

/// One matrix of an adapter that is in memory already, and stays there while this lives.
#[derive(Clone, Debug)]
pub struct SharedMatrix {
    pub adapter: Arc<AdapterWeights>,
    /// Into its sites.
    pub site: usize,
    /// `A (r, in)`, or else `B (out, r)`.
    pub is_a: bool,
}

impl SharedMatrix {
    /// Its numbers, row-major.
    pub fn values(&self) -> &[f32] {
        let site = &self.adapter.sites[self.site];
        if self.is_a { &site.a } else { &site.b }
    }
}

/// What one chunk of cross-entropy found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossSum {
    /// Σ −log p(label) over labelled rows.
    pub loss: f64,
    /// Labelled rows.
    pub tokens: usize,
    /// Labelled rows whose likeliest token is the label.
    pub correct: usize,
}

/// AdamW's numbers for one step (Loshchilov & Hutter 2019); `step` counts from 1.
#[derive(Clone, Copy, Debug)]
pub struct AdamStep {
    pub step: usize,
    pub learning_rate: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
}

impl AdamStep {
    /// The factors of the step, computed in `f64` and applied in `f32`.
    pub(super) fn factors(&self) -> Adam {
        let power = i32::try_from(self.step).unwrap_or(i32::MAX);
        Adam {
            decay: (1.0 - self.learning_rate * self.weight_decay) as f32,
            beta2: self.beta2 as f32,
            rest1: (1.0 - self.beta1) as f32,
            rest2: (1.0 - self.beta2) as f32,
            rate: (self.learning_rate / (1.0 - self.beta1.powi(power))) as f32,
            correction: (1.0 - self.beta2.powi(power)).sqrt() as f32,
            epsilon: self.epsilon as f32,
        }
    }
}

/// AdamW's moments of one tensor in the host's memory: where they are quantised, or lie in a file
/// and visit memory only for a step.
#[derive(Debug)]
pub enum HostMoments<'a> {
    F32 { first: &'a mut [f32], second: &'a mut [f32] },
    Bits8(Moments8<'a>),
}

/// One linear layer of a projection in training: its frozen weight, and the adapter every row wears.
pub struct Part<'a, B: Backend> {
    pub weight: &'a B::Weight,
    pub bias: Option<&'a B::Rows>,
    /// Its first column in the projection's output.
    pub at: usize,
    pub low_rank: Option<LowRank<'a, B::Rows>>,
}

/// `scaling · B A`, `A (r, in)`, `B (out, r)`.
pub struct LowRank<'a, R> {
    pub a: &'a R,
    pub b: &'a R,
    pub scaling: f32,
}

/// Where the gradients of `A` and `B` are added.
pub struct LowRankGradient<'a, R> {
    pub a: &'a mut R,
    pub b: &'a mut R,
}

/// One of several weights that share an input; its outputs are the product's columns from `at` on.
#[derive(Debug)]
pub struct Product<'a, W, R> {
    pub weight: &'a W,
    /// `(1, out)`.
    pub bias: Option<&'a R>,
    pub at: usize,
}

/// The shape of an adapter at one linear layer.
#[derive(Clone, Copy, Debug)]
pub struct LowRankShape {
    pub rank: usize,
    pub in_features: usize,
    pub out_features: usize,
}

/// One adapter matrix pair at one place of a product: `y[rows, at..] += scale · (x Aᵀ) Bᵀ`.
#[derive(Debug)]
pub struct LowRankPart<'a, L> {
    pub rows: Range<usize>,
    pub weights: &'a L,
    pub scale: f32,
    pub at: usize,
}
