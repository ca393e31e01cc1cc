//! What the names in `model` mean, as the engine needs to know it.

use std::fmt::Debug;
use std::sync::Arc;

use futures::future::BoxFuture;

use crate::domain::{AdapterWeights, BaseInfo};

/// A model name, settled: the base to run and the adapter generation to pin.
#[derive(Clone, Debug)]
pub struct ResolvedModel {
    /// As the request wrote it.
    pub name: String,
    pub base: Arc<BaseInfo>,
    pub adapter: Option<Arc<AdapterWeights>>,
}

/// One servable model, as `/v1/models` lists it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelCard {
    pub id: String,
    /// Unix seconds.
    pub created: i64,
    /// The base model under an adapter; `None` for a base model itself.
    pub parent: Option<String>,
    /// Most tokens a sequence may hold.
    pub max_model_len: usize,
}

/// Why a model name could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("the model `{0}` does not exist")]
    Unknown(String),
    #[error("the model `{0}` is a base model; only adapters and fine-tuned models can be deleted")]
    NotDeletable(String),
    #[error("the adapter of the model `{name}` cannot be used: {reason}")]
    Unusable { name: String, reason: String },
    #[error("the catalog of models is not available")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Knows every servable model.
pub trait Models: Debug + Send + Sync {
    /// The model of that name, its adapter in memory.
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<ResolvedModel, ModelError>>;

    /// Every model, base models first.
    fn list(&self) -> BoxFuture<'_, Result<Vec<ModelCard>, ModelError>>;

    /// The card of one model.
    fn card<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<ModelCard, ModelError>>;

    /// Takes an adapter's name away; requests that pinned it go on.
    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), ModelError>>;
}
