//! An adapter on the device: `ΔW = scaling · B A` at some of a model's linear layers.

use std::ops::Range;
use std::sync::Arc;

use super::{Model, ModelError};
use crate::backend::{Backend, SharedMatrix};
use crate::domain::{AdapterSite, AdapterWeights, ModuleShape};

/// One resident adapter, checked against the model it was attached to.
/// Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.
pub struct Adapter<B: Backend> {
    /// By site, that is by index into `BaseInfo::modules`.
    pub(super) sites: Vec<Option<SiteWeights<B>>>,
    size_bytes: usize,
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

    pub(super) fn site(&self, site: usize) -> Option<&SiteWeights<B>> {
        self.sites.get(site)?.as_ref()
    }
}

impl<B: Backend> Model<B> {
    /// Brings an adapter to the device.
    ///
    /// # Errors
    /// If it names a module this model does not have, or a matrix of the wrong size, or holds a
    /// number that is not finite.
    pub fn attach(&self, b: &mut B, weights: &AdapterWeights) -> Result<Adapter<B>, ModelError> {
        weights.sites.iter().try_for_each(check_numbers)?;
        self.attach_by(weights, |site, module| SiteWeights {
            a: b.upload(&weights.sites[site].a, weights.sites[site].r, module.in_features),
            b: b.upload(&weights.sites[site].b, module.out_features, weights.sites[site].r),
            scaling: weights.sites[site].scaling,
        })
    }

    /// The same for an adapter to serve with, whose numbers were checked when it was read: nothing
    /// of it is touched here, and on a CPU nothing is copied.
    ///
    /// # Errors
    /// If it names a module this model does not have, or a matrix of the wrong size.
    pub fn attach_shared(
        &self,
        b: &mut B,
        weights: &Arc<AdapterWeights>,
    ) -> Result<Adapter<B>, ModelError> {
        self.attach_by(weights, |site, module| {
            let (r, scaling) = (weights.sites[site].r, weights.sites[site].scaling);
            let matrix = |is_a| SharedMatrix { adapter: Arc::clone(weights), site, is_a };
            let (a, b) = (
                b.share(matrix(true), r, module.in_features),
                b.share(matrix(false), module.out_features, r),
            );
            SiteWeights { a, b, scaling }
        })
    }

    fn attach_by(
        &self,
        weights: &AdapterWeights,
        mut bring: impl FnMut(usize, &ModuleShape) -> SiteWeights<B>,
    ) -> Result<Adapter<B>, ModelError> {
        let mut sites: Vec<_> = self.info.modules.iter().map(|_| None).collect();
        if weights.sites.is_empty() {
            return Err(ModelError::EmptyAdapter);
        }
        for (number, site) in weights.sites.iter().enumerate() {
            let (index, module) = self.module(&site.module)?;
            check_site(site, module)?;
            if sites[index].is_some() {
                return Err(ModelError::RepeatedModule { module: site.module.clone() });
            }
            sites[index] = Some(bring(number, module));
        }
        Ok(Adapter { sites, size_bytes: weights.size_bytes() })
    }

    /// Gives an adapter's memory back.
    pub fn detach(&self, b: &mut B, adapter: Adapter<B>) {
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
