//! Walking all tensors of a model.

use super::Model;
use super::linear::Projection;
use crate::backend::{Backend, Norm};

/// A tensor of the model, to read or replace.
pub(super) enum TensorMut<'a, B: Backend> {
    Weight(&'a mut B::Weight),
    Rows(&'a mut B::Rows),
}

type Visit<'v, B> = &'v mut dyn FnMut(TensorMut<'_, B>);

impl<B: Backend> Model<B> {
    /// Hands every tensor to `visit` in the order of their slots, which is that of `build`.
    pub(super) fn visit_tensors(&mut self, visit: Visit<'_, B>) {
        visit(TensorMut::Weight(&mut self.embedding.table));
        if let Some(positions) = &mut self.embedding.positions {
            visit(TensorMut::Weight(positions));
        }
        for layer in &mut self.layers {
            visit_norm(Some(&mut layer.input_norm.norm), visit);
            visit_projection(&mut layer.qkv, visit);
            visit_norm(layer.heads.q_norm.as_mut(), visit);
            visit_norm(layer.heads.k_norm.as_mut(), visit);
            visit_projection(&mut layer.o, visit);
            visit_norm(layer.post_attention_norm.as_mut().map(|norm| &mut norm.norm), visit);
            visit_norm(Some(&mut layer.mlp_norm.norm), visit);
            visit_projection(&mut layer.up, visit);
            visit_projection(&mut layer.down, visit);
            visit_norm(layer.post_mlp_norm.as_mut().map(|norm| &mut norm.norm), visit);
        }
        visit_norm(Some(&mut self.head.norm.norm), visit);
        if let Some(head) = &mut self.head.projection {
            visit_projection(head, visit);
        }
    }
}

fn visit_norm<B: Backend>(norm: Option<&mut Norm<B::Rows>>, visit: Visit<'_, B>) {
    let Some(norm) = norm else { return };
    visit(TensorMut::Rows(&mut norm.weight));
    if let Some(bias) = &mut norm.bias {
        visit(TensorMut::Rows(bias));
    }
}

fn visit_projection<B: Backend>(projection: &mut Projection<B>, visit: Visit<'_, B>) {
    for linear in &mut projection.linears {
        visit(TensorMut::Weight(&mut linear.weight));
        if let Some(bias) = &mut linear.bias {
            visit(TensorMut::Rows(bias));
        }
    }
}
