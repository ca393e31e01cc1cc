//! What the waist calls things, in the words of the kernels.

use super::CpuRows;
use super::rope::Turns;
use crate::backend::{
    Activation, AttentionSpec, HeadsSpec, Norm, NormKind, Places, SequenceRows, WeightFormat,
};
use crate::kernels::attention::Attention;
use crate::kernels::heads::Heads;
use crate::kernels::low_rank::LowRankFormat;
use crate::kernels::mlp::Act;
use crate::kernels::norm::NormRow;

pub(super) fn act(act: Activation) -> Act {
    match act {
        Activation::Silu => Act::Silu,
        Activation::Gelu => Act::Gelu,
        Activation::GeluTanh => Act::GeluTanh,
        Activation::QuickGelu => Act::QuickGelu,
        Activation::Relu => Act::Relu,
    }
}

/// How adapters are held beside weights of this format: as exactly as products with them are formed,
/// exactly beside dense `f32` (`None`).
pub(super) fn low_rank_format(format: WeightFormat) -> Option<LowRankFormat> {
    match format {
        WeightFormat::F32 | WeightFormat::F16 => None,
        WeightFormat::Bf16 | WeightFormat::Nf4 { .. } | WeightFormat::Fp4 { .. } => {
            Some(LowRankFormat::Bf16)
        }
        WeightFormat::Q8_0 | WeightFormat::Q4_0 | WeightFormat::Q4K => Some(LowRankFormat::Int8),
    }
}

pub(super) fn norm(norm: &Norm<CpuRows>) -> NormRow<'_> {
    NormRow {
        centred: norm.kind == NormKind::Layer,
        eps: norm.eps,
        weight: norm.weight.values(),
        bias: norm.bias.as_ref().map(CpuRows::values),
    }
}

pub(super) fn attention(spec: &AttentionSpec) -> Attention<'_> {
    Attention {
        heads: spec.heads,
        kv_heads: spec.kv_heads,
        head_dim: spec.head_dim,
        scale: spec.scale,
        window: spec.window,
        softcap: spec.softcap,
        alibi: spec.alibi.as_deref(),
        causal: spec.causal,
    }
}

/// Bytes of keys and values that cached attention reads, and its operations, windows left aside.
pub(super) fn attention_cost(sequences: &[SequenceRows], spec: &AttentionSpec) -> (usize, usize) {
    let (mut bytes, mut operations) = (0, 0);
    for sequence in sequences {
        let (rows, end) = (sequence.rows.len(), sequence.start + sequence.rows.len());
        bytes += 2 * end * spec.kv_heads * spec.head_dim * size_of::<f32>();
        let met = rows * (sequence.start + end + 1) / 2;
        operations += 4 * met * spec.heads * spec.head_dim;
    }
    (bytes, operations)
}

/// With the angles of all `places`.
pub(super) fn heads<'a>(
    spec: &'a HeadsSpec<CpuRows>,
    turns: &'a mut Turns,
    places: &Places,
) -> Heads<'a> {
    Heads {
        heads: spec.heads,
        kv_heads: spec.kv_heads,
        head_dim: spec.head_dim,
        clip: spec.clip,
        q_norm: spec.q_norm.as_ref().map(norm),
        k_norm: spec.k_norm.as_ref().map(norm),
        rope: (spec.rope.pairs() > 0).then(|| turns.rows(&spec.rope, places)),
    }
}
