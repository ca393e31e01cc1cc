//! `POST /v1/completions`.

mod body;
mod logprobs;
mod object;
mod stream;

use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ErrorBody;
use super::{ApiError, ApiJson, AppState, Caller, sse};
use crate::engine;

pub use body::CompletionBody;
pub(super) use logprobs::{escaped, finite, prompt_logprobs};
pub use object::CompletionObject;
pub(super) use object::unix_seconds;

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(create_completion))
}

/// `POST /v1/completions`: prompts in; one object, or a stream of chunks, out.
#[utoipa::path(
    post, path = "/v1/completions", tag = "completions",
    request_body = CompletionBody,
    responses(
        (status = 200, description = "The completion; with `stream` a sequence of such objects as \
            server-sent events", body = CompletionObject),
        (status = 400, description = "A parameter is wrong", body = ErrorBody),
        (status = 404, description = "There is no such model", body = ErrorBody),
        (status = 429, description = "The server is busy", body = ErrorBody)
    )
)]
async fn create_completion(
    State(app): State<AppState>,
    caller: Caller,
    ApiJson(body): ApiJson<CompletionBody>,
) -> Result<Response, ApiError> {
    let asked = Instant::now();
    let (request, form) = body.settle(caller.tenant)?;
    let mut generation = app.engine.generate(request).await?;
    generation.events = app.metrics.timed(generation.events, asked);
    if form.stream {
        let generation = sse::first_event(generation).await?;
        return Ok(sse::respond(stream::chunks(generation, form), app.lifecycle));
    }
    let answer = engine::collect(&mut generation).await?;
    Ok(Json(CompletionObject::new(&generation, answer, &form)).into_response())
}
