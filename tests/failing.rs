//! Completions that cannot be: an unknown model, no room, a device that fails, a caller who leaves, a
//! server that stops.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::json;
use tandem::worker::{GenerationEvent, WorkerError};
use tower::ServiceExt;

use crate::support::app::{BASE, Setup, TestApp, Work, request, says};

#[tokio::test]
async fn an_unknown_model_is_not_found() {
    let app = TestApp::answering("x").await;
    let answer = app.complete(json!({"model": "nobody"})).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    let error = answer.error();
    assert_eq!((&error["param"], &error["code"]), (&json!("model"), &json!("model_not_found")));
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let app = Setup { queue: 1, alive: false, ..Setup::new(says(&["x"])) }.start().await;
    let filler = app.router.clone();
    let waiting = tokio::spawn(async move {
        let body = json!({"model": BASE, "prompt": "x"}).to_string();
        filler.oneshot(request(Method::POST, "/v1/completions", Body::from(body))).await
    });
    let answer = loop {
        let answer = app.complete(json!({"stream": true}));
        match tokio::time::timeout(std::time::Duration::from_millis(200), answer).await {
            Ok(answer) => break answer,
            Err(_) => continue,
        }
    };
    waiting.abort();
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer.error()["code"], "server_overloaded");
    let number = |name| answer.headers[name].to_str().unwrap().parse::<u64>().unwrap();
    assert!((1..=60).contains(&number("retry-after")));
    assert_eq!(number("retry-after-ms"), 1000 * number("retry-after"));
}

/// A device that answers with these events.
fn tells(events: Vec<GenerationEvent>) -> Setup {
    Setup::new(Arc::new(move |work: Work| {
        let told = events.clone();
        Box::pin(async move {
            for event in told {
                work.events.send(event).await.expect("a listener");
            }
        })
    }))
}

#[tokio::test]
async fn a_failure_before_the_first_token_has_a_status_even_in_a_stream() {
    let failed = WorkerError::TooLarge { needed_tokens: 9, capacity_tokens: 8 };
    let app = tells(vec![GenerationEvent::Failed(failed)]).start().await;
    for stream in [false, true] {
        let answer = app.complete(json!({"stream": stream})).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert_eq!(answer.error()["code"], "context_length_exceeded");
    }
}

#[tokio::test]
async fn a_failure_midway_is_a_frame_with_an_error_and_no_done() {
    let started = GenerationEvent::Prefilled { cached_tokens: 0, prompt: Vec::new() };
    let failed = GenerationEvent::Failed(WorkerError::Device("a secret detail".to_owned()));
    let app = tells(vec![started, failed]).start().await;
    let answer = app.complete(json!({"stream": true})).await;
    assert_eq!(answer.status, StatusCode::OK);
    let frames = answer.frames();
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0]["error"]["type"], "server_error");
    assert!(!answer.text.contains("secret"), "causes stay in the log");
    let answer = app.complete(json!({})).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(!answer.text.contains("secret"));
}

#[tokio::test]
async fn a_device_that_goes_away_is_a_500() {
    let app = tells(Vec::new()).start().await;
    let answer = app.complete(json!({})).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(answer.error()["type"], "server_error");
}

#[tokio::test]
async fn a_caller_who_leaves_frees_the_device() {
    let (told, mut heard) = tokio::sync::mpsc::channel(1);
    let script = move |work: Work| -> futures::future::BoxFuture<'static, ()> {
        let told = told.clone();
        Box::pin(async move {
            let started = GenerationEvent::Prefilled { cached_tokens: 0, prompt: Vec::new() };
            work.events.send(started).await.expect("a listener");
            work.events.closed().await;
            told.send(()).await.expect("a listener");
        })
    };
    let app = Setup::new(Arc::new(script)).start().await;
    let body = json!({"model": BASE, "prompt": "x", "stream": true}).to_string();
    let call = request(Method::POST, "/v1/completions", Body::from(body));
    let response = app.router.clone().oneshot(call).await.unwrap();
    drop(response.into_body());
    heard.recv().await.expect("the stream's request was cancelled");

    let body = json!({"model": BASE, "prompt": "x"}).to_string();
    let call = request(Method::POST, "/v1/completions", Body::from(body));
    let call = tokio::spawn(app.router.clone().oneshot(call));
    while app.seen.lock().unwrap().len() < 2 {
        tokio::task::yield_now().await;
    }
    call.abort();
    heard.recv().await.expect("the other request was cancelled");
}

#[tokio::test]
async fn the_end_of_the_server_ends_a_stream_with_an_error() {
    let script = |work: Work| -> futures::future::BoxFuture<'static, ()> {
        Box::pin(async move {
            let started = GenerationEvent::Prefilled { cached_tokens: 0, prompt: Vec::new() };
            work.events.send(started).await.expect("a listener");
            work.events.closed().await;
        })
    };
    let app = Setup::new(Arc::new(script)).start().await;
    let body = json!({"model": BASE, "prompt": "x", "stream": true}).to_string();
    let call = request(Method::POST, "/v1/completions", Body::from(body));
    let response = app.router.clone().oneshot(call).await.unwrap();
    app.state.lifecycle.end();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    assert!(text.contains("server_shutting_down") && !text.contains("[DONE]"), "{text}");
}
