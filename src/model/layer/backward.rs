//! A block's backward: through the MLP's products, then through the attention.

use super::{AttentionParts, Kept, Keys, Layer, Pass};
use crate::backend::Backend;
use crate::model::gradients::Gradients;
use crate::model::linear::Adapters;
use crate::model::norm::normed_backward;

/// A backward that has come to the MLP's raw projection, whose gradient is `dup`.
pub(in crate::model) struct BackAtUp<B: Backend> {
    attention: AttentionParts<B>,
    dup: B::Rows,
    dy: B::Rows,
}

/// What is left of what was kept when the MLP's backward is done; `proj` is whole again.
pub(in crate::model) struct KeptAttention<B: Backend>(AttentionParts<B>);

/// A backward that has come to the raw projection of queries, keys and values, whose gradient is
/// `dqkv`; `dx1` is that of the attention block's output.
pub(in crate::model) struct BackAtQkv<B: Backend> {
    dqkv: B::Rows,
    dx1: B::Rows,
}

impl<B: Backend> Layer<B> {
    /// From `dy (t, d)`, the gradient of the block's output, to that of the MLP's raw projection.
    pub fn backward_down(
        &self,
        b: &mut B,
        Kept { attention, up }: Kept<B>,
        dy: B::Rows,
        adapters: Adapters<'_, B>,
        gradients: &mut Gradients<'_, B>,
    ) -> BackAtUp<B> {
        let up = self.take_back(b, up, self.up.out_features);
        let dup = self.down_backward(b, &up, &dy, adapters, gradients);
        b.recycle(up);
        BackAtUp { attention, dup, dy }
    }

    /// Goes on to the gradient of the attention block's output; `x` is the block's input.
    pub fn backward_up(
        &self,
        b: &mut B,
        x: &B::Rows,
        BackAtUp { mut attention, dup, dy }: BackAtUp<B>,
        adapters: Adapters<'_, B>,
        gradients: &mut Gradients<'_, B>,
    ) -> (KeptAttention<B>, B::Rows) {
        attention.proj = self.take_back(b, attention.proj, b.shape(x).1);
        let mut x1 = b.duplicate(x);
        self.add_attention(b, &attention, &mut x1);
        let normed = self.mlp_norm.forward(b, &x1);
        let dnormed = self.up.backward(b, &dup, &normed, adapters, gradients, true);
        let (dnormed, mut dx1) = (dnormed.expect("asked for"), dy);
        self.mlp_norm.backward(b, &dnormed, &x1, gradients, &mut dx1);
        [normed, dup, dnormed, x1].into_iter().for_each(|rows| b.recycle(rows));
        (KeptAttention(attention), dx1)
    }

    /// Goes on through the attention, from `dx1 (t, d)`, the gradient of the attention block's output.
    pub fn backward_attention(
        &self,
        b: &mut B,
        KeptAttention(mut parts): KeptAttention<B>,
        dx1: B::Rows,
        pass: &Pass<'_, B>,
        gradients: &mut Gradients<'_, B>,
    ) -> BackAtQkv<B> {
        parts.qkv = self.take_back(b, parts.qkv, self.qkv.out_features);
        let width = self.attention.heads * self.attention.head_dim;
        parts.o = self.take_back(b, parts.o, width);
        let norm = self.post_attention_norm.as_ref();
        let dproj = normed_backward(b, norm, &dx1, &parts.proj, gradients);
        let outer = dproj.as_ref().unwrap_or(&dx1);
        let d_o = self.o.backward(b, outer, &parts.o, pass.adapters, gradients, true);
        let d_o = d_o.expect("asked for");
        let dqkv = self.heads_backward(b, &parts, &d_o, pass);
        dproj.into_iter().chain([d_o]).for_each(|rows| b.recycle(rows));
        parts.recycle(b);
        BackAtQkv { dqkv, dx1 }
    }

    /// The end of the block's backward: the gradient of its input `x`, residual included. Where
    /// `need_dx` is false nothing below asks for it, and the products that only it needs are left out.
    pub fn backward_qkv(
        &self,
        b: &mut B,
        x: &B::Rows,
        BackAtQkv { dqkv, dx1: mut dx }: BackAtQkv<B>,
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
        let [q, k, v] = self.turned_heads(b, qkv, pass.places);
        let [mut dq, mut dk, mut dv] = self.room_for_heads(b, qkv);
        let spec = &self.attention;
        b.attention_backward(d_o, &q, &k, &v, o, lse, spans, spec, &mut dq, &mut dk, &mut dv);
        [q, k, v].into_iter().for_each(|rows| b.recycle(rows));
        let (t, width) = b.shape(qkv);
        let mut dqkv = b.room(t, width);
        b.heads_backward(&dq, &dk, &dv, qkv, &self.heads, pass.places, &mut dqkv);
        [dq, dk, dv].into_iter().for_each(|rows| b.recycle(rows));
        dqkv
    }
}
