//! What happens to every request: an id, a span, a clock, the end of panics, and the end of days.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use tracing::Instrument;
use uuid::Uuid;

use super::{ApiError, AppState};

const REQUEST_ID: &str = "x-request-id";

/// The outermost layer: gives the request its id, its span and its clock, and turns a panic below
/// into a 500. Bodies and keys never reach the span.
pub(super) async fn observe(State(app): State<AppState>, request: Request, next: Next) -> Response {
    let asked = Instant::now();
    let id = request_id(request.headers());
    let method = request.method().as_str().to_owned();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let route = route.unwrap_or_else(|| "unmatched".to_owned());
    let span =
        tracing::info_span!("request", request.id = id.to_str().unwrap_or_default(), method, route);
    let work = async {
        let answer = AssertUnwindSafe(next.run(request)).catch_unwind().await;
        let response = answer.unwrap_or_else(|panic| {
            ApiError::internal(format!("panic: {}", panic_text(&*panic))).into_response()
        });
        tracing::debug!(
            status = response.status().as_u16(),
            duration_ms = asked.elapsed().as_millis() as u64,
            "answered"
        );
        response
    };
    let mut response = work.instrument(span).await;
    let took = asked.elapsed();
    app.metrics.answered(&method, &route, response.status().as_u16(), took);
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id);
    headers.insert("openai-processing-ms", HeaderValue::from(took.as_millis() as u64));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

/// Refuses new work while draining, probes excepted, and ends old work when the time is over.
pub(super) async fn drain(
    State(app): State<AppState>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    if route.starts_with("/health/") || route == "/metrics" {
        return Ok(next.run(request).await);
    }
    if app.lifecycle.is_draining() {
        return Err(shutting_down());
    }
    tokio::select! {
        response = next.run(request) => Ok(response),
        () = app.lifecycle.ended() => Err(shutting_down()),
    }
}

/// The 503 of a server that is about to leave.
pub(super) fn shutting_down() -> ApiError {
    ApiError::unavailable("server_shutting_down", "the server is shutting down")
}

/// The client's id if it is short and plain, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let plain = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        (1..=128).contains(&bytes.len()) && bytes.iter().all(|byte| byte.is_ascii_graphic())
    };
    headers.get(REQUEST_ID).filter(plain).cloned().unwrap_or_else(|| {
        let id = format!("req_{}", Uuid::now_v7().simple());
        HeaderValue::from_str(&id).expect("hexadecimal digits are a header value")
    })
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}
