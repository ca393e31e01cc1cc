//! Glue between the catalog and what the engine asks of it, and the adapters named at the start.

use futures::FutureExt;
use futures::future::BoxFuture;

use super::AppError;
use crate::catalog::{self, Catalog, CatalogError};
use crate::config::Config;
use crate::engine::{ModelCard, ModelError, Models, ResolvedModel};

/// The catalog, as the engine sees it.
#[derive(Debug)]
pub struct CatalogModels(pub Catalog);

impl Models for CatalogModels {
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<ResolvedModel, ModelError>> {
        async move {
            let found = self.0.resolve(name).await.map_err(|error| explain(name, error))?;
            Ok(ResolvedModel { name: name.to_owned(), base: found.base, adapter: found.adapter })
        }
        .boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ModelCard>, ModelError>> {
        async move {
            let cards = self.0.models().await.map_err(|error| explain("", error))?;
            Ok(cards.into_iter().map(card).collect())
        }
        .boxed()
    }

    fn card<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<ModelCard, ModelError>> {
        async move {
            let model = self.0.model(name).await.map_err(|error| explain(name, error))?;
            Ok(card(model))
        }
        .boxed()
    }

    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), ModelError>> {
        async move { self.0.delete_model(name).await.map_err(|error| explain(name, error)) }.boxed()
    }
}

/// Registers every `--adapter`, replacing what an earlier start registered under its name.
///
/// # Errors
/// [`AppError`] naming the adapter.
pub async fn register(catalog: &Catalog, config: &Config) -> Result<(), AppError> {
    for adapter in &config.adapters {
        let name = adapter.name.clone();
        if let Some(base) = adapter.base.clone().filter(|base| catalog.base(base).is_none()) {
            return Err(AppError::AdapterBase { name, base });
        }
        let registered = catalog
            .register_folder(&adapter.name, adapter.base.as_deref(), &adapter.folder)
            .await
            .map_err(|source| AppError::Adapter { name, source })?;
        for note in &registered.notes {
            tracing::info!(adapter.name = adapter.name, "{note}");
        }
    }
    Ok(())
}

fn card(model: catalog::ModelCard) -> ModelCard {
    let catalog::ModelCard { id, created, parent, context_length } = model;
    ModelCard { id, created, parent, max_model_len: context_length }
}

/// What a request hears of a catalog that cannot serve it.
fn explain(name: &str, error: CatalogError) -> ModelError {
    match error {
        CatalogError::UnknownModel(name) => ModelError::Unknown(name),
        CatalogError::NotDeletable(name) => ModelError::NotDeletable(name),
        CatalogError::Unusable { .. } | CatalogError::BaseNotServed { .. } => {
            ModelError::Unusable { name: name.to_owned(), reason: error.to_string() }
        }
        other => ModelError::Unavailable(Box::new(other)),
    }
}
