//! Attention: over cached blocks of keys, within spans of a batch, and its backward. Causal, but
//! for spans that a vision tower reads whole.
//!
//! Forward: Dao et al. 2022, "FlashAttention"; each query walks its keys in blocks of sixteen from
//! the sequence's first token on, with a running maximum and sum; the heads of a group walk
//! together, so that a block is read once for all of them. Every 512 tokens a new segment begins,
//! and segments are merged in order: whether one thread walks them all or each its own (Dao et al.
//! 2023, "Flash-Decoding"), the numbers are the same. The keys of a block lie
//! side by side (transposed), so sixteen scores are one vector and no lane is ever summed but at
//! the end. A row's bits depend on its position and its keys alone: decoding a token, prefilling
//! it in a chunk and recomputing it whole agree to the bit.

mod backward;
mod blocks;
mod forward;
mod meet;
mod state;
mod walk;

use super::lanes::Simd;
use super::math::tanh;

pub use backward::{Saved, backward};
pub use blocks::{Format, Layout};
pub use forward::{LayerBlocks, SpanQueries, attend_cached, attend_spans};

/// How one layer attends; see [`crate::backend::AttentionSpec`].
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub scale: f32,
    pub window: Option<usize>,
    pub softcap: Option<f32>,
    pub alibi: Option<&'a [f32]>,
    /// Whether a row sees no key behind its own; otherwise it sees all of its span.
    pub causal: bool,
}

impl Attention<'_> {
    /// Query heads that share one key-value head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The first position that a token at `position` sees.
    pub(crate) fn first_visible(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    fn slope(&self, head: usize) -> f32 {
        self.alibi.map_or(0.0, |slopes| slopes[head])
    }
}

/// `scale · dot`, soft-capped.
#[inline(always)]
fn scores<S: Simd>(s: S, spec: &Attention<'_>, dots: S::V) -> S::V {
    let scaled = s.mul(dots, s.splat(spec.scale));
    match spec.softcap {
        Some(cap) => s.mul(s.splat(cap), tanh(s, s.div(scaled, s.splat(cap)))),
        None => scaled,
    }
}

/// `position − key` for sixteen keys from `first` on.
#[inline(always)]
fn distances<S: Simd>(s: S, position: usize, first: usize) -> S::V {
    let mut lanes = [0.0; 16];
    for (i, lane) in lanes.iter_mut().enumerate() {
        *lane = i as f32;
    }
    s.sub(s.splat(position as f32 - first as f32), s.load(&lanes))
}

/// `x` where the distance is visible, `hidden` elsewhere.
#[inline(always)]
fn visible<S: Simd>(s: S, spec: &Attention<'_>, distance: S::V, x: S::V, hidden: f32) -> S::V {
    let hidden = s.splat(hidden);
    let x = s.select_lt(distance, s.splat(0.0), hidden, x);
    match spec.window {
        Some(window) => s.select_lt(distance, s.splat(window as f32), x, hidden),
        None => x,
    }
}
