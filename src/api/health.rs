//! Probes: whether the process lives, and whether it takes requests.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::AppState;

/// The state of the server in one word.
#[derive(Debug, Serialize, ToSchema)]
struct Health {
    /// `ok`, `starting` or `draining`.
    status: &'static str,
}

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(live)).routes(routes!(ready))
}

/// `GET /health/live`: the process answers.
#[utoipa::path(
    get, path = "/health/live", tag = "operation", security(()),
    responses((status = 200, description = "The process lives", body = Health))
)]
async fn live() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// `GET /health/ready`: models are loaded and requests are taken.
#[utoipa::path(
    get, path = "/health/ready", tag = "operation", security(()),
    responses(
        (status = 200, description = "Requests are taken", body = Health),
        (status = 503, description = "Still starting, or draining", body = Health)
    )
)]
async fn ready(State(app): State<AppState>) -> (StatusCode, Json<Health>) {
    let status = match (app.lifecycle.is_ready(), app.lifecycle.is_draining()) {
        (true, _) => return (StatusCode::OK, Json(Health { status: "ok" })),
        (false, true) => "draining",
        (false, false) => "starting",
    };
    (StatusCode::SERVICE_UNAVAILABLE, Json(Health { status }))
}
