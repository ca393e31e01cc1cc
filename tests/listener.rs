//! The listener on a real socket: how it stops, and what it does with clients who dawdle.

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use futures::StreamExt;
use futures::future::BoxFuture;
use serde_json::json;
use tandem::api::{self, ServerOptions};
use tandem::worker::GenerationEvent;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::app::{BASE, Setup, TestApp, Work, says};

struct Running {
    url: String,
    address: String,
    stop: CancellationToken,
    server: JoinHandle<std::io::Result<()>>,
}

/// Stops after a while that no test waits for.
const PATIENT: ServerOptions = ServerOptions {
    max_connections: 16,
    shutdown_timeout: Duration::from_secs(600),
    header_timeout: Duration::from_secs(600),
    write_timeout: Duration::from_secs(600),
};

async fn listen(app: &TestApp, options: ServerOptions) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    let stop = CancellationToken::new();
    let lifecycle = app.state.lifecycle.clone();
    let server = api::serve(listener, app.router.clone(), lifecycle, options, stop.clone());
    Running { url: format!("http://{address}"), address, stop, server: tokio::spawn(server) }
}

/// Says one letter and then nothing until it is let go.
fn hesitates(go_on: CancellationToken) -> Setup {
    let script = move |work: Work| -> BoxFuture<'static, ()> {
        let go_on = go_on.clone();
        Box::pin(async move {
            let started = GenerationEvent::Prefilled { cached_tokens: 0, prompt: Vec::new() };
            let _ = work.events.send(started).await;
            tokio::select! {
                () = go_on.cancelled() => says(&["done"])(work).await,
                () = work.events.clone().closed_owned() => {}
            }
        })
    };
    Setup::new(Arc::new(script))
}

/// `closed`, without borrowing from the work that goes on.
trait ClosedOwned {
    fn closed_owned(self) -> BoxFuture<'static, ()>;
}

impl ClosedOwned for tokio::sync::mpsc::Sender<GenerationEvent> {
    fn closed_owned(self) -> BoxFuture<'static, ()> {
        Box::pin(async move { self.closed().await })
    }
}

async fn stream(client: &reqwest::Client, url: &str) -> reqwest::Response {
    let body = json!({"model": BASE, "prompt": "x", "stream": true});
    let call = client.post(format!("{url}/v1/completions")).json(&body);
    call.send().await.expect("the head of a stream")
}

async fn rest(response: reqwest::Response) -> String {
    let mut chunks = response.bytes_stream();
    let mut text = Vec::new();
    while let Some(Ok(chunk)) = chunks.next().await {
        text.extend_from_slice(&chunk);
    }
    String::from_utf8(text).expect("text")
}

#[tokio::test]
async fn stopping_lets_a_stream_end_and_refuses_new_work() {
    let go_on = CancellationToken::new();
    let app = hesitates(go_on.clone()).start().await;
    let running = listen(&app, PATIENT).await;
    let client = reqwest::Client::new();
    let response = stream(&client, &running.url).await;
    running.stop.cancel();
    app.state.lifecycle.draining().await;
    let late = stream(&reqwest::Client::new(), &running.url).await;
    assert_eq!(late.status(), StatusCode::SERVICE_UNAVAILABLE);
    go_on.cancel();
    let text = rest(response).await;
    assert!(text.contains("\"d\"") && text.ends_with("data: [DONE]\n\n"), "{text}");
    drop(client);
    running.server.await.expect("no panic").expect("a clean end");
}

#[tokio::test]
async fn a_stream_that_outlasts_the_drain_ends_with_an_error() {
    let app = hesitates(CancellationToken::new()).start().await;
    let options = ServerOptions { shutdown_timeout: Duration::from_millis(50), ..PATIENT };
    let running = listen(&app, options).await;
    let response = stream(&reqwest::Client::new(), &running.url).await;
    running.stop.cancel();
    let text = rest(response).await;
    assert!(text.contains("server_shutting_down") && !text.contains("[DONE]"), "{text}");
    running.server.await.expect("no panic").expect("a clean end");
}

#[tokio::test]
async fn an_idle_server_stops_at_once() {
    let app = TestApp::answering("x").await;
    let running = listen(&app, PATIENT).await;
    let _idle = TcpStream::connect(&running.address).await.expect("a connection");
    running.stop.cancel();
    running.server.await.expect("no panic").expect("a clean end");
}

#[tokio::test]
async fn an_address_that_guesses_keys_is_slowed_down_and_the_right_key_still_opens() {
    let app = Setup { keys: vec!["sk-right"], ..Setup::new(says(&["x"])) }.start().await;
    let running = listen(&app, PATIENT).await;
    let client = reqwest::Client::new();
    let ask = |key: &'static str| {
        client.get(format!("{}/v1/models", running.url)).bearer_auth(key).send()
    };
    let mut last = ask("sk-wrong").await.expect("an answer");
    assert_eq!(last.status(), StatusCode::UNAUTHORIZED);
    for _ in 0..20 {
        last = ask("sk-wrong").await.expect("an answer");
    }
    assert_eq!(last.status(), StatusCode::TOO_MANY_REQUESTS);
    let wait = last.headers()["retry-after"].to_str().expect("text").parse::<u64>();
    assert!((1..=60).contains(&wait.expect("seconds")));
    assert_eq!(ask("sk-right").await.expect("an answer").status(), StatusCode::OK);
}

#[tokio::test]
async fn a_client_who_never_ends_its_headers_is_let_go() {
    let app = TestApp::answering("x").await;
    let options = ServerOptions { header_timeout: Duration::from_millis(50), ..PATIENT };
    let running = listen(&app, options).await;
    let mut socket = TcpStream::connect(&running.address).await.expect("a connection");
    socket.write_all(b"GET /health/live HTTP/1.1\r\nhost: loc").await.expect("room");
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.expect("the end of the connection");
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test]
async fn headers_without_end_are_refused() {
    let app = TestApp::answering("x").await;
    let running = listen(&app, PATIENT).await;
    let mut socket = TcpStream::connect(&running.address).await.expect("a connection");
    let head = format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "y".repeat(100_000));
    // The server may close before it has read it all.
    let _ = socket.write_all(head.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"), "{:?}", answer.get(..40));
}
