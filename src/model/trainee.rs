//! What a run trains: an adapter, or every weight; or nothing, to evaluate the base alone.

use super::adapter::{Adapter, AdapterRows, SiteWeights};
use super::gradients::{Gradients, SiteGradient};
use super::tensors::TensorKind;
use super::visit::TensorMut;
use super::{Model, ModelError};
use crate::backend::{Backend, HostWeight};
use crate::domain::{AdapterSite, AdapterWeights};

/// Master copies in `f32` of what is trained, each beside its gradient.
pub struct Trainee<B: Backend> {
    kind: Kind<B>,
    /// Of every parameter, in order.
    names: Vec<String>,
    trainable_parameters: usize,
}

enum Kind<B: Backend> {
    Adapter {
        adapter: Adapter<B>,
        /// By site.
        gradients: Vec<Option<SiteGradient<B>>>,
        /// By site.
        modules: Vec<String>,
    },
    Full {
        /// By slot, of the shapes the model holds them in.
        values: Vec<B::Rows>,
        gradients: Vec<B::Rows>,
    },
    Nothing,
}

/// One trained tensor.
pub struct Parameter<'a, B: Backend> {
    /// As in its file: `model.layers.0.self_attn.q_proj.lora_A.weight`, or `model.norm.weight`.
    pub name: &'a str,
    pub value: &'a mut B::Rows,
    /// Sums up over micro-batches until [`Trainee::zero_gradients`].
    pub gradient: &'a mut B::Rows,
}

impl<B: Backend> Trainee<B> {
    /// Trains an adapter, from these weights on.
    ///
    /// # Errors
    /// As [`Model::attach`].
    pub fn adapter(
        b: &mut B,
        model: &Model<B>,
        weights: &AdapterWeights,
    ) -> Result<Self, ModelError> {
        let adapter = model.attach_exact(b, weights)?;
        let gradients = adapter.sites.iter().map(|site| Some(site_gradient(b, site.as_ref()?)));
        let gradients = gradients.collect();
        let modules: Vec<_> = model.info.modules.iter().map(|m| m.name.clone()).collect();
        let trained = modules.iter().zip(&adapter.sites).filter(|(_, site)| site.is_some());
        let names = trained.flat_map(|(module, _)| {
            ["A", "B"].map(|matrix| format!("{module}.lora_{matrix}.weight"))
        });
        let names = names.collect();
        let kind = Kind::Adapter { adapter, gradients, modules };
        Ok(Self { kind, names, trainable_parameters: weights.parameters() })
    }

    /// Trains every weight of `model`, from its present values on. After each optimiser step
    /// [`Trainee::refresh`] brings the new values into the model.
    ///
    /// # Errors
    /// [`ModelError::NotTrainable`] if the model has a weight whose gradient is not formed.
    pub fn full(b: &mut B, model: &mut Model<B>) -> Result<Self, ModelError> {
        if model.layers.iter().any(|layer| layer.heads.q_norm.is_some()) {
            return Err(ModelError::NotTrainable { feature: "a model with norms on q and k" });
        }
        let mut values = Vec::new();
        model.visit_tensors(&mut |tensor| {
            values.push(match tensor {
                TensorMut::Rows(rows) => b.duplicate(rows),
                TensorMut::Weight(weight) => {
                    let (rows, width) = b.weight_shape(weight);
                    let unpacked = b.unpack(weight);
                    b.upload(&unpacked, rows, width)
                }
            });
        });
        let gradients = values.iter().map(|value| zeros_like(b, value)).collect();
        let names = model.specs.iter().map(|spec| spec.name.clone()).collect();
        let trainable_parameters = model.specs.iter().map(|spec| spec.parameters()).sum();
        Ok(Self { kind: Kind::Full { values, gradients }, names, trainable_parameters })
    }

    /// Trains nothing: for the loss of the base alone.
    pub fn nothing() -> Self {
        Self { kind: Kind::Nothing, names: Vec::new(), trainable_parameters: 0 }
    }

    /// Every trained tensor with its gradient, always in the same order.
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = Parameter<'_, B>> {
        let pairs: Vec<(&mut B::Rows, &mut B::Rows)> = match &mut self.kind {
            Kind::Nothing => Vec::new(),
            Kind::Full { values, gradients } => values.iter_mut().zip(gradients).collect(),
            Kind::Adapter { adapter, gradients, .. } => {
                let sites = adapter.sites.iter_mut().zip(gradients);
                let trained =
                    sites.filter_map(|(site, gradient)| site.as_mut().zip(gradient.as_mut()));
                trained.flat_map(|(s, g)| [(&mut s.a, &mut g.a), (&mut s.b, &mut g.b)]).collect()
            }
        };
        let named = self.names.iter().zip(pairs);
        named.map(|(name, (value, gradient))| Parameter { name, value, gradient })
    }

    /// Numbers trained.
    pub fn trainable_parameters(&self) -> usize {
        self.trainable_parameters
    }

    /// Sets every gradient to zero.
    pub fn zero_gradients(&mut self, b: &mut B) {
        for parameter in self.parameters_mut() {
            let fresh = zeros_like(b, parameter.gradient);
            b.recycle(std::mem::replace(parameter.gradient, fresh));
        }
    }

    /// The adapter as it stands, under the name `key`; `None` when it is not one that is trained.
    pub fn adapter_weights(&self, b: &B, key: String, dropout: f32) -> Option<AdapterWeights> {
        let Kind::Adapter { adapter, modules, .. } = &self.kind else { return None };
        let sites = modules.iter().zip(&adapter.sites).filter_map(|(module, site)| {
            let site = site.as_ref()?;
            Some(AdapterSite {
                module: module.clone(),
                r: b.shape(&site.a).0,
                scaling: site.scaling,
                a: b.download(&site.a),
                b: b.download(&site.b),
            })
        });
        Some(AdapterWeights { key, sites: sites.collect(), dropout })
    }

    /// After an optimiser step: packs the new values into the model where every weight is trained.
    /// An adapter is used as it is, so nothing is to do for it.
    pub fn refresh(&self, b: &mut B, model: &mut Model<B>) {
        let Kind::Full { values, .. } = &self.kind else { return };
        let kinds: Vec<TensorKind> = model.specs.iter().map(|spec| spec.kind).collect();
        let mut new = values.iter().zip(kinds);
        model.visit_tensors(&mut |tensor| {
            let (value, kind) = new.next().expect("as many values as the model has tensors");
            let value = b.download(value);
            match (tensor, kind) {
                (TensorMut::Rows(rows), _) => b.overwrite(rows, &value),
                (TensorMut::Weight(weight), TensorKind::Weight(format)) => {
                    let (out_features, in_features) = b.weight_shape(weight);
                    let host = HostWeight { values: &value, out_features, in_features };
                    *weight = b.pack(host, format);
                }
                _ => unreachable!("what is packed is a weight"),
            }
        });
    }

    /// Gives the memory of values and gradients back.
    pub fn release(self, b: &mut B) {
        let rows: Vec<B::Rows> = match self.kind {
            Kind::Nothing => Vec::new(),
            Kind::Full { values, gradients } => values.into_iter().chain(gradients).collect(),
            Kind::Adapter { adapter, gradients, .. } => {
                let sites = adapter.sites.into_iter().flatten().flat_map(|site| [site.a, site.b]);
                let sums = gradients.into_iter().flatten().flat_map(|sum| [sum.a, sum.b]);
                sites.chain(sums).collect()
            }
        };
        rows.into_iter().for_each(|rows| b.recycle(rows));
    }

    /// The adapter the forward pass wears, if one is trained, and where gradients go.
    pub(super) fn parts(&mut self, rows: usize) -> (Option<AdapterRows<'_, B>>, Gradients<'_, B>) {
        match &mut self.kind {
            Kind::Adapter { adapter, gradients, .. } => {
                let worn = AdapterRows { rows: 0..rows, adapter, scale: 1.0 };
                (Some(worn), Gradients::Adapter(gradients))
            }
            Kind::Full { gradients, .. } => (None, Gradients::Full(gradients)),
            Kind::Nothing => (None, Gradients::Adapter(&mut [])),
        }
    }

    /// The lowest layer in which anything is trained; `None` if there is none.
    pub(super) fn first_layer(&self, model: &Model<B>) -> Option<usize> {
        match &self.kind {
            Kind::Full { .. } => Some(0),
            Kind::Nothing => None,
            Kind::Adapter { adapter, .. } => {
                let sites = model.info.modules.iter().zip(&adapter.sites);
                sites
                    .filter(|(_, site)| site.is_some())
                    .filter_map(|(module, _)| module.layer)
                    .min()
            }
        }
    }

    /// Whether the embedding is trained, and so the first layer must form the gradient of its input.
    pub(super) fn trains_embedding(&self) -> bool {
        matches!(self.kind, Kind::Full { .. })
    }
}

fn zeros_like<B: Backend>(b: &mut B, rows: &B::Rows) -> B::Rows {
    let (rows, width) = b.shape(rows);
    b.zeros(rows, width)
}

fn site_gradient<B: Backend>(b: &mut B, site: &SiteWeights<B>) -> SiteGradient<B> {
    SiteGradient { a: zeros_like(b, &site.a), b: zeros_like(b, &site.b) }
}
