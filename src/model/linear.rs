//! Linear layers: a frozen base plus, for each row, that row's adapter.

use std::sync::OnceLock;

use super::adapter::AdapterRows;
use super::gradients::Gradients;
use super::micro_batch::LoraDropout;
use crate::backend::{Backend, LowRank, LowRankGradient, LowRankPart, Part, Product};

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
    /// `‖w‖²` of each row of the weight, once DoRA asked for it.
    pub row_squares: OnceLock<Vec<f64>>,
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
    /// Whether this is a pass of training: one adapter on every row, products fused with it.
    /// Serving computes each row as if it were alone, whatever it shares the batch with.
    pub training: bool,
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
        if let Some(parts) = self.parts(adapters) {
            b.project(x, &parts, &mut y);
            return y;
        }
        let products: Vec<_> = self.linears.iter().map(Linear::product).collect();
        b.products(x, &products, &mut y);
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

    /// The gradient of `x` where it is asked for; what is trained here is added to `gradients`.
    pub fn backward(
        &self,
        b: &mut B,
        dy: &B::Rows,
        x: &B::Rows,
        adapters: Adapters<'_, B>,
        gradients: &mut Gradients<'_, B>,
        need_dx: bool,
    ) -> Option<B::Rows> {
        let (t, width) = b.shape(x);
        if let Some(parts) = self.parts(adapters) {
            let mut dx = need_dx.then(|| b.room(t, width));
            let mut sums = self.part_gradients(gradients);
            b.project_backward(dy, x, &parts, &mut sums, dx.as_mut());
            return dx;
        }
        let mut dx = need_dx.then(|| b.zeros(t, width));
        self.add_backward(b, dy, x, adapters, gradients, dx.as_mut());
        dx
    }

    /// The linear layers as the waist fuses them, where one adapter is trained on every row, undimmed
    /// by dropout and unscaled by DoRA.
    fn parts<'a>(&'a self, adapters: Adapters<'a, B>) -> Option<Vec<Part<'a, B>>> {
        let [group] = adapters.rows else { return None };
        let dora = |linear: &Linear<B>| {
            group.adapter.site(linear.site).is_some_and(|site| site.dora.is_some())
        };
        if !adapters.training || adapters.dropout.is_some() || self.linears.iter().any(dora) {
            return None;
        }
        let parts = self.linears.iter().map(|linear| Part {
            weight: &linear.weight,
            bias: linear.bias.as_ref(),
            at: linear.at,
            low_rank: group.adapter.site(linear.site).map(|site| LowRank {
                a: &site.a,
                b: &site.b,
                scaling: group.scale * site.scaling,
            }),
        });
        Some(parts.collect())
    }

    /// Where the gradients of this projection's adapters go, one after the other.
    fn part_gradients<'a>(
        &self,
        gradients: &'a mut Gradients<'_, B>,
    ) -> Vec<Option<LowRankGradient<'a, B::Rows>>> {
        let (first, last) = (self.linears[0].site, self.linears[self.linears.len() - 1].site);
        let sites = gradients.sites(first..last + 1).iter_mut();
        sites
            .map(|sum| sum.as_mut().map(|s| LowRankGradient { a: &mut s.a, b: &mut s.b }))
            .collect()
    }

    /// Adds `dy W` and the adapters' share to `dx` where it is asked for, and what is trained here
    /// to `gradients`, one linear layer after the other.
    pub fn add_backward(
        &self,
        b: &mut B,
        dy: &B::Rows,
        x: &B::Rows,
        adapters: Adapters<'_, B>,
        gradients: &mut Gradients<'_, B>,
        mut dx: Option<&mut B::Rows>,
    ) {
        for linear in &self.linears {
            let unscaled = linear.dora_backward(b, dy, x, adapters, gradients);
            let (dy, at) = unscaled.as_ref().map_or((dy, linear.at), |du| (du, 0));
            if let Some(dx) = dx.as_deref_mut() {
                b.matmul_backward(dy, at, &linear.weight, dx);
            }
            match gradients.with_bias(linear.slot, linear.bias.is_some()) {
                (Some(dw), db) => b.weight_gradient(dy, at, x, dw, db),
                _ => {
                    linear.adapter_backward(b, (dy, at), x, adapters, gradients, dx.as_deref_mut());
                }
            }
            unscaled.into_iter().for_each(|du| b.recycle(du));
        }
    }
}

impl<B: Backend> Linear<B> {
    fn product(&self) -> Product<'_, B::Weight, B::Rows> {
        Product { weight: &self.weight, bias: self.bias.as_ref(), at: self.at }
    }

    fn add_adapters(&self, b: &mut B, x: &B::Rows, adapters: Adapters<'_, B>, y: &mut B::Rows) {
        for group in adapters.rows {
            let Some(site) = group.adapter.site(self.site) else { continue };
            let (rows, scaling) = (group.rows.clone(), group.scale * site.scaling);
            if let Some(dora) = &site.dora {
                let (factor, bias) = (&dora.factor, self.bias.as_ref());
                b.scale_columns(y, rows.clone(), self.at, factor, group.scale, bias);
            }
            match adapters.dropout {
                None => b.add_low_rank(x, rows, &site.a, site.up(), scaling, y, self.at),
                Some(dropout) => {
                    let x = dropout.apply(b, self.site, x);
                    b.add_low_rank(&x, rows, &site.a, site.up(), scaling, y, self.at);
                    b.recycle(x);
                }
            }
        }
    }

    /// Of a DoRA site: adds to the gradient of its magnitude, and gives the gradient `(t, out)` of
    /// the sum `W x + scaling · B A x` before it is scaled, which is formed again for it.
    fn dora_backward(
        &self,
        b: &mut B,
        dy: &B::Rows,
        x: &B::Rows,
        adapters: Adapters<'_, B>,
        gradients: &mut Gradients<'_, B>,
    ) -> Option<B::Rows> {
        let site = adapters.rows.first()?.adapter.site(self.site)?;
        let dora = site.dora.as_ref()?;
        let ((t, _), (_, out)) = (b.shape(x), b.shape(&dora.factor));
        let mut u = b.zeros(t, out);
        b.matmul(x, &self.weight, None, &mut u, 0);
        let thinned = adapters.dropout.map(|dropout| dropout.apply(b, self.site, x));
        let input = thinned.as_ref().unwrap_or(x);
        b.add_low_rank(input, 0..t, &site.a, &site.b, site.scaling, &mut u, 0);
        let mut du = b.zeros(t, out);
        let dmagnitude = gradients.site(self.site).magnitude.as_mut();
        let dmagnitude = dmagnitude.expect("a DoRA site has a gradient for its magnitude");
        b.scale_columns_backward(dy, self.at, &u, &dora.factor, &dora.norm, &mut du, dmagnitude);
        thinned.into_iter().chain([u]).for_each(|rows| b.recycle(rows));
        Some(du)
    }

    /// The trained adapter covers every row; `dy` holds the gradient of this layer from column `at`.
    fn adapter_backward(
        &self,
        b: &mut B,
        (dy, at): (&B::Rows, usize),
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
                b.low_rank_backward(dy, at, x, &site.a, &site.b, scaling, da, db, dx);
            }
            (dropout, dx) => {
                let (t, width) = b.shape(x);
                let thinned = dropout.map(|dropout| dropout.apply(b, self.site, x));
                let x = thinned.as_ref().unwrap_or(x);
                let mut dz = b.zeros(t, width);
                b.low_rank_backward(dy, at, x, &site.a, &site.b, scaling, da, db, &mut dz);
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
