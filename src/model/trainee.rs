//! What a run trains: an adapter, or every weight; or nothing, to evaluate the base alone.

use super::adapter::{Adapter, AdapterRows, SiteWeights};
use super::gradients::{Gradients, SiteGradient};
use super::saved::Part;
use super::tensors::TensorKind;
use super::vision::PictureRows;
use super::visit::TensorMut;
use super::{Model, ModelError};
use crate::backend::{Backend, HostWeight};
use crate::domain::{AdapterSite, AdapterWeights, SaveableModule, SavedModule};

/// Master copies in `f32` of what is trained, each beside its gradient.
pub struct Trainee<B: Backend> {
    kind: Kind<B>,
    /// Of every parameter, in order.
    names: Vec<String>,
    trainable_parameters: usize,
    /// Values may have changed since what follows from them was computed.
    stale: bool,
}

enum Kind<B: Backend> {
    Adapter {
        adapter: Adapter<B>,
        /// By site.
        gradients: Vec<Option<SiteGradient<B>>>,
        /// By site.
        modules: Vec<String>,
        saved: Vec<SavedPart<B>>,
    },
    Full {
        /// By slot, of the shapes the model holds them in.
        values: Vec<B::Rows>,
        gradients: Vec<B::Rows>,
    },
    Nothing,
}

/// A module that is trained whole: of each of its tensors the master copy, and the gradient.
struct SavedPart<B: Backend> {
    part: Part,
    module: SaveableModule,
    values: Vec<B::Rows>,
    gradients: Vec<B::Rows>,
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
        let saved = saved_parts(b, model, &weights.saved)?;
        let names = adapter_names(&modules, &adapter, &saved);
        let kind = Kind::Adapter { adapter, gradients, modules, saved };
        Ok(Self { kind, names, trainable_parameters: weights.parameters(), stale: false })
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
        let kind = Kind::Full { values, gradients };
        Ok(Self { kind, names, trainable_parameters, stale: false })
    }

    /// Trains nothing: for the loss of the base alone.
    pub fn nothing() -> Self {
        Self { kind: Kind::Nothing, names: Vec::new(), trainable_parameters: 0, stale: false }
    }

    /// Every trained tensor with its gradient, always in the same order.
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = Parameter<'_, B>> {
        self.stale = true;
        let pairs: Vec<(&mut B::Rows, &mut B::Rows)> = match &mut self.kind {
            Kind::Nothing => Vec::new(),
            Kind::Full { values, gradients } => values.iter_mut().zip(gradients).collect(),
            Kind::Adapter { adapter, gradients, saved, .. } => {
                let sites = adapter.sites.iter_mut().zip(gradients);
                let trained =
                    sites.filter_map(|(site, gradient)| site.as_mut().zip(gradient.as_mut()));
                let low_rank = trained.flat_map(|(s, g)| {
                    let magnitude = s.dora.as_mut().map(|dora| &mut dora.magnitude);
                    let pairs = [(&mut s.a, &mut g.a), (&mut s.b, &mut g.b)];
                    pairs.into_iter().chain(magnitude.zip(g.magnitude.as_mut()))
                });
                let whole = saved
                    .iter_mut()
                    .flat_map(|part| part.values.iter_mut().zip(&mut part.gradients));
                low_rank.chain(whole).collect()
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

    /// Logits `(t, v)` of one sequence through the training graph: no cache, the master copies.
    pub fn logits(
        &mut self,
        b: &mut B,
        model: &Model<B>,
        ids: &[u32],
        pictures: &[PictureRows<'_>],
    ) -> Vec<f32> {
        self.renew(b, model);
        let (worn, _) = self.parts(ids.len());
        let all: Vec<usize> = (0..ids.len()).collect();
        let whole = 0..ids.len();
        let span = std::slice::from_ref(&whole);
        let z = model.forward_seeing(b, ids, span, worn.as_slice(), pictures, &all);
        let logits = b.download(&z);
        b.recycle(z);
        logits
    }

    /// Brings what follows from the trained values up to date: DoRA's norms, and the packed copies
    /// of modules that are trained whole.
    pub(super) fn renew(&mut self, b: &mut B, model: &Model<B>) {
        let Kind::Adapter { adapter, saved, .. } = &mut self.kind else { return };
        if !std::mem::take(&mut self.stale) {
            return;
        }
        for (index, site) in adapter.sites.iter_mut().enumerate() {
            site.iter_mut().for_each(|site| model.renew(b, index, site));
        }
        for SavedPart { part, module, values, .. } in saved {
            let values: Vec<Vec<f32>> = values.iter().map(|value| b.download(value)).collect();
            model.renew_saved(b, *part, module, &values, adapter);
        }
    }

    /// The adapter as it stands, under the name `key`; `None` when it is not one that is trained.
    pub fn adapter_weights(&self, b: &B, key: String, dropout: f32) -> Option<AdapterWeights> {
        let Kind::Adapter { adapter, modules, saved, .. } = &self.kind else { return None };
        let sites = modules.iter().zip(&adapter.sites).filter_map(|(module, site)| {
            let site = site.as_ref()?;
            Some(AdapterSite {
                module: module.clone(),
                r: b.shape(&site.a).0,
                scaling: site.scaling,
                a: b.download(&site.a),
                b: b.download(&site.b),
                magnitude: site.dora.as_ref().map(|dora| b.download(&dora.magnitude)),
            })
        });
        let saved = saved.iter().map(|part| SavedModule {
            module: part.module.name.clone(),
            values: part.values.iter().map(|value| b.download(value)).collect(),
        });
        Some(AdapterWeights { key, sites: sites.collect(), saved: saved.collect(), dropout })
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
                    let host = HostWeight { values: (&value).into(), out_features, in_features };
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
            Kind::Adapter { adapter, gradients, saved, .. } => {
                let sites = adapter.sites.into_iter().flatten().flat_map(SiteWeights::into_rows);
                let sums = gradients.into_iter().flatten();
                let sums = sums.flat_map(|sum| [sum.a, sum.b].into_iter().chain(sum.magnitude));
                let whole = saved.into_iter().flat_map(|part| [part.values, part.gradients]);
                let projector = adapter.projector;
                let rows = sites.chain(sums).chain(whole.flatten()).collect();
                projector.into_iter().for_each(|projector| projector.release(b));
                rows
            }
        };
        rows.into_iter().for_each(|rows| b.recycle(rows));
    }

    /// The adapter the forward pass wears, if one is trained, and where gradients go.
    pub(super) fn parts(&mut self, rows: usize) -> (Option<AdapterRows<'_, B>>, Gradients<'_, B>) {
        match &mut self.kind {
            Kind::Adapter { adapter, gradients, saved, .. } => {
                let worn = AdapterRows { rows: 0..rows, adapter, scale: 1.0 };
                let mut whole = [const { Vec::new() }; 3];
                for part in saved {
                    whole[part.part as usize] = part.gradients.iter_mut().collect();
                }
                (Some(worn), Gradients::Adapter { sites: gradients, saved: whole })
            }
            Kind::Full { gradients, .. } => (None, Gradients::Full(gradients)),
            Kind::Nothing => {
                (None, Gradients::Adapter { sites: &mut [], saved: [const { Vec::new() }; 3] })
            }
        }
    }

    /// The lowest layer in which anything is trained; `None` if there is none.
    pub(super) fn first_layer(&self, model: &Model<B>) -> Option<usize> {
        match &self.kind {
            Kind::Full { .. } => Some(0),
            Kind::Nothing => None,
            Kind::Adapter { .. } if self.trains_input() => Some(0),
            Kind::Adapter { adapter, .. } => {
                let sites = model.info.modules.iter().zip(&adapter.sites);
                sites
                    .filter(|(_, site)| site.is_some())
                    .filter_map(|(module, _)| module.layer)
                    .min()
            }
        }
    }

    /// Whether embedding or projector are trained, and so the first layer must form the gradient of
    /// its input.
    pub(super) fn trains_input(&self) -> bool {
        match &self.kind {
            Kind::Full { .. } => true,
            Kind::Nothing => false,
            Kind::Adapter { saved, .. } => saved.iter().any(|part| part.part != Part::Head),
        }
    }
}

fn zeros_like<B: Backend>(b: &mut B, rows: &B::Rows) -> B::Rows {
    let (rows, width) = b.shape(rows);
    b.zeros(rows, width)
}

fn site_gradient<B: Backend>(b: &mut B, site: &SiteWeights<B>) -> SiteGradient<B> {
    let magnitude = site.dora.as_ref().map(|dora| zeros_like(b, &dora.magnitude));
    SiteGradient { a: zeros_like(b, &site.a), b: zeros_like(b, &site.b), magnitude }
}

fn saved_parts<B: Backend>(
    b: &mut B,
    model: &Model<B>,
    saved: &[SavedModule],
) -> Result<Vec<SavedPart<B>>, ModelError> {
    let part = |saved: &SavedModule| {
        let (part, module) = model.saveable(&saved.module)?;
        let shapes = module.tensors.iter().map(|tensor| tensor.shape);
        let shaped = saved.values.iter().zip(shapes.clone());
        let values = shaped.map(|(values, (rows, width))| b.upload(values, rows, width)).collect();
        let gradients = shapes.map(|(rows, width)| b.zeros(rows, width)).collect();
        Ok(SavedPart { part, module: module.clone(), values, gradients })
    };
    saved.iter().map(part).collect()
}

/// The names of an adapter's tensors, in the order of [`Trainee::parameters_mut`].
fn adapter_names<B: Backend>(
    modules: &[String],
    adapter: &Adapter<B>,
    saved: &[SavedPart<B>],
) -> Vec<String> {
    let sites = modules.iter().zip(&adapter.sites);
    let low_rank = sites.filter_map(|(module, site)| Some((module, site.as_ref()?))).flat_map(
        |(module, site)| {
            let matrices = ["A", "B"].map(|matrix| format!("{module}.lora_{matrix}.weight"));
            let magnitude = site.dora.as_ref().map(|_| format!("{module}.lora_magnitude_vector"));
            matrices.into_iter().chain(magnitude)
        },
    );
    let whole = saved.iter().flat_map(|SavedPart { module, .. }| {
        module.tensors.iter().map(move |tensor| format!("{}.{}", module.name, tensor.name))
    });
    low_rank.chain(whole).collect()
}
