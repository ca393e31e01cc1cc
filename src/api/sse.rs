//! Server-sent events as OpenAI frames them: `data: <json>`, at the end `data: [DONE]`; a failure
//! midway is a frame with `error` and no `[DONE]`.

use std::convert::Infallible;
use std::time::Duration;

use axum::http::HeaderValue;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, Stream, StreamExt};
use serde::Serialize;
use serde_json::Value;

use super::middleware::shutting_down;
use super::{ApiError, Lifecycle};
use crate::engine::Generation;

const KEEP_ALIVE: Duration = Duration::from_secs(15);
const FIRST_EVENT: Duration = Duration::from_secs(5);

/// Streams `chunks`, then `[DONE]`. The first error ends the stream; so does the end of the server.
pub fn respond<C>(chunks: C, lifecycle: Lifecycle) -> Response
where
    C: Stream<Item = Result<Value, ApiError>> + Send + 'static,
{
    let frames = stream::unfold(Some((chunks.boxed(), lifecycle)), |state| async move {
        let (mut chunks, lifecycle) = state?;
        let chunk = tokio::select! {
            chunk = chunks.next() => chunk,
            () = lifecycle.ended() => Some(Err(shutting_down())),
        };
        let more = matches!(chunk, Some(Ok(_))).then_some((chunks, lifecycle));
        Some((Ok::<_, Infallible>(frame(chunk)), more))
    });
    let mut response =
        Sse::new(frames).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

fn frame(chunk: Option<Result<Value, ApiError>>) -> Event {
    match chunk {
        Some(Ok(value)) => Event::default().data(value.to_string()),
        Some(Err(error)) => {
            error.log();
            Event::default().data(error.body().to_string())
        }
        None => Event::default().data("[DONE]"),
    }
}

/// A chunk as JSON.
///
/// # Errors
/// A 500, if it cannot be written as JSON.
pub(super) fn to_value(chunk: &impl Serialize) -> Result<Value, ApiError> {
    serde_json::to_value(chunk).map_err(ApiError::internal)
}

/// Waits for the first event, so that an early failure still gets its status; not for ever, so
/// that the client of a busy server hears something.
pub(super) async fn first_event(mut generation: Generation) -> Result<Generation, ApiError> {
    let first = tokio::time::timeout(FIRST_EVENT, generation.events.next()).await;
    match first {
        Ok(Some(Err(error))) => Err(error.into()),
        Ok(Some(Ok(event))) => {
            let first = stream::once(async { Ok(event) });
            generation.events = first.chain(generation.events).boxed();
            Ok(generation)
        }
        Ok(None) | Err(_) => Ok(generation),
    }
}
