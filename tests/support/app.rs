//! The whole application on a device that a test scripts: no socket, no model, no clock.
//!
//! Its tokenizer has one token per byte, so that a test can spell out what the device draws; ids
//! 256 to 258 are `<s>` (put before every text), `</s>` and `<end>` (ends a turn).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use futures::future::BoxFuture;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tandem::api::{self, AppState, Guesses, Keys, Lifecycle, Metrics};
use tandem::artifacts::Artifacts;
use tandem::catalog::{Catalog, CatalogOptions, ServedBase};
use tandem::domain::{
    BaseInfo, FinishReason, GenerationRequest, PromptToken, SampledToken, TokenLogprob,
    TrainingCost,
};
use tandem::engine::Engine;
use tandem::store::Store;
use tandem::text::{TextFiles, TextModel};
use tandem::worker::{Command, GenerationEvent, WorkerHandle, WorkerStats};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tower::ServiceExt;

pub const BASE: &str = "tiny";
pub const CONTEXT: usize = 64;
pub const BOS: u32 = 256;
pub const EOS: u32 = 257;
pub const END_OF_TURN: u32 = 258;

const TEMPLATE: &str = "{% for message in messages %}{{ message.role[0] }}:{{ message.content }}<end>\
                        {% endfor %}{% if add_generation_prompt %}a:{% endif %}";

/// One request as it reaches the device, and the way back.
pub struct Work {
    pub request: GenerationRequest,
    pub stops: Arc<[AtomicBool]>,
    pub events: mpsc::Sender<GenerationEvent>,
}

/// What the device does with a request.
pub type Script = Arc<dyn Fn(Work) -> BoxFuture<'static, ()> + Send + Sync>;

/// The application under test.
pub struct TestApp {
    pub router: Router,
    pub state: AppState,
    /// Every request that reached the device.
    pub seen: Arc<Mutex<Vec<GenerationRequest>>>,
    _folder: TempDir,
}

/// How a [`TestApp`] differs from the plain one.
pub struct Setup {
    pub script: Script,
    pub keys: Vec<&'static str>,
    pub template: bool,
    /// Commands the device's queue holds.
    pub queue: usize,
    /// Whether anybody reads that queue.
    pub alive: bool,
}

impl Setup {
    /// A device that follows `script`, no keys.
    pub fn new(script: Script) -> Self {
        Self { script, keys: Vec::new(), template: true, queue: 64, alive: true }
    }

    pub async fn start(self) -> TestApp {
        let folder = tempfile::tempdir().expect("a folder");
        let seen: Arc<Mutex<Vec<GenerationRequest>>> = Arc::default();
        let base = base();
        let (commands, mut received) = mpsc::channel(self.queue);
        let worker =
            WorkerHandle::new(commands, vec![base.clone()], Arc::new(WorkerStats::default()));
        let (script, log) = (self.script, seen.clone());
        tokio::spawn(async move {
            if !self.alive {
                return std::future::pending().await;
            }
            while let Some(command) = received.recv().await {
                if let Command::Generate { request, stops, events } = command {
                    log.lock().expect("a log").push((*request).clone());
                    tokio::spawn(script(Work { request: *request, stops, events }));
                }
            }
        });
        let path = folder.path().display();
        let store = Store::open(&format!("sqlite://{path}/t.db")).await.expect("a store");
        let artifacts = Artifacts::open(&format!("{path}/artifacts")).expect("artifacts");
        let text = Arc::new(text_model(self.template));
        let bases = vec![ServedBase { info: base, text, pictures: None }];
        let catalog = Catalog::new(store, artifacts, bases, CatalogOptions::default());
        let state = AppState {
            engine: Engine::new(worker, catalog),
            keys: Keys::new(&self.keys),
            guesses: Guesses::default(),
            metrics: Metrics::default(),
            lifecycle: Lifecycle::default(),
        };
        state.lifecycle.set_ready();
        TestApp { router: api::router(state.clone()), state, seen, _folder: folder }
    }
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// The frames of a stream, `[DONE]` as a string.
    pub fn frames(&self) -> Vec<Value> {
        let frames = self.text.split("\n\n").filter_map(|frame| frame.strip_prefix("data: "));
        frames
            .map(|data| match data {
                "[DONE]" => "[DONE]".into(),
                data => serde_json::from_str(data).expect("a frame is JSON"),
            })
            .collect()
    }

    /// `error` of the body, after a look at its form.
    pub fn error(&self) -> Value {
        let body = self.json();
        let error = body["error"].as_object().unwrap_or_else(|| panic!("no error: {}", self.text));
        assert_eq!(error.keys().collect::<Vec<_>>(), ["message", "type", "param", "code"]);
        assert!(error["message"].is_string() && error["type"].is_string());
        body["error"].clone()
    }
}

impl TestApp {
    /// An application whose device answers every choice with `text` and its end.
    pub async fn answering(text: &'static str) -> Self {
        Setup::new(says(&[text])).start().await
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

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(request(Method::POST, path, Body::from(body.to_string()))).await
    }

    /// `POST /v1/completions` with `body` over a plain request.
    pub async fn complete(&self, body: Value) -> Answer {
        self.post("/v1/completions", &merged(json!({"model": BASE, "prompt": "Hi"}), body)).await
    }

    /// `POST /v1/chat/completions` likewise.
    pub async fn chat(&self, body: Value) -> Answer {
        let messages = json!([{"role": "user", "content": "Hi"}]);
        let plain = json!({"model": BASE, "messages": messages});
        self.post("/v1/chat/completions", &merged(plain, body)).await
    }

    /// The only request the device saw.
    pub fn only_request(&self) -> GenerationRequest {
        let seen = self.seen.lock().expect("a log");
        assert_eq!(seen.len(), 1);
        seen[0].clone()
    }
}

pub fn request(method: Method, path: &str, body: Body) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json")
        .body(body)
        .expect("a request")
}

fn merged(mut plain: Value, over: Value) -> Value {
    for (key, value) in over.as_object().expect("an object") {
        plain[key] = value.clone();
    }
    plain
}

/// Choice `i` of every request says `texts[i % texts.len()]`, a byte per token, and then ends; its
/// tokens have log-probability `-(i + 1)`, and `!` is always half as likely as they are.
pub fn says(texts: &[&'static str]) -> Script {
    let texts = texts.to_vec();
    Arc::new(move |work| Box::pin(answer(work, texts.clone())))
}

async fn answer(work: Work, texts: Vec<&'static str>) {
    let Work { request, stops, events } = work;
    let prompt = request.sampling.prompt_logprobs.map_or_else(Vec::new, |top| {
        request.prompt.iter().enumerate().map(|(at, &token)| scored(at, token, top)).collect()
    });
    let cached_tokens = request.prompt.len() / 2;
    if events.send(GenerationEvent::Prefilled { cached_tokens, prompt }).await.is_err() {
        return;
    }
    for choice in 0..request.choices {
        let text = texts[choice % texts.len()].bytes().map(u32::from).chain([EOS]);
        let mut reason = FinishReason::Length;
        for token in text.take(request.sampling.max_tokens) {
            tokio::task::yield_now().await;
            if stops[choice].load(Ordering::Relaxed) {
                break;
            }
            let logprob = -(choice as f32 + 1.0);
            let top =
                request.sampling.logprobs.map_or_else(Vec::new, |top| likely(token, logprob, top));
            let logprob = request.sampling.logprobs.map(|_| logprob);
            let token = SampledToken { token, logprob, top };
            if token.token == EOS {
                reason = FinishReason::Stop;
            }
            if events.send(GenerationEvent::Token { choice, token }).await.is_err() {
                return;
            }
        }
        if events.send(GenerationEvent::Finished { choice, reason }).await.is_err() {
            return;
        }
    }
}

fn likely(token: u32, logprob: f32, top: usize) -> Vec<TokenLogprob> {
    let list = [(token, logprob), (u32::from(b'!'), logprob - std::f32::consts::LN_2)];
    list.into_iter().take(top).map(|(token, logprob)| TokenLogprob { token, logprob }).collect()
}

fn scored(at: usize, token: u32, top: usize) -> PromptToken {
    match at {
        0 => PromptToken { token, logprob: None, top: Vec::new() },
        _ => PromptToken { token, logprob: Some(-0.5), top: likely(token, -0.5, top) },
    }
}

fn base() -> Arc<BaseInfo> {
    Arc::new(BaseInfo {
        name: BASE.into(),
        family: "llama".to_owned(),
        context_length: CONTEXT,
        vocab_size: 259,
        hidden_size: 8,
        num_layers: 1,
        parameters: 1000,
        dtype: "f32".to_owned(),
        size_bytes: 4000,
        fingerprint: "b".repeat(64),
        modules: Vec::new(),
        saveable: Vec::new(),
        default_targets: Vec::new(),
        vision: None,
        training: TrainingCost::default(),
    })
}

/// GPT-2's stand-ins for bytes: printable ones for themselves, the others from U+0100 on.
fn byte_vocabulary(taken: &[(u32, &str)]) -> Value {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut others = (0x100u32..).filter_map(char::from_u32);
    (0..=u8::MAX)
        .map(|byte| {
            let shown =
                if printable(byte) { char::from(byte) } else { others.next().expect("a char") };
            (shown.to_string(), byte)
        })
        .filter(|(_, byte)| taken.iter().all(|(id, _)| *id != u32::from(*byte)))
        .map(|(shown, byte)| (shown, Value::from(byte)))
        .chain(taken.iter().map(|(id, special)| ((*special).to_owned(), Value::from(*id))))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// A `tokenizer.json` with a token per byte, but for the ids that special tokens take; `<s>` stands
/// before every text.
pub fn byte_tokenizer(special_tokens: &[(u32, &str)]) -> String {
    let (bos, _) = special_tokens.iter().find(|(_, text)| *text == "<s>").expect("a first token");
    let special = |(id, content): &(u32, &str)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false, "special": true})
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
                            "use_regex": false});
    let begin = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": special_tokens.iter().map(special).collect::<Vec<_>>(),
        "pre_tokenizer": byte_level, "decoder": byte_level,
        "post_processor": {"type": "TemplateProcessing",
            "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [bos], "tokens": ["<s>"]}}},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "byte_fallback": false,
            "vocab": byte_vocabulary(special_tokens), "merges": []},
    })
    .to_string()
}

pub fn text_model(template: bool) -> TextModel {
    let tokenizer = byte_tokenizer(&[(BOS, "<s>"), (EOS, "</s>"), (END_OF_TURN, "<end>")]);
    let config = json!({"bos_token": "<s>", "eos_token": "</s>"}).to_string();
    let files = TextFiles {
        tokenizer: tokenizer.as_bytes(),
        tokenizer_config: Some(config.as_bytes()),
        chat_template: template.then_some(TEMPLATE),
        ..TextFiles::default()
    };
    TextModel::from_bytes(&files, None).expect("a text model")
}
