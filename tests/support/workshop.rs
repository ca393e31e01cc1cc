//! The whole server in one process: a tiny real model on a real device thread, jobs that really
//! train, SQLite, and the router, called without a socket.
//!
//! The model is the golden `llama_gqa` under the name `tiny`, with a tokenizer of one token per
//! byte, so that any text can be trained on and answered.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tandem::api::{self, AppState, Guesses, Keys, Lifecycle, Metrics};
use tandem::artifacts::Artifacts;
use tandem::backend::cpu::CpuBackend;
use tandem::catalog::{Catalog, CatalogOptions, ServedBase};
use tandem::engine::Engine;
use tandem::jobs::{LeaseTiming, Preparation, Runner};
use tandem::model::{LoadOptions, ModelSource};
use tandem::store::Store;
use tandem::worker::{self, BaseSource, Worker, WorkerSettings};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::app::{Answer, BASE, request, text_model};

/// Long enough for any job here on a busy machine; a job that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(300);

/// A running server.
pub struct Workshop {
    pub router: Router,
    pub catalog: Catalog,
    pub folder: Arc<TempDir>,
    stop: CancellationToken,
    runner: JoinHandle<()>,
    worker: Worker,
    store: Store,
}

/// The files of the tests' base model.
pub fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

impl Workshop {
    pub async fn open() -> Self {
        Self::open_in(Arc::new(tempfile::tempdir().expect("a folder")), &[]).await
    }

    pub async fn with_keys(keys: &[&str]) -> Self {
        Self::open_in(Arc::new(tempfile::tempdir().expect("a folder")), keys).await
    }

    /// A server on what an earlier one left in `folder`. `folder/root` is its adapter root.
    pub async fn open_in(folder: Arc<TempDir>, keys: &[&str]) -> Self {
        let path = folder.path();
        let root = path.join("root");
        std::fs::create_dir_all(&root).expect("a folder");
        let store = Store::open(&format!("sqlite://{}/t.db", path.display())).await;
        let store = store.expect("a store");
        let artifacts = Artifacts::open(&format!("{}/artifacts", path.display()));
        let artifacts = artifacts.expect("artifacts");
        let (handle, worker) = tokio::task::spawn_blocking(start_worker).await.expect("a thread");
        let text = Arc::new(text_model(true));
        let info = handle.bases()[0].clone();
        let options = CatalogOptions { adapter_root: Some(root), ..CatalogOptions::default() };
        let bases = vec![ServedBase { info, text, pictures: None }];
        let catalog = Catalog::new(store.clone(), artifacts.clone(), bases, options);
        let runner = Runner {
            store: store.clone(),
            artifacts,
            worker: handle.clone(),
            prepare: Arc::new(Preparation::new(catalog.clone(), handle.clone())),
            server_id: "workshop".to_owned(),
            timing: LeaseTiming::default(),
        };
        let stop = CancellationToken::new();
        let runner = tokio::spawn(runner.run(stop.clone()));
        let state = AppState {
            engine: Engine::new(handle, catalog.clone()),
            keys: Keys::new(keys),
            guesses: Guesses::default(),
            metrics: Metrics::default(),
            lifecycle: Lifecycle::default(),
        };
        state.lifecycle.set_ready();
        let router = api::router(state);
        Self { router, catalog, folder, stop, runner, worker, store }
    }

    /// Stops every part and leaves the folder.
    pub async fn close(self) -> Arc<TempDir> {
        self.stop.cancel();
        self.runner.await.expect("the runner ends");
        self.worker.stop();
        drop((self.router, self.catalog));
        self.store.close().await;
        let worker = self.worker;
        let _ = tokio::task::spawn_blocking(move || worker.join()).await;
        self.folder
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.expect("an answer");
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("a body").to_bytes();
        let text = String::from_utf8(bytes.to_vec()).expect("text");
        Answer { status: parts.status, headers: parts.headers, text }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(request(Method::GET, path, Body::empty())).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(request(Method::DELETE, path, Body::empty())).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(request(Method::POST, path, Body::from(body.to_string()))).await
    }

    /// Sends a form; a part with a file name is a file.
    pub async fn form(&self, path: &str, parts: &[Part<'_>]) -> Answer {
        self.send(form(path, parts)).await
    }

    /// Uploads training data and returns its id.
    pub async fn training_file(&self, lines: &[Value]) -> String {
        let jsonl: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let answer = self.form("/v1/files", &upload("train.jsonl", jsonl.as_bytes())).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        answer.json()["id"].as_str().expect("an id").to_owned()
    }

    /// Creates a job that must be accepted.
    pub async fn job(&self, body: &Value) -> Value {
        let answer = self.post("/v1/fine_tuning/jobs", body).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        answer.json()
    }

    pub async fn job_now(&self, id: &str) -> Value {
        self.get(&format!("/v1/fine_tuning/jobs/{id}")).await.json()
    }

    /// Waits until the job's `status` is the one given.
    pub async fn until(&self, id: &str, status: &str) -> Value {
        let ends: HashSet<&str> = ["succeeded", "failed", "cancelled"].into();
        self.until_job(id, |job| {
            let now = job["status"].as_str().expect("a status");
            assert!(now == status || !ends.contains(now), "{job:#}");
            now == status
        })
        .await
    }

    /// Waits until the job looks as wanted.
    pub async fn until_job(&self, id: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut changes = self.store.changes();
        let waiting = async {
            loop {
                let job = self.job_now(id).await;
                if wanted(&job) {
                    return job;
                }
                changes.changed().await.expect("a store");
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("the job gets on")
    }

    /// The ids of a model's greedy answer: a toy's text may be nothing but broken characters.
    pub async fn tokens(&self, model: &str, prompt: &str) -> Value {
        let body = json!({"model": model, "prompt": prompt, "max_tokens": 8, "temperature": 0,
            "ignore_eos": true, "return_token_ids": true});
        let answer = self.post("/v1/completions", &body).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        let ids = answer.json()["choices"][0]["token_ids"].clone();
        assert_eq!(ids.as_array().map(Vec::len), Some(8), "{}", answer.text);
        ids
    }

    /// The text of a model's greedy answer.
    pub async fn complete(&self, model: &str, prompt: &str) -> String {
        let body = json!({"model": model, "prompt": prompt, "max_tokens": 8, "temperature": 0});
        let answer = self.post("/v1/completions", &body).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        answer.json()["choices"][0]["text"].as_str().expect("text").to_owned()
    }
}

fn start_worker() -> (tandem::worker::WorkerHandle, Worker) {
    let folder = golden("models/llama_gqa/model");
    let options = LoadOptions { name: BASE.to_owned(), format: None };
    let base = BaseSource { source: ModelSource::Folder(folder), options };
    let settings = WorkerSettings { kv_cache_bytes: 4 << 20, ..WorkerSettings::default() };
    worker::start(|| CpuBackend::new(1), vec![base], settings).expect("a device thread")
}

/// One part of a form: its name, its file's name if it is one, its bytes.
pub type Part<'a> = (&'a str, Option<&'a str>, &'a [u8]);

/// A training file as a form.
pub fn upload<'a>(filename: &'a str, bytes: &'a [u8]) -> [Part<'a>; 2] {
    [("purpose", None, b"fine-tune"), ("file", Some(filename), bytes)]
}

pub fn form(path: &str, parts: &[Part<'_>]) -> Request<Body> {
    let mut body = Vec::new();
    for (name, filename, bytes) in parts {
        let filename = filename.map(|name| format!("; filename=\"{name}\"")).unwrap_or_default();
        let head =
            format!("--line\r\nContent-Disposition: form-data; name=\"{name}\"{filename}\r\n\r\n");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(bytes);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--line--\r\n");
    let mut request = request(Method::POST, path, Body::from(body));
    let kind = "multipart/form-data; boundary=line".parse().expect("a header");
    request.headers_mut().insert("content-type", kind);
    request
}
