//! `POST /v1/chat/completions`.

mod body;
mod messages;
mod object;
mod stream;

use std::time::Instant;

use axum::Json;
use axum::extract::{DefaultBodyLimit, State};
use axum::response::{IntoResponse, Response};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ErrorBody;
use super::{ApiError, ApiJson, AppState, Caller, sse};
use crate::domain::MAX_CONVERSATION_BYTES;
use crate::engine;

pub use body::ChatBody;
pub(super) use messages::check as check_messages;
pub use object::ChatObject;

pub(super) fn routes() -> OpenApiRouter<AppState> {
    let limit = DefaultBodyLimit::max(MAX_CONVERSATION_BYTES);
    OpenApiRouter::new().routes(routes!(create_chat_completion)).layer(limit)
}

/// `POST /v1/chat/completions`: a conversation in; its next message, or a stream of chunks, out.
#[utoipa::path(
    post, path = "/v1/chat/completions", tag = "chat",
    request_body = ChatBody,
    responses(
        (status = 200, description = "The next message; with `stream` a sequence of \
            `chat.completion.chunk` objects as server-sent events", body = ChatObject),
        (status = 400, description = "A parameter is wrong", body = ErrorBody),
        (status = 404, description = "There is no such model", body = ErrorBody),
        (status = 429, description = "The server is busy", body = ErrorBody)
    )
)]
async fn create_chat_completion(
    State(app): State<AppState>,
    caller: Caller,
    ApiJson(body): ApiJson<ChatBody, MAX_CONVERSATION_BYTES>,
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
    Ok(Json(ChatObject::new(&generation, answer, &form)).into_response())
}
