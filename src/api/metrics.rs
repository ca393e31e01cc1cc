//! What operators watch, in Prometheus' text form: counters of the device thread, of requests, and
//! the times that callers feel.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use futures::StreamExt;
use futures::stream::BoxStream;
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::AppState;
use crate::engine::{EngineError, TextEvent};
use crate::worker::WorkerStats;

/// Upper bounds of the histograms, in seconds.
const SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

/// The counters of one server; a process may hold several, as tests do.
#[derive(Clone)]
pub struct Metrics(Arc<PrometheusRecorder>);

impl Default for Metrics {
    fn default() -> Self {
        let builder = PrometheusBuilder::new().set_buckets(SECONDS).expect("there are buckets");
        let metrics = Self(Arc::new(builder.build_recorder()));
        metrics.record(describe);
        metrics
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// Runs `observe`, whose `counter!`, `gauge!` and `histogram!` land here.
    pub fn record<T>(&self, observe: impl FnOnce() -> T) -> T {
        metrics::with_local_recorder(&*self.0, observe)
    }

    /// Counts one answered request.
    pub(super) fn answered(&self, method: &str, route: &str, status: u16, took: Duration) {
        let labels = [("method", method.to_owned()), ("route", route.to_owned())];
        self.record(|| {
            let mut counted = labels.to_vec();
            counted.push(("status", status.to_string()));
            counter!("tandem_http_requests_total", &counted).increment(1);
            histogram!("tandem_http_request_seconds", &labels).record(took.as_secs_f64());
        });
    }

    /// Measures the time to the first token and between tokens of a stream of events.
    pub(super) fn timed(
        &self,
        events: BoxStream<'static, Result<TextEvent, EngineError>>,
        asked: Instant,
    ) -> BoxStream<'static, Result<TextEvent, EngineError>> {
        let metrics = self.clone();
        let mut last: HashMap<(usize, usize), Instant> = HashMap::new();
        let observe = move |event: &Result<TextEvent, EngineError>| match event {
            Ok(TextEvent::Delta { prompt, choice, .. }) => {
                let now = Instant::now();
                metrics.record(|| match last.insert((*prompt, *choice), now) {
                    None => histogram!("tandem_time_to_first_token_seconds").record(now - asked),
                    Some(before) => histogram!("tandem_inter_token_seconds").record(now - before),
                });
            }
            Ok(TextEvent::Finished { prompt, choice, .. }) => {
                last.remove(&(*prompt, *choice));
            }
            _ => {}
        };
        let mut observe = observe;
        events.inspect(move |event| observe(event)).boxed()
    }

    fn render(&self, stats: &WorkerStats) -> String {
        self.record(|| copy(stats));
        let handle = self.0.handle();
        handle.run_upkeep();
        handle.render()
    }
}

/// Copies the device thread's counters.
fn copy(stats: &WorkerStats) {
    let count = |value: &std::sync::atomic::AtomicUsize| value.load(Ordering::Relaxed) as f64;
    gauge!("tandem_requests_waiting").set(count(&stats.waiting));
    gauge!("tandem_sequences_running").set(count(&stats.running));
    gauge!("tandem_kv_blocks_used").set(count(&stats.blocks_used));
    gauge!("tandem_kv_blocks_total").set(count(&stats.blocks_total));
    gauge!("tandem_adapters_resident").set(count(&stats.adapters_resident));
    let total = |value: &std::sync::atomic::AtomicU64| value.load(Ordering::Relaxed);
    counter!("tandem_prompt_tokens_total").absolute(total(&stats.prompt_tokens));
    counter!("tandem_cached_prompt_tokens_total").absolute(total(&stats.cached_tokens));
    counter!("tandem_generated_tokens_total").absolute(total(&stats.generated_tokens));
    counter!("tandem_drafted_tokens_total").absolute(total(&stats.drafted_tokens));
    counter!("tandem_accepted_draft_tokens_total").absolute(total(&stats.accepted_tokens));
    counter!("tandem_preemptions_total").absolute(total(&stats.preemptions));
    counter!("tandem_device_steps_total").absolute(total(&stats.steps));
    counter!("tandem_training_steps_total").absolute(total(&stats.training_steps));
    let millis = |value: &std::sync::atomic::AtomicU64| total(value) / 1000;
    counter!("tandem_serving_milliseconds_total").absolute(millis(&stats.serving_micros));
    counter!("tandem_training_milliseconds_total").absolute(millis(&stats.training_micros));
    gauge!("tandem_training_unit_milliseconds_max").set(millis(&stats.longest_unit_micros) as f64);
    counter!("tandem_device_panics_total").absolute(total(&stats.panics));
}

fn describe() {
    describe_gauge!("tandem_requests_waiting", "Requests queued or waiting for cache room.");
    describe_gauge!("tandem_sequences_running", "Sequences in the running batch.");
    describe_gauge!("tandem_kv_blocks_used", "Blocks of the KV cache in use.");
    describe_gauge!("tandem_kv_blocks_total", "Blocks of the KV cache.");
    describe_gauge!("tandem_adapters_resident", "Adapters on the device.");
    describe_counter!("tandem_prompt_tokens_total", "Prompt tokens read, cached ones included.");
    describe_counter!("tandem_cached_prompt_tokens_total", "Prompt tokens from the prefix cache.");
    describe_counter!("tandem_generated_tokens_total", "Tokens drawn.");
    describe_counter!("tandem_drafted_tokens_total", "Tokens guessed by speculative decoding.");
    describe_counter!("tandem_accepted_draft_tokens_total", "Guessed tokens that were right.");
    describe_counter!("tandem_preemptions_total", "Sequences that gave way to older ones.");
    describe_counter!("tandem_device_steps_total", "Steps of the device loop.");
    describe_counter!("tandem_training_steps_total", "Optimiser steps taken.");
    describe_counter!("tandem_serving_milliseconds_total", "Device time of steps of serving.");
    describe_counter!("tandem_training_milliseconds_total", "Device time of units of training.");
    describe_gauge!(
        "tandem_training_unit_milliseconds_max",
        "The longest unit of training so far."
    );
    describe_counter!("tandem_device_panics_total", "Panics caught on the device thread.");
    describe_counter!("tandem_http_requests_total", "Requests answered.");
    describe_histogram!("tandem_http_request_seconds", "Time to the head of an answer.");
    describe_histogram!("tandem_time_to_first_token_seconds", "Time from request to first token.");
    describe_histogram!("tandem_inter_token_seconds", "Time between two tokens of a choice.");
}

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(metrics))
}

/// `GET /metrics`: counters and histograms in Prometheus' text form.
#[utoipa::path(
    get, path = "/metrics", tag = "operation",
    responses((status = 200, description = "Prometheus text", body = String, content_type = "text/plain"))
)]
async fn metrics(State(app): State<AppState>) -> impl IntoResponse {
    let text = app.metrics.render(app.engine.worker().stats());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}
