//! Linear layers: a frozen base plus, for each row, that row's adapter.

use super::adapter::AdapterRows;
use super::gradients::Gradients;
use super::micro_batch::LoraDropout;
use crate::backend::{Backend, LowRankPart, Part};

/// One linear layer, one of several that may share an input and a wide output.
pub(super) struct Linear<B: Backend> {
    pub weight: B::Weight,
    pub bias: Option<B::Rows>,
    /// Its first column in the projection's output.
    pub at: usize,
    /// Its index in `BaseInfo::modules`.
    pub site: usize,
    /// Its weight's index among the model's tensors; the bias follows.
    pub slot: usize,
}

/// Linear layers of one input, side by side in one output: q, k and v, or gate and up.
pub(super) struct Projection<B: Backend> {
    pub linears: Vec<Linear<B>>,
    pub out_features: usize,
}

/// Which rows wear which adapter, and how its input is thinned.
pub(super) struct Adapters<'a, B: Backend> {
    pub rows: &'a [AdapterRows<'a, B>],
    pub dropout: Option<LoraDropout>,
}

// Not derived, because that would ask `B` to be `Copy`.
impl<B: Backend> Clone for Adapters<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Adapters<'_, B> {}

impl LoraDropout {
    /// The key of one site's mask.
    fn at(&self, site: usize) -> u64 {
        self.key ^ (site as u64 + 1).wrapping_mul(0xd6e8_feb8_6659_fd93)
    }

    /// `x` thinned for `site`.
    fn apply<B: Backend>(&self, b: &mut B, site: usize, x: &B::Rows) -> B::Rows {
        let (t, width) = b.shape(x);
        let mut thinned = b.zeros(t, width);
        b.dropout(x, self.at(site), self.p, &mut thinned);
        thinned
    }
}

impl<B: Backend> Projection<B> {
    /// `y = W x (+ bias) + scaling · B A x`, `x (t, in)` to `y (t, out)`.
    /// Hu et al. 2021, "LoRA", section 4.1.
    pub fn forward(&self, b: &mut B, x: &B::Rows, adapters: Adapters<'_, B>) -> B::Rows {
        let (t, _) = b.shape(x);
        let mut y = b.room(t, self.out_features);
        let parts: Vec<_> = self.linears.iter().map(Linear::part).collect();
        b.project(x, &parts, &mut y);
        self.add_packed_adapters(b, x, adapters, &mut y);
        for linear in &self.linears {
            linear.add_adapters(b, x, adapters, &mut y);
        }
        y
    }

    /// The share of every adapter that is packed for serving, in one pass.
    fn add_packed_adapters(
        &self,
        b: &mut B,
        x: &B::Rows,
        adapters: Adapters<'_, B>,
        y: &mut B::Rows,
    ) {
        let mut parts = Vec::new();
        for group in adapters.rows {
            for linear in &self.linears {
                if let Some(site) = group.adapter.packed(linear.site) {
                    let (rows, scale) = (group.rows.clone(), group.scale * site.scaling);
                    parts.push(LowRankPart { rows, weights: &site.weights, scale, at: linear.at });
                }
            }
        }
        if !parts.is_empty() {
            b.add_low_ranks(x, &parts, y);
        }
    }

    /// Adds `dy W` and the adapters' share to `dx` where it is asked for, and what is trained here
    /// to `gradients`.
    pub fn backward(
        &self,
        b: &mut B,
        dy: &B::Rows,
        x: &B::Rows,
        adapters: Adapters<'_, B>,
        gradients: &mut Gradients<'_, B>,
        mut dx: Option<&mut B::Rows>,
    ) {
        for linear in &self.linears {
            if let Some(dx) = dx.as_deref_mut() {
                b.matmul_backward(dy, linear.at, &linear.weight, dx);
            }
            match gradients.with_bias(linear.slot, linear.bias.is_some()) {
                (Some(dw), db) => b.weight_gradient(dy, linear.at, x, dw, db),
                _ => linear.adapter_backward(b, dy, x, adapters, gradients, dx.as_deref_mut()),
            }
        }
    }
}

impl<B: Backend> Linear<B> {
    fn part(&self) -> Part<'_, B::Weight, B::Rows> {
        Part { weight: &self.weight, bias: self.bias.as_ref(), at: self.at }
    }

    fn add_adapters(&self, b: &mut B, x: &B::Rows, adapters: Adapters<'_, B>, y: &mut B::Rows) {
        for group in adapters.rows {
            let Some(site) = group.adapter.site(self.site) else { continue };
            let (rows, scaling) = (group.rows.clone(), group.scale * site.scaling);
            match adapters.dropout {
                None => b.add_low_rank(x, rows, &site.a, &site.b, scaling, y, self.at),
                Some(dropout) => {
                    let x = dropout.apply(b, self.site, x);
                    b.add_low_rank(&x, rows, &site.a, &site.b, scaling, y, self.at);
                    b.recycle(x);
                }
            }
        }
    }

    /// The trained adapter covers every row.
    fn adapter_backward(
        &self,
        b: &mut B,
        dy: &B::Rows,
        x: &B::Rows,
        adapters: Adapters<'_, B>,
        gradients: &mut Gradients<'_, B>,
        dx: Option<&mut B::Rows>,
    ) {
        let Some(group) = adapters.rows.first() else { return };
        let Some(site) = group.adapter.site(self.site) else { return };
        let gradient = gradients.site(self.site);
        let (da, db) = (&mut gradient.a, &mut gradient.b);
        let scaling = group.scale * site.scaling;
        match (adapters.dropout, dx) {
            (None, Some(dx)) => {
                b.low_rank_backward(dy, self.at, x, &site.a, &site.b, scaling, da, db, dx);
            }
            (dropout, dx) => {
                let (t, width) = b.shape(x);
                let thinned = dropout.map(|dropout| dropout.apply(b, self.site, x));
                let x = thinned.as_ref().unwrap_or(x);
                let mut dz = b.zeros(t, width);
                b.low_rank_backward(dy, self.at, x, &site.a, &site.b, scaling, da, db, &mut dz);
                if let (Some(dropout), Some(dx)) = (dropout, dx) {
                    // The mask is diagonal, and so its own transpose.
                    let thinned = dropout.apply(b, self.site, &dz);
                    b.add(&thinned, dx);
                    b.recycle(thinned);
                }
                thinned.into_iter().chain([dz]).for_each(|rows| b.recycle(rows));
            }
        }
    }
}
