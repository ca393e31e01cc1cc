//! One decoder block: attention, then MLP, each on a residual.

use std::ops::Range;

use super::gradients::Gradients;
use super::linear::{Adapters, Projection};
use super::norm::{ModelNorm, add_normed, normed_backward};
use crate::backend::{Activation, AttentionSpec, Backend, HeadsSpec, SequenceRows};

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
    pub positions: &'a [u32],
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

/// What a layer's backward needs of its forward, beside the input. It is kept where memory allows
/// and computed again where it does not, to the same bits. Cheap things are never kept: sums on the
/// residual, norms, heads turned from the projection, what lies between the MLP's products.
pub(super) struct Kept<B: Backend> {
    /// As [`Layer::put_by`] leaves them, but for `lse`.
    attention: AttentionParts<B>,
    /// `(t, ff)`, or `(t, 2 ff)` where it is gated.
    up: B::Rows,
}

/// What is left of it when the MLP's backward is done; `proj` is whole again.
pub(super) struct KeptAttention<B: Backend>(AttentionParts<B>);

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

    /// The block's output, and what its backward needs.
    pub fn forward_keeping(
        &self,
        b: &mut B,
        x: &B::Rows,
        pass: &mut Pass<'_, B>,
    ) -> (B::Rows, Kept<B>) {
        let (parts, mut y, up) = self.as_far_as_up(b, x, pass);
        self.add_mlp(b, &up, pass.adapters, &mut y);
        (y, self.keep(b, parts, up))
    }

    /// Values of `f32` per token that [`Layer::forward_keeping`] keeps.
    pub fn kept_values(&self, hidden_size: usize) -> usize {
        let AttentionSpec { heads, head_dim, .. } = self.attention;
        let values = self.qkv.out_features + heads * head_dim + hidden_size + self.up.out_features;
        heads + if self.halves { values.div_ceil(2) } else { values }
    }

    /// What [`Layer::forward_keeping`] keeps, to the same bits.
    pub fn compute_again(&self, b: &mut B, x: &B::Rows, pass: &mut Pass<'_, B>) -> Kept<B> {
        let (parts, x1, up) = self.as_far_as_up(b, x, pass);
        b.recycle(x1);
        self.keep(b, parts, up)
    }

    /// The MLP's backward, from the block's input `x` and what was kept of its forward: `dy (t, d)`,
    /// the gradient of the block's output, becomes that of the attention block's.
    pub fn backward_mlp(
        &self,
        b: &mut B,
        x: &B::Rows,
        kept: Kept<B>,
        dy: B::Rows,
        adapters: Adapters<'_, B>,
        gradients: &mut Gradients<'_, B>,
    ) -> (KeptAttention<B>, B::Rows) {
        let Kept { mut attention, up } = kept;
        attention.proj = self.take_back(b, attention.proj, b.shape(x).1);
        let mut x1 = b.duplicate(x);
        self.add_attention(b, &attention, &mut x1);
        let up = self.take_back(b, up, self.up.out_features);
        let dx1 = self.mlp_backward(b, &x1, up, dy, adapters, gradients);
        b.recycle(x1);
        (KeptAttention(attention), dx1)
    }

    /// The rest of the block's backward, after [`Layer::backward_mlp`]: `dx1` becomes the gradient of
    /// the block's input. Where `need_dx` is false nothing below asks for it, and the products that
    /// only it needs are left out.
    #[allow(clippy::too_many_arguments)]
    pub fn backward_attention(
        &self,
        b: &mut B,
        x: &B::Rows,
        KeptAttention(mut parts): KeptAttention<B>,
        dx1: B::Rows,
        pass: &Pass<'_, B>,
        gradients: &mut Gradients<'_, B>,
        need_dx: bool,
    ) -> B::Rows {
        parts.qkv = self.take_back(b, parts.qkv, self.qkv.out_features);
        let width = self.attention.heads * self.attention.head_dim;
        parts.o = self.take_back(b, parts.o, width);
        self.attention_backward(b, x, parts, dx1, pass, gradients, need_dx)
    }

    /// The block as far as its backward needs it: the attention's parts, the sum after it, and the
    /// raw projection of the MLP.
    fn as_far_as_up(
        &self,
        b: &mut B,
        x: &B::Rows,
        pass: &mut Pass<'_, B>,
    ) -> (AttentionParts<B>, B::Rows, B::Rows) {
        let parts = self.attend(b, x, pass);
        let mut x1 = b.duplicate(x);
        self.add_attention(b, &parts, &mut x1);
        let up = self.mlp_up(b, &x1, pass.adapters);
        (parts, x1, up)
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
        let [q, k, v] = self.turned_heads(b, &qkv, pass.positions);
        let (t, width) = b.shape(&q);
        let mut o = b.room(t, width);
        let lse = self.attention(b, pass, [&q, &k, &v], &mut o);
        [q, k, v].into_iter().for_each(|rows| b.recycle(rows));
        let proj = self.o.forward(b, &o, pass.adapters);
        AttentionParts { qkv, o, lse, proj }
    }

    /// q, k and v of the raw projection.
    fn turned_heads(&self, b: &mut B, qkv: &B::Rows, positions: &[u32]) -> [B::Rows; 3] {
        let [mut q, mut k, mut v] = self.room_for_heads(b, qkv);
        b.heads(qkv, &self.heads, positions, &mut q, &mut k, &mut v);
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

    /// The gradient of the MLP's input `x1`, residual included, from that of its output.
    fn mlp_backward(
        &self,
        b: &mut B,
        x1: &B::Rows,
        up: B::Rows,
        dy: B::Rows,
        adapters: Adapters<'_, B>,
        gradients: &mut Gradients<'_, B>,
    ) -> B::Rows {
        let dup = self.down_backward(b, &up, &dy, adapters, gradients);
        b.recycle(up);
        let normed = self.mlp_norm.forward(b, x1);
        let dnormed = self.up.backward(b, &dup, &normed, adapters, gradients, true);
        let dnormed = dnormed.expect("asked for");
        let mut dx1 = dy;
        self.mlp_norm.backward(b, &dnormed, x1, gradients, &mut dx1);
        [normed, dup, dnormed].into_iter().for_each(|rows| b.recycle(rows));
        dx1
    }

    /// From the gradient of the MLP's output to that of its `up` projection.
    fn down_backward(
        &self,
        b: &mut B,
        up: &B::Rows,
        dy: &B::Rows,
        adapters: Adapters<'_, B>,
        gradients: &mut Gradients<'_, B>,
    ) -> B::Rows {
        let u = self.inner(b, up);
        // Only a norm after the block needs the product itself again.
        let down = self.post_mlp_norm.is_some().then(|| self.down.forward(b, &u, adapters));
        let norm = self.post_mlp_norm.as_ref();
        let ddown = normed_backward(b, norm, dy, down.as_ref().unwrap_or(dy), gradients);
        let outer = ddown.as_ref().unwrap_or(dy);
        let du = self.down.backward(b, outer, &u, adapters, gradients, true);
        let du = du.expect("asked for");
        let (t, width) = b.shape(up);
        let mut dup = b.room(t, width);
        b.mlp_inner_backward(&du, up, self.activation, self.gated, &mut dup);
        [u, du].into_iter().chain(ddown).chain(down).for_each(|rows| b.recycle(rows));
        dup
    }

    /// The gradient of the block's input, residual included, from that of the attention's output.
    #[allow(clippy::too_many_arguments)]
    fn attention_backward(
        &self,
        b: &mut B,
        x: &B::Rows,
        parts: AttentionParts<B>,
        dx1: B::Rows,
        pass: &Pass<'_, B>,
        gradients: &mut Gradients<'_, B>,
        need_dx: bool,
    ) -> B::Rows {
        let norm = self.post_attention_norm.as_ref();
        let dproj = normed_backward(b, norm, &dx1, &parts.proj, gradients);
        let outer = dproj.as_ref().unwrap_or(&dx1);
        let d_o = self.o.backward(b, outer, &parts.o, pass.adapters, gradients, true);
        let d_o = d_o.expect("asked for");
        let dqkv = self.heads_backward(b, &parts, &d_o, pass);
        dproj.into_iter().chain([d_o]).for_each(|rows| b.recycle(rows));
        parts.recycle(b);
        self.qkv_backward(b, x, dqkv, dx1, pass.adapters, gradients, need_dx)
    }

    /// Through attention and the heads to the raw projection.
    fn heads_backward(
        &self,
        b: &mut B,
        parts: &AttentionParts<B>,
        d_o: &B::Rows,
        pass: &Pass<'_, B>,
    ) -> B::Rows {
        let (Keys::Spans(spans), Some(lse)) = (&pass.keys, &parts.lse) else {
            unreachable!("training attends within spans")
        };
        let AttentionParts { qkv, o, .. } = parts;
        let [q, k, v] = self.turned_heads(b, qkv, pass.positions);
        let [mut dq, mut dk, mut dv] = self.room_for_heads(b, qkv);
        let spec = &self.attention;
        b.attention_backward(d_o, &q, &k, &v, o, lse, spans, spec, &mut dq, &mut dk, &mut dv);
        [q, k, v].into_iter().for_each(|rows| b.recycle(rows));
        let (t, width) = b.shape(qkv);
        let mut dqkv = b.room(t, width);
        b.heads_backward(&dq, &dk, &dv, qkv, &self.heads, pass.positions, &mut dqkv);
        [dq, dk, dv].into_iter().for_each(|rows| b.recycle(rows));
        dqkv
    }

    #[allow(clippy::too_many_arguments)]
    fn qkv_backward(
        &self,
        b: &mut B,
        x: &B::Rows,
        dqkv: B::Rows,
        mut dx: B::Rows,
        adapters: Adapters<'_, B>,
        gradients: &mut Gradients<'_, B>,
        need_dx: bool,
    ) -> B::Rows {
        let normed = self.input_norm.forward(b, x);
        let dnormed = self.qkv.backward(b, &dqkv, &normed, adapters, gradients, need_dx);
        if let Some(dnormed) = &dnormed {
            self.input_norm.backward(b, dnormed, x, gradients, &mut dx);
        }
        [normed, dqkv].into_iter().chain(dnormed).for_each(|rows| b.recycle(rows));
        dx
    }
}
