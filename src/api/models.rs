//! `/v1/models`: every name that a request may put into `model`.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ErrorBody;
use super::{ApiError, ApiPath, AppState};
use crate::catalog::ModelCard;

/// A servable model: a base model, an adapter or a checkpoint.
#[derive(Debug, Serialize, ToSchema)]
pub struct Model {
    pub id: String,
    /// Always `model`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: i64,
    pub owned_by: &'static str,
    /// The base model that runs.
    pub root: String,
    /// The base model under an adapter; `null` for a base model itself.
    pub parent: Option<String>,
    /// Most tokens of prompt and answer together.
    pub max_model_len: usize,
}

/// Every servable model.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelList {
    /// Always `list`.
    pub object: &'static str,
    pub data: Vec<Model>,
}

/// What remains of a deleted model.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeletedModel {
    pub id: String,
    /// Always `model`.
    pub object: &'static str,
    pub deleted: bool,
}

impl From<ModelCard> for Model {
    fn from(card: ModelCard) -> Self {
        Self {
            object: "model",
            created: card.created,
            owned_by: "tandem",
            root: card.parent.clone().unwrap_or_else(|| card.id.clone()),
            parent: card.parent,
            max_model_len: card.context_length,
            id: card.id,
        }
    }
}

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_models)).routes(routes!(retrieve_model, delete_model))
}

/// `GET /v1/models`: base models first, then adapters.
#[utoipa::path(
    get, path = "/v1/models", tag = "models",
    responses((status = 200, description = "Every servable model", body = ModelList))
)]
async fn list_models(State(app): State<AppState>) -> Result<Json<ModelList>, ApiError> {
    let cards = app.engine.catalog().models().await?;
    Ok(Json(ModelList { object: "list", data: cards.into_iter().map(Model::from).collect() }))
}

/// `GET /v1/models/{model}`: one model; ids may contain `:` and `/`.
#[utoipa::path(
    get, path = "/v1/models/{*model}", tag = "models",
    params(("model" = String, Path, description = "The model's id")),
    responses(
        (status = 200, description = "The model", body = Model),
        (status = 404, description = "There is no such model", body = ErrorBody)
    )
)]
async fn retrieve_model(
    State(app): State<AppState>,
    ApiPath(model): ApiPath<String>,
) -> Result<Json<Model>, ApiError> {
    Ok(Json(app.engine.catalog().model(&model).await?.into()))
}

/// `DELETE /v1/models/{model}`: takes an adapter's name away. Requests that use it go on.
#[utoipa::path(
    delete, path = "/v1/models/{*model}", tag = "models",
    params(("model" = String, Path, description = "The adapter's id")),
    responses(
        (status = 200, description = "It is gone", body = DeletedModel),
        (status = 400, description = "It is a base model", body = ErrorBody),
        (status = 404, description = "There is no such model", body = ErrorBody)
    )
)]
async fn delete_model(
    State(app): State<AppState>,
    ApiPath(model): ApiPath<String>,
) -> Result<Json<DeletedModel>, ApiError> {
    app.engine.catalog().delete_model(&model).await?;
    Ok(Json(DeletedModel { id: model, object: "model", deleted: true }))
}
