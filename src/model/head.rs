//! The output head: final norm, logits, and their backward.

use super::decoder::Embedding;
use super::gradients::Gradients;
use super::linear::{Adapters, Projection};
use super::norm::ModelNorm;
use super::saved::{Part, replace_rows};
use crate::backend::{Backend, LossSum};

pub(super) struct Head<B: Backend> {
    pub norm: ModelNorm<B>,
    /// `None`: the embedding is the head.
    pub projection: Option<Projection<B>>,
    pub scale: f32,
    pub softcap: Option<f32>,
    pub vocab_size: usize,
}

/// Rows `x (n, d)` with their logits `z (n, v)`.
pub(super) struct Scored<B: Backend> {
    x: B::Rows,
    normed: B::Rows,
    z: B::Rows,
}

impl<B: Backend> Head<B> {
    /// Logits `(n, v)` of `x (n, d)`: `softcap(scale · W norm(x))`.
    pub fn logits(
        &self,
        b: &mut B,
        x: &B::Rows,
        embedding: &Embedding<B>,
        adapters: Adapters<'_, B>,
    ) -> B::Rows {
        let normed = self.norm.forward(b, x);
        let logits = self.logits_of_normed(b, &normed, embedding, adapters);
        b.recycle(normed);
        logits
    }

    fn logits_of_normed(
        &self,
        b: &mut B,
        normed: &B::Rows,
        embedding: &Embedding<B>,
        adapters: Adapters<'_, B>,
    ) -> B::Rows {
        let mut z = match (self.replaced_everywhere(b, normed, adapters), &self.projection) {
            (Some(z), _) => z,
            (None, Some(projection)) => projection.forward(b, normed, adapters),
            (None, None) => self.product(b, normed, &embedding.table),
        };
        self.replace(b, normed, adapters, &mut z);
        if self.is_scaled() {
            b.scale_logits(&mut z, self.scale, self.softcap);
        }
        z
    }

    fn product(&self, b: &mut B, normed: &B::Rows, weight: &B::Weight) -> B::Rows {
        let mut z = b.zeros(b.shape(normed).0, self.vocab_size);
        b.matmul(normed, weight, None, &mut z, 0);
        z
    }

    /// The product with the head of the one adapter that all rows wear, if it brings one.
    fn replaced_everywhere(
        &self,
        b: &mut B,
        normed: &B::Rows,
        adapters: Adapters<'_, B>,
    ) -> Option<B::Rows> {
        let [group] = adapters.rows else { return None };
        let weight = group.adapter.saved(Part::Head)?;
        (group.rows.len() == b.shape(normed).0).then(|| self.product(b, normed, weight))
    }

    /// Puts the logits of rows whose adapter brings its own head in the place of the others.
    fn replace(&self, b: &mut B, normed: &B::Rows, adapters: Adapters<'_, B>, z: &mut B::Rows) {
        let n = b.shape(normed).0;
        for group in adapters.rows.iter().filter(|group| group.rows.len() < n) {
            let Some(weight) = group.adapter.saved(Part::Head) else { continue };
            let rows: Vec<usize> = group.rows.clone().collect();
            let mut own = b.zeros(rows.len(), b.shape(normed).1);
            b.gather(normed, &rows, &mut own);
            let new = self.product(b, &own, weight);
            replace_rows(b, z, group.rows.clone(), new);
            b.recycle(own);
        }
    }

    /// The loss of `x (n, d)` against `labels`, and no gradient.
    pub fn loss(
        &self,
        b: &mut B,
        x: &B::Rows,
        labels: &[i32],
        embedding: &Embedding<B>,
        adapters: Adapters<'_, B>,
    ) -> LossSum {
        let mut z = self.logits(b, x, embedding, adapters);
        let sum = b.cross_entropy(&mut z, labels, 0.0);
        b.recycle(z);
        sum
    }

    /// The logits of `x (n, d)`, and what the backward needs of their making.
    pub fn score(
        &self,
        b: &mut B,
        x: B::Rows,
        embedding: &Embedding<B>,
        adapters: Adapters<'_, B>,
    ) -> Scored<B> {
        let normed = self.norm.forward(b, &x);
        let z = self.logits_of_normed(b, &normed, embedding, adapters);
        Scored { x, normed, z }
    }

    /// The loss of scored rows against `labels`; in place of the logits the gradient of `weight` times
    /// it.
    pub fn loss_of(
        &self,
        b: &mut B,
        Scored { x, normed, mut z }: Scored<B>,
        labels: &[i32],
        weight: f32,
    ) -> (LossSum, Scored<B>) {
        // The cap's derivative needs its output, which the loss overwrites.
        let scaled = self.is_scaled().then(|| b.duplicate(&z));
        let sum = b.cross_entropy(&mut z, labels, weight);
        if let Some(scaled) = scaled {
            b.scale_logits_backward(&scaled, self.scale, self.softcap, &mut z);
            b.recycle(scaled);
        }
        (sum, Scored { x, normed, z })
    }

    /// The gradient `(n, d)` of the rows from that of their logits, which `z` holds.
    pub fn backward(
        &self,
        b: &mut B,
        Scored { x, normed, z }: Scored<B>,
        embedding: &Embedding<B>,
        adapters: Adapters<'_, B>,
        gradients: &mut Gradients<'_, B>,
    ) -> B::Rows {
        let (n, d) = b.shape(&x);
        let (mut dnormed, mut dx) = (b.zeros(n, d), b.zeros(n, d));
        self.projection_backward(b, &z, &normed, embedding, adapters, gradients, &mut dnormed);
        self.norm.backward(b, &dnormed, &x, gradients, &mut dx);
        [x, normed, z, dnormed].into_iter().for_each(|rows| b.recycle(rows));
        dx
    }

    #[allow(clippy::too_many_arguments)]
    fn projection_backward(
        &self,
        b: &mut B,
        dz: &B::Rows,
        normed: &B::Rows,
        embedding: &Embedding<B>,
        adapters: Adapters<'_, B>,
        gradients: &mut Gradients<'_, B>,
        dnormed: &mut B::Rows,
    ) {
        if let Some(dhead) = gradients.saved(Part::Head) {
            b.weight_gradient(dz, 0, normed, dhead, None);
        }
        let saved = adapters.rows.first().and_then(|group| group.adapter.saved(Part::Head));
        if let Some(weight) = saved {
            b.matmul_backward(dz, 0, weight, dnormed);
            return;
        }
        match &self.projection {
            Some(head) => head.add_backward(b, dz, normed, adapters, gradients, Some(dnormed)),
            None => {
                b.matmul_backward(dz, 0, &embedding.table, dnormed);
                if let Some(dtable) = gradients.tensor(Embedding::<B>::TABLE_SLOT) {
                    b.weight_gradient(dz, 0, normed, dtable, None);
                }
            }
        }
    }

    fn is_scaled(&self) -> bool {
        self.scale != 1.0 || self.softcap.is_some()
    }
}
