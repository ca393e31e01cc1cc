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

/// What the attention block computed from its input.
struct AttentionParts<B: Backend> {
    /// The raw projection `(t, (h + 2 kv) hd)`.
    qkv: B::Rows,
    q: B::Rows,
    k: B::Rows,
    v: B::Rows,
    /// `(t, h · hd)`.
    o: B::Rows,
    /// `(t, h)` when training.
    lse: Option<B::Rows>,
    /// `(t, d)`.
    proj: B::Rows,
}

impl<B: Backend> AttentionParts<B> {
    fn recycle(self, b: &mut B) {
        let all = [self.qkv, self.q, self.k, self.v, self.o, self.proj];
        all.into_iter().chain(self.lse).for_each(|rows| b.recycle(rows));
    }
}

impl<B: Backend> Layer<B> {
    /// The block in place on `x (t, d)`.
    pub fn forward(&self, b: &mut B, x: &mut B::Rows, pass: &mut Pass<'_, B>) {
        let parts = self.attend(b, x, pass);
        add_normed(b, self.post_attention_norm.as_ref(), &parts.proj, x);
        parts.recycle(b);
        let up = self.mlp_up(b, x, pass.adapters);
        let down = self.mlp_down(b, &up, pass.adapters);
        add_normed(b, self.post_mlp_norm.as_ref(), &down, x);
        b.recycle(up);
        b.recycle(down);
    }

    /// The block again from its input `x`, then backward: `dy (t, d)`, the gradient of its output,
    /// becomes that of its input. Where `need_dx` is false nothing below asks for it, and the
    /// products that only it needs are left out.
    pub fn backward(
        &self,
        b: &mut B,
        x: &B::Rows,
        dy: B::Rows,
        pass: &mut Pass<'_, B>,
        gradients: &mut Gradients<'_, B>,
        need_dx: bool,
    ) -> B::Rows {
        let parts = self.attend(b, x, pass);
        let mut x1 = b.duplicate(x);
        add_normed(b, self.post_attention_norm.as_ref(), &parts.proj, &mut x1);
        let dx1 = self.mlp_backward(b, &x1, dy, pass.adapters, gradients);
        b.recycle(x1);
        self.attention_backward(b, x, parts, dx1, pass, gradients, need_dx)
    }

    fn attend(&self, b: &mut B, x: &B::Rows, pass: &mut Pass<'_, B>) -> AttentionParts<B> {
        let normed = self.input_norm.forward(b, x);
        let qkv = self.qkv.forward(b, &normed, pass.adapters);
        b.recycle(normed);
        let [mut q, mut k, mut v] = self.room_for_heads(b, &qkv);
        b.heads(&qkv, &self.heads, pass.positions, &mut q, &mut k, &mut v);
        let (t, width) = b.shape(&q);
        let mut o = b.room(t, width);
        let lse = self.attention(b, pass, [&q, &k, &v], &mut o);
        let proj = self.o.forward(b, &o, pass.adapters);
        AttentionParts { qkv, q, k, v, o, lse, proj }
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

    fn mlp_down(&self, b: &mut B, up: &B::Rows, adapters: Adapters<'_, B>) -> B::Rows {
        let u = self.inner(b, up);
        let down = self.down.forward(b, &u, adapters);
        b.recycle(u);
        down
    }

    /// The gradient of the MLP's input `x1`, residual included, from that of its output.
    fn mlp_backward(
        &self,
        b: &mut B,
        x1: &B::Rows,
        dy: B::Rows,
        adapters: Adapters<'_, B>,
        gradients: &mut Gradients<'_, B>,
    ) -> B::Rows {
        let normed = self.mlp_norm.forward(b, x1);
        let up = self.up.forward(b, &normed, adapters);
        let dup = self.down_backward(b, &up, &dy, adapters, gradients);
        b.recycle(up);
        let (t, d) = b.shape(x1);
        let mut dnormed = b.zeros(t, d);
        self.up.backward(b, &dup, &normed, adapters, gradients, Some(&mut dnormed));
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
        let (t, width) = b.shape(&u);
        let mut du = b.zeros(t, width);
        self.down.backward(b, &ddown, &u, adapters, gradients, Some(&mut du));
        let mut dup = b.zeros(t, b.shape(up).1);
        b.mlp_inner_backward(&du, up, self.activation, self.gated, &mut dup);
        [u, ddown, du].into_iter().chain(down).for_each(|rows| b.recycle(rows));
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
        let (t, width) = b.shape(&parts.o);
        let mut d_o = b.zeros(t, width);
        self.o.backward(b, &dproj, &parts.o, pass.adapters, gradients, Some(&mut d_o));
        let dqkv = self.heads_backward(b, &parts, &d_o, pass);
        b.recycle(dproj);
        b.recycle(d_o);
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
        let AttentionParts { qkv, q, k, v, o, .. } = parts;
        let [mut dq, mut dk, mut dv] = self.room_for_heads(b, qkv);
        let spec = &self.attention;
        b.attention_backward(d_o, q, k, v, o, lse, spans, spec, &mut dq, &mut dk, &mut dv);
        let mut dqkv = b.zeros(b.shape(qkv).0, b.shape(qkv).1);
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
        let mut dnormed = need_dx.then(|| b.zeros(b.shape(x).0, b.shape(x).1));
        self.qkv.backward(b, &dqkv, &normed, adapters, gradients, dnormed.as_mut());
        if let Some(dnormed) = &dnormed {
            self.input_norm.backward(b, dnormed, x, gradients, &mut dx);
        }
        [normed, dqkv].into_iter().chain(dnormed).for_each(|rows| b.recycle(rows));
        dx
    }
}
