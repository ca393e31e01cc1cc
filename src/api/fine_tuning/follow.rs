//! `GET …/events`: a page, newest first, or a stream that goes on until the job ends.

use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, StreamExt};

use super::super::{ApiError, AppState, Caller};
use super::objects::FineTuningEvent;
use crate::domain::JobId;
use crate::store::{JobEvent, StoreResult};

const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Streams the events behind the last one the client saw; each frame's `id` is its number.
pub(super) async fn stream_events(
    app: AppState,
    caller: &Caller,
    job: &JobId,
    after: Option<&str>,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let after = match headers.get("last-event-id") {
        Some(id) => number(id.to_str().unwrap_or("?"), "Last-Event-ID")?,
        None => after.map_or(Ok(0), |after| number(after, "after"))?,
    };
    let events = app.jobs().follow(&caller.tenant, job, after).await?;
    let done = stream::once(async { Event::default().data("[DONE]") });
    // A server that drains ends its streams; the client comes back with the last number it saw.
    let frames = events.map(frame).chain(done);
    let frames = frames.take_until(async move { app.lifecycle.draining().await });
    let mut response = Sse::new(frames.map(Ok::<_, Infallible>))
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response();
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

fn frame(event: StoreResult<JobEvent>) -> Event {
    match event {
        Ok(event) => {
            let seq = event.seq.to_string();
            let object = serde_json::to_string(&FineTuningEvent::from(event));
            Event::default().id(seq).data(object.unwrap_or_default())
        }
        Err(error) => Event::default().data(ApiError::from(error).body().to_string()),
    }
}

fn number(text: &str, param: &'static str) -> Result<i64, ApiError> {
    match text.parse() {
        Ok(number) if number >= 0 => Ok(number),
        _ => {
            let message = format!("`{param}` must be the number of an event, as the stream's `id`");
            Err(ApiError::invalid(param, message))
        }
    }
}
