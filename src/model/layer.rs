//! One decoder block: attention, then MLP, each on a residual.

mod backward;

use std::ops::Range;

pub(super) use backward::{BackAtQkv, BackAtUp, KeptAttention};

use super::linear::{Adapters, Projection};
use super::norm::{ModelNorm, add_normed};
use crate::backend::{Activation, AttentionSpec, Backend, HeadsSpec, Places, SequenceRows};

/// `x += post(o(attention(heads(qkv(norm x)))))`, then `x += post(down(act(up(norm x))))`.
pub(super) struct Layer<B: Backend> {
    pub index: usize,
    pub input_norm: ModelNorm<B>,
    pub qkv: Projection<B>,
    pub heads: HeadsSpec<B::Rows>,
    pub attention: AttentionSpec,
    pub o: Projection<B>,
    pub post_attention_norm: Option<ModelNorm<B>>,
    pub mlp_norm: ModelNorm<B>,
    pub up: Projection<B>,
    pub activation: Activation,
    pub gated: bool,
    pub down: Projection<B>,
    pub post_mlp_norm: Option<ModelNorm<B>>,
    /// Whether what the backward needs is put by in bf16: where the weights are no finer.
    pub halves: bool,
}

/// What every layer of one pass needs to know of the batch.
pub(super) struct Pass<'a, B: Backend> {
    pub places: &'a Places,
    pub adapters: Adapters<'a, B>,
    pub keys: Keys<'a, B>,
}

/// Where keys and values come from.
pub(super) enum Keys<'a, B: Backend> {
    /// Serving: from the cache, to which this step's are written first.
    Cached { cache: &'a mut B::Cache, sequences: &'a [SequenceRows] },
    /// Training: from the batch itself, each span by itself.
    Spans(&'a [Range<usize>]),
}

/// A block whose attention is done: the sum after it, and what its backward needs if that is kept.
pub(super) struct Begun<B: Backend> {
    parts: Option<AttentionParts<B>>,
    x1: B::Rows,
}

/// A block whose MLP has its raw projection.
pub(super) struct Raised<B: Backend> {
    parts: Option<AttentionParts<B>>,
    x1: B::Rows,
    up: B::Rows,
}

/// What a layer's backward needs of its forward, beside the input. It is kept where memory allows
/// and computed again where it does not, to the same bits. Cheap things are never kept: sums on the
/// residual, norms, heads turned from the projection, what lies between the MLP's products.
pub(super) struct Kept<B: Backend> {
    /// As [`Layer::put_by`] leaves them, but for `lse`.
    attention: AttentionParts<B>,
    /// `(t, ff)`, or `(t, 2 ff)` where it is gated.
    up: B::Rows,
}

/// What the attention block computed from its input.
struct AttentionParts<B: Backend> {
    /// The raw projection `(t, (h + 2 kv) hd)`.
    qkv: B::Rows,
    /// `(t, h · hd)`.
    o: B::Rows,
    /// `(t, h)` when training.
    lse: Option<B::Rows>,
    /// `(t, d)`.
    proj: B::Rows,
}

impl<B: Backend> AttentionParts<B> {
    fn recycle(self, b: &mut B) {
        let all = [self.qkv, self.o, self.proj].into_iter().chain(self.lse);
        all.for_each(|rows| b.recycle(rows));
    }
}

impl<B: Backend> Layer<B> {
    /// The block in place on `x (t, d)`.
    pub fn forward(&self, b: &mut B, x: &mut B::Rows, pass: &mut Pass<'_, B>) {
        let parts = self.attend(b, x, pass);
        self.add_attention(b, &parts, x);
        parts.recycle(b);
        let up = self.mlp_up(b, x, pass.adapters);
        self.add_mlp(b, &up, pass.adapters, x);
        b.recycle(up);
    }

    /// The block's attention on `x (t, d)`; what its backward needs is put aside if `keep`.
    pub fn begin(&self, b: &mut B, x: &B::Rows, pass: &mut Pass<'_, B>, keep: bool) -> Begun<B> {
        let parts = self.attend(b, x, pass);
        let mut x1 = b.duplicate(x);
        self.add_attention(b, &parts, &mut x1);
        if keep {
            return Begun { parts: Some(parts), x1 };
        }
        parts.recycle(b);
        Begun { parts: None, x1 }
    }

    /// The raw projection of the MLP.
    pub fn raise(
        &self,
        b: &mut B,
        Begun { parts, x1 }: Begun<B>,
        adapters: Adapters<'_, B>,
    ) -> Raised<B> {
        let up = self.mlp_up(b, &x1, adapters);
        Raised { parts, x1, up }
    }

    /// The block's output, and what its backward needs if that was put aside.
    pub fn finish(
        &self,
        b: &mut B,
        Raised { parts, x1: mut y, up }: Raised<B>,
        adapters: Adapters<'_, B>,
    ) -> (B::Rows, Option<Kept<B>>) {
        self.add_mlp(b, &up, adapters, &mut y);
        let Some(parts) = parts else {
            b.recycle(up);
            return (y, None);
        };
        (y, Some(self.keep(b, parts, up)))
    }

    /// What [`Layer::finish`] keeps, to the same bits, without the output.
    pub fn keep_raised(&self, b: &mut B, Raised { parts, x1, up }: Raised<B>) -> Kept<B> {
        b.recycle(x1);
        self.keep(b, parts.expect("put aside for the backward"), up)
    }

    /// Values of `f32` per token that [`Layer::finish`] keeps.
    pub fn kept_values(&self, hidden_size: usize) -> usize {
        let AttentionSpec { heads, head_dim, .. } = self.attention;
        let values = self.qkv.out_features + heads * head_dim + hidden_size + self.up.out_features;
        heads + if self.halves { values.div_ceil(2) } else { values }
    }

    fn keep(&self, b: &mut B, parts: AttentionParts<B>, up: B::Rows) -> Kept<B> {
        let AttentionParts { qkv, o, lse, proj } = parts;
        let [qkv, o, proj, up] = [qkv, o, proj, up].map(|rows| self.put_by(b, rows));
        Kept { attention: AttentionParts { qkv, o, lse, proj }, up }
    }

    /// Rows that the backward will ask for.
    fn put_by(&self, b: &mut B, rows: B::Rows) -> B::Rows {
        if !self.halves {
            return rows;
        }
        let halved = b.halve(&rows);
        b.recycle(rows);
        halved
    }

    /// Rows of `width` that were [`Layer::put_by`].
    fn take_back(&self, b: &mut B, rows: B::Rows, width: usize) -> B::Rows {
        if !self.halves {
            return rows;
        }
        let whole = b.widen(&rows, width);
        b.recycle(rows);
        whole
    }

    /// `x += post(proj)`.
    fn add_attention(&self, b: &mut B, parts: &AttentionParts<B>, x: &mut B::Rows) {
        add_normed(b, self.post_attention_norm.as_ref(), &parts.proj, x);
    }

    fn attend(&self, b: &mut B, x: &B::Rows, pass: &mut Pass<'_, B>) -> AttentionParts<B> {
        let normed = self.input_norm.forward(b, x);
        let qkv = self.qkv.forward(b, &normed, pass.adapters);
        b.recycle(normed);
        let [q, k, v] = self.turned_heads(b, &qkv, pass.places);
        let (t, width) = b.shape(&q);
        let mut o = b.room(t, width);
        let lse = self.attention(b, pass, [&q, &k, &v], &mut o);
        [q, k, v].into_iter().for_each(|rows| b.recycle(rows));
        let proj = self.o.forward(b, &o, pass.adapters);
        AttentionParts { qkv, o, lse, proj }
    }

    /// q, k and v of the raw projection.
    fn turned_heads(&self, b: &mut B, qkv: &B::Rows, places: &Places) -> [B::Rows; 3] {
        let [mut q, mut k, mut v] = self.room_for_heads(b, qkv);
        b.heads(qkv, &self.heads, places, &mut q, &mut k, &mut v);
        [q, k, v]
    }

    fn attention(
        &self,
        b: &mut B,
        pass: &mut Pass<'_, B>,
        [q, k, v]: [&B::Rows; 3],
        o: &mut B::Rows,
    ) -> Option<B::Rows> {
        match &mut pass.keys {
            Keys::Cached { cache, sequences } => {
                b.write_cache(cache, self.index, sequences, k, v);
                b.attention_cached(cache, self.index, sequences, &self.attention, q, o);
                None
            }
            Keys::Spans(spans) => {
                let mut lse = b.room(b.shape(q).0, self.attention.heads);
                b.attention(q, k, v, spans, &self.attention, o, &mut lse);
                Some(lse)
            }
        }
    }

    fn room_for_heads(&self, b: &mut B, qkv: &B::Rows) -> [B::Rows; 3] {
        let (t, hd) = (b.shape(qkv).0, self.heads.head_dim);
        [self.heads.heads, self.heads.kv_heads, self.heads.kv_heads].map(|n| b.room(t, n * hd))
    }

    fn mlp_up(&self, b: &mut B, x1: &B::Rows, adapters: Adapters<'_, B>) -> B::Rows {
        let normed = self.mlp_norm.forward(b, x1);
        let up = self.up.forward(b, &normed, adapters);
        b.recycle(normed);
        up
    }

    /// `act(gate) · up`, or `act(up)`.
    fn inner(&self, b: &mut B, up: &B::Rows) -> B::Rows {
        let (t, width) = b.shape(up);
        let mut u = b.room(t, if self.gated { width / 2 } else { width });
        b.mlp_inner(up, self.activation, self.gated, &mut u);
        u
    }

    /// `x += post(down(act(up)))`.
    fn add_mlp(&self, b: &mut B, up: &B::Rows, adapters: Adapters<'_, B>, x: &mut B::Rows) {
        let u = self.inner(b, up);
        let down = self.down.forward(b, &u, adapters);
        add_normed(b, self.post_mlp_norm.as_ref(), &down, x);
        b.recycle(u);
        b.recycle(down);
    }
}
