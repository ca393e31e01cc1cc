//! An adapter on the device: `ΔW = scaling · B A` at some of a model's linear layers.

use std::ops::Range;
use std::sync::Arc;

use super::dora::Dora;
use super::projector::Projector;
use super::saved::Part;
use super::{Model, ModelError};
use crate::backend::{Backend, LowRankShape, SharedMatrix};
use crate::domain::{AdapterSite, AdapterWeights, ModuleShape, WeightFormat};

/// One resident adapter, checked against the model it was attached to.
/// Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.
pub struct Adapter<B: Backend> {
    /// By site, that is by index into `BaseInfo::modules`.
    pub(super) sites: Vec<Option<SiteWeights<B>>>,
    /// Embedding and head where they are replaced whole, by [`Part`].
    pub(super) saved: [Option<B::Weight>; 2],
    /// The projector where it is replaced whole.
    pub(super) projector: Option<Projector<B>>,
    /// The same, of sites that were packed for serving instead.
    packed: Vec<Option<PackedSite<B>>>,
    size_bytes: usize,
}

/// One site as the device serves it.
pub(super) struct PackedSite<B: Backend> {
    pub weights: B::LowRank,
    pub scaling: f32,
}

/// `A (r, in)` and `B (out, r)` at one site.
pub(super) struct SiteWeights<B: Backend> {
    pub a: B::Rows,
    pub b: B::Rows,
    pub scaling: f32,
    pub dora: Option<Dora<B>>,
}

impl<B: Backend> SiteWeights<B> {
    /// The `B` that is added to a product: with DoRA its rows are scaled as the product's columns.
    pub fn up(&self) -> &B::Rows {
        self.dora.as_ref().map_or(&self.b, |dora| &dora.scaled_b)
    }

    /// Its buffers.
    pub fn into_rows(self) -> impl Iterator<Item = B::Rows> {
        [self.a, self.b].into_iter().chain(self.dora.into_iter().flat_map(Dora::into_rows))
    }
}

/// Rows of a batch that wear an adapter.
pub struct AdapterRows<'a, B: Backend> {
    pub rows: Range<usize>,
    pub adapter: &'a Adapter<B>,
    /// Multiplies what the adapter changes; 1 unless a request says otherwise. Tables that are
    /// replaced whole are not weighed.
    pub scale: f32,
}

impl<B: Backend> Adapter<B> {
    fn empty(modules: usize) -> Self {
        Self {
            sites: (0..modules).map(|_| None).collect(),
            packed: (0..modules).map(|_| None).collect(),
            saved: [None, None],
            projector: None,
            size_bytes: 0,
        }
    }

    /// Bytes its matrices take on the device.
    pub fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    pub(super) fn site(&self, site: usize) -> Option<&SiteWeights<B>> {
        self.sites.get(site)?.as_ref()
    }

    pub(super) fn saved(&self, part: Part) -> Option<&B::Weight> {
        self.saved.get(part as usize)?.as_ref()
    }

    pub(super) fn packed(&self, site: usize) -> Option<&PackedSite<B>> {
        self.packed.get(site)?.as_ref()
    }
}

impl<B: Backend> Model<B> {
    /// Brings an adapter to the device to be served, packed where the device gains by it.
    ///
    /// # Errors
    /// If it names a module this model does not have, or a matrix of the wrong size, or holds a
    /// number that is not finite.
    pub fn attach(&self, b: &mut B, weights: &AdapterWeights) -> Result<Adapter<B>, ModelError> {
        weights.sites.iter().try_for_each(check_numbers)?;
        self.attach_by(b, weights, Some(self.beside), uploaded(weights))
    }

    /// The same for an adapter whose numbers were checked when it was read: what is not packed is
    /// not touched here, and on a CPU not copied.
    ///
    /// # Errors
    /// If it names a module this model does not have, or a matrix of the wrong size.
    pub fn attach_shared(
        &self,
        b: &mut B,
        weights: &Arc<AdapterWeights>,
    ) -> Result<Adapter<B>, ModelError> {
        self.attach_by(b, weights, Some(self.beside), |b, site, module| {
            let r = weights.sites[site].r;
            let matrix = |is_a| SharedMatrix { adapter: Arc::clone(weights), site, is_a };
            [
                b.share(matrix(true), r, module.in_features),
                b.share(matrix(false), module.out_features, r),
            ]
        })
    }

    /// Brings an adapter to the device in `f32`, to be trained.
    ///
    /// # Errors
    /// As [`Model::attach`].
    pub(super) fn attach_exact(
        &self,
        b: &mut B,
        weights: &AdapterWeights,
    ) -> Result<Adapter<B>, ModelError> {
        weights.sites.iter().try_for_each(check_numbers)?;
        self.attach_by(b, weights, None, uploaded(weights))
    }

    /// Packed beside weights of a format where that gains, else with `[A, B]` as `bring` has them.
    fn attach_by(
        &self,
        b: &mut B,
        weights: &AdapterWeights,
        packed_beside: Option<WeightFormat>,
        mut bring: impl FnMut(&mut B, usize, &ModuleShape) -> [B::Rows; 2],
    ) -> Result<Adapter<B>, ModelError> {
        if weights.sites.is_empty() && weights.saved.is_empty() {
            return Err(ModelError::EmptyAdapter);
        }
        let mut adapter = Adapter::empty(self.info.modules.len());
        for (number, site) in weights.sites.iter().enumerate() {
            let (index, module) = self.module(&site.module)?;
            check_site(site, module)?;
            if adapter.site(index).is_some() || adapter.packed(index).is_some() {
                return Err(ModelError::RepeatedModule { module: site.module.clone() });
            }
            if let Some(packed) = packed_beside.and_then(|format| pack(b, site, module, format)) {
                adapter.size_bytes += b.low_rank_bytes(&packed.weights);
                adapter.packed[index] = Some(packed);
                continue;
            }
            let matrices = bring(b, number, module);
            adapter.size_bytes += site.parameters() * size_of::<f32>();
            adapter.sites[index] = Some(self.attach_site(b, index, site, matrices));
        }
        for module in &weights.saved {
            adapter.size_bytes += self.attach_saved(b, module, &mut adapter)?;
        }
        Ok(adapter)
    }

    fn attach_site(
        &self,
        b: &mut B,
        index: usize,
        site: &AdapterSite,
        [a, up]: [B::Rows; 2],
    ) -> SiteWeights<B> {
        let dora = site.magnitude.as_ref().map(|magnitude| {
            let magnitude = b.upload(magnitude, 1, magnitude.len());
            self.decompose(b, index, (&a, &up, site.scaling), magnitude)
        });
        SiteWeights { a, b: up, scaling: site.scaling, dora }
    }

    /// Gives an adapter's memory back.
    pub fn detach(&self, b: &mut B, adapter: Adapter<B>) {
        // Packed sites give their memory back when they are dropped here.
        let sites = adapter.sites.into_iter().flatten().flat_map(SiteWeights::into_rows);
        sites.for_each(|rows| b.recycle(rows));
        adapter.projector.into_iter().for_each(|projector| projector.release(b));
    }

    pub(super) fn module(&self, name: &str) -> Result<(usize, &ModuleShape), ModelError> {
        self.info.modules.iter().enumerate().find(|(_, module)| module.name == name).ok_or_else(
            || ModelError::UnknownModule {
                module: name.to_owned(),
                model: self.info.name.to_string(),
            },
        )
    }
}

/// `[A, B]` of a site as copies on the device.
fn uploaded<B: Backend>(
    weights: &AdapterWeights,
) -> impl FnMut(&mut B, usize, &ModuleShape) -> [B::Rows; 2] {
    |b, site, module| {
        let site = &weights.sites[site];
        [
            b.upload(&site.a, site.r, module.in_features),
            b.upload(&site.b, module.out_features, site.r),
        ]
    }
}

/// A site packed for serving; DoRA scales what the weight gives too, and is not.
fn pack<B: Backend>(
    b: &mut B,
    site: &AdapterSite,
    module: &ModuleShape,
    format: WeightFormat,
) -> Option<PackedSite<B>> {
    let (in_features, out_features) = (module.in_features, module.out_features);
    let shape = LowRankShape { rank: site.r, in_features, out_features };
    let weights = match site.magnitude {
        None => b.pack_low_rank(&site.a, &site.b, shape, format)?,
        Some(_) => return None,
    };
    Some(PackedSite { weights, scaling: site.scaling })
}

pub(super) fn check_site(site: &AdapterSite, module: &ModuleShape) -> Result<(), ModelError> {
    let matrices =
        [("A", &site.a, site.r * module.in_features), ("B", &site.b, module.out_features * site.r)];
    let magnitude = site.magnitude.iter().map(|m| ("magnitude", m, module.out_features));
    for (matrix, values, expected) in matrices.into_iter().chain(magnitude) {
        if values.len() != expected || site.r == 0 {
            return Err(ModelError::AdapterShape {
                module: site.module.clone(),
                matrix,
                r: site.r,
                expected,
                found: values.len(),
            });
        }
    }
    Ok(())
}

fn check_numbers(site: &AdapterSite) -> Result<(), ModelError> {
    for (matrix, values) in [("A", &site.a), ("B", &site.b)] {
        if !values.iter().all(|value| value.is_finite()) {
            return Err(ModelError::AdapterNotFinite { module: site.module.clone(), matrix });
        }
    }
    Ok(())
}
