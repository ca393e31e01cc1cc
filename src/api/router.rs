//! Every route, the layers around them, and the document that describes them.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use super::{ApiError, AppState, auth, middleware};
use super::{adapters, chat, completions, dashboard, docs, files, fine_tuning, health, json};
use super::{metrics, models, tokenize};

/// Every documented route. A resource owns its own.
fn documented() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(docs::description())
        .merge(completions::routes())
        .merge(chat::routes())
        .merge(models::routes())
        .merge(files::routes())
        .merge(fine_tuning::routes())
        .merge(adapters::routes())
        .merge(tokenize::routes())
        .merge(health::routes())
        .merge(metrics::routes())
}

/// The API document, as `openapi/openapi.json` holds it.
pub fn openapi() -> OpenApi {
    let mut openapi = documented().into_openapi();
    let paths = std::mem::take(&mut openapi.paths.paths);
    openapi.paths.paths =
        paths.into_iter().map(|(path, item)| (path.replace("{*", "{"), item)).collect();
    openapi
}

/// The whole application as a service.
///
/// From outside in: id, span, clock and panics; draining; keys; then the route.
pub fn router(state: AppState) -> Router {
    let (routes, _) = documented().split_for_parts();
    routes
        .merge(docs::routes(openapi()))
        .merge(dashboard::routes())
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(json::MAX_JSON_BYTES))
        .layer(from_fn_with_state(state.clone(), auth::authenticate))
        .layer(from_fn_with_state(state.clone(), middleware::drain))
        .layer(map_response(plain_errors))
        .layer(from_fn_with_state(state.clone(), middleware::observe))
        .with_state(state)
}

async fn unknown_route(method: Method, uri: Uri) -> ApiError {
    let message = format!("unknown request URL: {method} {}; /docs lists the routes", uri.path());
    ApiError::not_found("unknown_url", message)
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{method} is not allowed on {}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message).code("method_not_allowed")
}

/// Gives errors that came from below us, such as an extractor of the framework, our form too.
async fn plain_errors(response: Response) -> Response {
    let status = response.status();
    let failed = status.is_client_error() || status.is_server_error();
    let kind = response.headers().get(axum::http::header::CONTENT_TYPE);
    let plain = kind.is_none_or(|kind| kind.as_bytes().starts_with(b"text/plain"));
    if !failed || !plain {
        return response;
    }
    let reason = status.canonical_reason().unwrap_or("the request failed");
    ApiError::new(status, reason).into_response()
}
