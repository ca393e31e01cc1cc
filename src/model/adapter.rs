//! An adapter on the device: `ΔW = scaling · B A` at some of a model's linear layers.

use std::ops::Range;

use super::{Model, ModelError};
use crate::backend::{Backend, LowRankShape};
use crate::domain::{AdapterSite, AdapterWeights, ModuleShape, WeightFormat};

/// One resident adapter, checked against the model it was attached to.
/// Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.
pub struct Adapter<B: Backend> {
    /// By site, that is by index into `BaseInfo::modules`.
    pub(super) sites: Vec<Option<SiteWeights<B>>>,
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
}

/// Rows of a batch that wear an adapter.
pub struct AdapterRows<'a, B: Backend> {
    pub rows: Range<usize>,
    pub adapter: &'a Adapter<B>,
    /// Multiplies the adapter's own scaling; 1 unless a request says otherwise.
    pub scale: f32,
}

impl<B: Backend> Adapter<B> {
    /// Bytes its matrices take on the device.
    pub fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    fn add(
        &mut self,
        b: &mut B,
        index: usize,
        site: &AdapterSite,
        module: &ModuleShape,
        packed_beside: Option<WeightFormat>,
    ) {
        let (in_features, out_features) = (module.in_features, module.out_features);
        let (shape, scaling) =
            (LowRankShape { rank: site.r, in_features, out_features }, site.scaling);
        let packed =
            packed_beside.and_then(|format| b.pack_low_rank(&site.a, &site.b, shape, format));
        if let Some(weights) = packed {
            self.size_bytes += b.low_rank_bytes(&weights);
            self.packed[index] = Some(PackedSite { weights, scaling });
            return;
        }
        self.size_bytes += size_of_val(&site.a[..]) + size_of_val(&site.b[..]);
        self.sites[index] = Some(SiteWeights {
            a: b.upload(&site.a, site.r, in_features),
            b: b.upload(&site.b, out_features, site.r),
            scaling,
        });
    }

    pub(super) fn site(&self, site: usize) -> Option<&SiteWeights<B>> {
        self.sites.get(site)?.as_ref()
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
        self.bring(b, weights, Some(self.format))
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
        self.bring(b, weights, None)
    }

    fn bring(
        &self,
        b: &mut B,
        weights: &AdapterWeights,
        packed_beside: Option<WeightFormat>,
    ) -> Result<Adapter<B>, ModelError> {
        if weights.sites.is_empty() {
            return Err(ModelError::EmptyAdapter);
        }
        let none = self.info.modules.len();
        let mut adapter = Adapter {
            sites: (0..none).map(|_| None).collect(),
            packed: (0..none).map(|_| None).collect(),
            size_bytes: 0,
        };
        for site in &weights.sites {
            let (index, module) = self.module(&site.module)?;
            check_site(site, module)?;
            if adapter.site(index).is_some() || adapter.packed(index).is_some() {
                return Err(ModelError::RepeatedModule { module: site.module.clone() });
            }
            adapter.add(b, index, site, module, packed_beside);
        }
        Ok(adapter)
    }

    /// Gives an adapter's memory back.
    pub fn detach(&self, b: &mut B, adapter: Adapter<B>) {
        // Packed sites give their memory back when they are dropped here.
        for site in adapter.sites.into_iter().flatten() {
            b.recycle(site.a);
            b.recycle(site.b);
        }
    }

    fn module(&self, name: &str) -> Result<(usize, &ModuleShape), ModelError> {
        self.info.modules.iter().enumerate().find(|(_, module)| module.name == name).ok_or_else(
            || ModelError::UnknownModule {
                module: name.to_owned(),
                model: self.info.name.to_string(),
            },
        )
    }
}

fn check_site(site: &AdapterSite, module: &ModuleShape) -> Result<(), ModelError> {
    let matrices =
        [("A", &site.a, site.r * module.in_features), ("B", &site.b, module.out_features * site.r)];
    for (matrix, values, expected) in matrices {
        if values.len() != expected || site.r == 0 {
            return Err(ModelError::AdapterShape {
                module: site.module.clone(),
                matrix,
                r: site.r,
                expected,
                found: values.len(),
            });
        }
        if !values.iter().all(|value| value.is_finite()) {
            return Err(ModelError::AdapterNotFinite { module: site.module.clone(), matrix });
        }
    }
    Ok(())
}
