//! From a name to values a request can keep.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::error::{CatalogError, CatalogResult};
use super::{Catalog, ServedBase};
use crate::artifacts::ArtifactError;
use crate::domain::{AdapterSite, AdapterWeights, BaseInfo, LoraSpec};
use crate::peft::{self, AdapterFiles, CheckedAdapter};
use crate::pictures::PictureReader;
use crate::store::{Adapter, Listed, Page};
use crate::text::TextModel;

/// A model name, settled. It stays valid whatever happens to the name.
#[derive(Clone, Debug)]
pub struct ResolvedModel {
    /// As the request wrote it.
    pub name: String,
    pub base: Arc<BaseInfo>,
    pub text: Arc<TextModel>,
    /// Present if it sees.
    pub pictures: Option<Arc<PictureReader>>,
    pub adapter: Option<Arc<AdapterWeights>>,
    /// For `system_fingerprint`: names weights, adapter generation and build.
    pub fingerprint: String,
}

/// An adapter in memory, and what its configuration said of it.
#[derive(Clone, Debug)]
pub struct LoadedAdapter {
    pub weights: Arc<AdapterWeights>,
    pub r: usize,
    pub alpha: f64,
    pub use_rslora: bool,
    /// Sentences for whoever registered it.
    pub notes: Vec<String>,
}

/// One servable model, as lists show it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelCard {
    pub id: String,
    /// Unix seconds.
    pub created: i64,
    /// The base under an adapter; `None` for a base itself.
    pub parent: Option<String>,
    pub context_length: usize,
}

impl From<CheckedAdapter> for LoadedAdapter {
    fn from(checked: CheckedAdapter) -> Self {
        Self {
            weights: Arc::new(checked.weights),
            r: checked.config.r,
            alpha: checked.config.lora_alpha,
            use_rslora: checked.config.use_rslora,
            notes: checked.notes,
        }
    }
}

impl LoadedAdapter {
    /// The shape a run has that goes on from this adapter.
    pub fn lora_spec(&self, dropout: f64) -> LoraSpec {
        let sites = &self.weights.sites;
        let divisor = |r: usize| if self.use_rslora { (r as f64).sqrt() } else { r as f64 };
        let scaling = |r: usize| (self.alpha / divisor(r)) as f32;
        let common = sites.iter().all(|site| site.scaling == scaling(site.r));
        let alpha = |site: &AdapterSite| f64::from(site.scaling) * divisor(site.r);
        let same = sites.iter().all(|site| site.r == self.r);
        LoraSpec {
            r: self.r,
            alpha: self.alpha,
            dropout,
            modules: sites.iter().map(|site| site.module.clone()).collect(),
            ranks: if same { Vec::new() } else { sites.iter().map(|site| site.r).collect() },
            alphas: if common { Vec::new() } else { sites.iter().map(alpha).collect() },
            use_rslora: self.use_rslora,
            use_dora: sites.iter().any(|site| site.magnitude.is_some()),
            modules_to_save: self.weights.saved.iter().map(|s| s.module.clone()).collect(),
        }
    }
}

impl Catalog {
    /// What `name` means, its adapter verified and in memory.
    ///
    /// # Errors
    /// [`CatalogError::UnknownModel`], [`CatalogError::BaseNotServed`],
    /// [`CatalogError::Unusable`], or those of store and artifacts.
    pub async fn resolve(&self, name: &str) -> CatalogResult<ResolvedModel> {
        if let Some(base) = self.base(name) {
            return Ok(resolved(name, base, None));
        }
        let row = self.adapter_row(name).await?;
        let base = self.base_of(&row)?;
        let adapter = match self.load(&row).await {
            Ok(adapter) => adapter,
            Err(error) => self.load_successor(name, &row, error).await?,
        };
        Ok(resolved(name, base, Some(adapter.weights.clone())))
    }

    /// Between row and files the adapter may have been deleted or replaced; then what counts is
    /// what the name means now.
    async fn load_successor(
        &self,
        name: &str,
        failed: &Adapter,
        error: CatalogError,
    ) -> CatalogResult<Arc<LoadedAdapter>> {
        let row = self.adapter_row(name).await?;
        if row.id == failed.id || row.base != failed.base {
            return Err(error);
        }
        self.load(&row).await
    }

    /// The adapter of a row, from memory or from disk.
    ///
    /// # Errors
    /// As [`Catalog::resolve`].
    pub async fn load(&self, row: &Adapter) -> CatalogResult<Arc<LoadedAdapter>> {
        self.inner.adapters.get(&row.id, || self.read_from_disk(row)).await
    }

    /// The row of the live adapter `name`.
    ///
    /// # Errors
    /// [`CatalogError::UnknownModel`].
    pub async fn adapter_row(&self, name: &str) -> CatalogResult<Adapter> {
        let row = match name.contains('\0') {
            true => None,
            false => self.inner.store.adapter(name).await?,
        };
        row.ok_or_else(|| CatalogError::UnknownModel(name.chars().take(256).collect()))
    }

    /// A page of adapters, checkpoints' included.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn adapter_rows(&self, page: &Page) -> CatalogResult<Listed<Adapter>> {
        Ok(self.inner.store.adapters(page).await?)
    }

    /// Every servable model: bases first, then adapters, newest first.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn models(&self) -> CatalogResult<Vec<ModelCard>> {
        let mut cards: Vec<_> = self.bases().iter().map(|base| self.base_card(base)).collect();
        let mut page = Page::newest(1000);
        loop {
            let listed = self.inner.store.adapters(&page).await?;
            cards.extend(listed.rows.iter().filter_map(|row| self.adapter_card(row)));
            page.after = listed.rows.last().map(|row| row.id.to_string());
            if !listed.has_more || page.after.is_none() {
                return Ok(cards);
            }
        }
    }

    /// The card of one model.
    ///
    /// # Errors
    /// [`CatalogError::UnknownModel`], also for an adapter whose base is not served.
    pub async fn model(&self, name: &str) -> CatalogResult<ModelCard> {
        if let Some(base) = self.base(name) {
            return Ok(self.base_card(base));
        }
        let row = self.adapter_row(name).await?;
        self.adapter_card(&row).ok_or_else(|| CatalogError::UnknownModel(row.name.clone()))
    }

    /// Takes an adapter's name away. Requests that run with it go on; its files go when no other
    /// name stands for them.
    ///
    /// # Errors
    /// [`CatalogError::NotDeletable`] for a base, [`CatalogError::UnknownModel`].
    pub async fn delete_model(&self, name: &str) -> CatalogResult<()> {
        if self.base(name).is_some() {
            return Err(CatalogError::NotDeletable(name.to_owned()));
        }
        let row = self.adapter_row(name).await?;
        let _changing = self.inner.changing.lock().await;
        let row = self.inner.store.delete_adapter(&row.name).await?;
        self.inner.adapters.remove(&row.id);
        if !self.inner.store.location_in_use(&row.location).await? {
            self.inner.artifacts.delete_folder(&row.location).await?;
        }
        Ok(())
    }

    fn base_of(&self, row: &Adapter) -> CatalogResult<&ServedBase> {
        self.base(&row.base).ok_or_else(|| CatalogError::BaseNotServed {
            name: row.name.clone(),
            base: row.base.clone(),
        })
    }

    async fn read_from_disk(&self, row: &Adapter) -> CatalogResult<LoadedAdapter> {
        let base = self.base_of(row)?.clone();
        let verified = self.inner.artifacts.verified_folder(&row.location, &row.sha256).await;
        if let Err(ArtifactError::Corrupt { .. }) = verified {
            tracing::error!(adapter.id = %row.id, "an adapter's files are damaged");
        }
        let folder = verified?;
        let (name, hash) = (row.name.clone(), row.sha256.clone());
        blocking(move || {
            let files = AdapterFiles::from_dir(&folder).map_err(|source| CatalogError::Folder {
                folder: folder.display().to_string(),
                source,
            })?;
            let checked = peft::read_known(&files, &base.info, &base.fingerprints(), &hash)
                .map_err(|source| CatalogError::Unusable { name, source })?;
            Ok(checked.into())
        })
        .await
    }

    fn base_card(&self, base: &ServedBase) -> ModelCard {
        ModelCard {
            id: base.info.name.to_string(),
            created: self.inner.started_at,
            parent: None,
            context_length: base.info.context_length,
        }
    }

    fn adapter_card(&self, row: &Adapter) -> Option<ModelCard> {
        let base = self.base(&row.base)?;
        Some(ModelCard {
            id: row.name.clone(),
            created: row.created_at.unix_seconds(),
            parent: Some(row.base.clone()),
            context_length: base.info.context_length,
        })
    }
}

/// Runs work that computes or reads files where it may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> CatalogResult<T> + Send + 'static,
) -> CatalogResult<T> {
    tokio::task::spawn_blocking(work).await.map_err(CatalogError::Thread)?
}

fn resolved(name: &str, base: &ServedBase, adapter: Option<Arc<AdapterWeights>>) -> ResolvedModel {
    ResolvedModel {
        name: name.to_owned(),
        base: base.info.clone(),
        text: base.text.clone(),
        pictures: base.pictures.clone(),
        fingerprint: system_fingerprint(&base.info, adapter.as_deref()),
        adapter,
    }
}

/// `fp_` and ten hexadecimal digits over weights, adapter content and build.
fn system_fingerprint(base: &BaseInfo, adapter: Option<&AdapterWeights>) -> String {
    let adapter = adapter.map_or("", |adapter| &adapter.key);
    let parts = [&*base.fingerprint, &*base.dtype, adapter, env!("CARGO_PKG_VERSION")];
    format!("fp_{}", &hex::encode(Sha256::digest(parts.join("\n")))[..10])
}
