//! Pictures in chat, from a data URL to an answer of a real model.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tandem::api::{self, AppState, Guesses, Keys, Lifecycle, Metrics};
use tandem::artifacts::Artifacts;
use tandem::backend::cpu::CpuBackend;
use tandem::catalog::{Catalog, CatalogOptions, ServedBase};
use tandem::engine::Engine;
use tandem::model::{LoadOptions, ModelSource};
use tandem::pictures::{PictureConfig, PictureReader};
use tandem::store::Store;
use tandem::text::TextModel;
use tandem::text::dataset::{self, Dataset, DatasetError, Limits, Report, TrainOn};
use tandem::worker::{self, BaseSource, WorkerSettings};
use tempfile::TempDir;
use tower::ServiceExt;

use crate::parity::golden;
use crate::support::app::{TestApp, byte_tokenizer, request};

const TOKENS: u64 = 16;

struct Seeing {
    router: Router,
    _folder: TempDir,
}

/// A folder of the golden model with a tokenizer of bytes beside it.
fn model_folder(folder: &TempDir) -> PathBuf {
    let golden = golden::path("llava/clip_default/model");
    let model = folder.path().join("llava");
    std::fs::create_dir(&model).unwrap();
    for file in std::fs::read_dir(golden).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), model.join(file.file_name())).unwrap();
    }
    // Ids of bytes that no UTF-8 text holds.
    let tokenizer = byte_tokenizer(&[(248, "<s>"), (249, "</s>"), (250, "<image>")]);
    std::fs::write(model.join("tokenizer.json"), tokenizer).unwrap();
    let config = json!({"bos_token": "<s>", "eos_token": "</s>"}).to_string();
    std::fs::write(model.join("tokenizer_config.json"), config).unwrap();
    model
}

impl Seeing {
    async fn start(template: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = model_folder(&folder);
        let text = TextModel::from_folder(&model, Some(template)).unwrap();
        let config = PictureConfig::from_folder(&model, 32).unwrap();
        let options = LoadOptions { name: "llava".to_owned(), format: None };
        let bases = vec![BaseSource { source: ModelSource::Folder(model), options }];
        let settings = WorkerSettings { kv_cache_bytes: 4 << 20, ..WorkerSettings::default() };
        let start = || worker::start(|| CpuBackend::new(1), bases, settings);
        let (worker, _thread) = tokio::task::spawn_blocking(start).await.unwrap().unwrap();
        let base = ServedBase {
            info: Arc::clone(&worker.bases()[0]),
            text: Arc::new(text),
            pictures: Some(Arc::new(PictureReader::new(config))),
        };
        let path = folder.path().display();
        let store = Store::open(&format!("sqlite://{path}/t.db")).await.unwrap();
        let artifacts = Artifacts::open(&format!("{path}/artifacts")).unwrap();
        let catalog = Catalog::new(store, artifacts, vec![base], CatalogOptions::default());
        let state = AppState {
            engine: Engine::new(worker, catalog),
            keys: Keys::new::<&str>(&[]),
            guesses: Guesses::default(),
            metrics: Metrics::default(),
            lifecycle: Lifecycle::default(),
        };
        state.lifecycle.set_ready();
        Self { router: api::router(state), _folder: folder }
    }

    /// Says what the user shows and asks.
    async fn chat(&self, content: Value) -> (StatusCode, Value) {
        let messages =
            json!([{"role": "system", "content": "s"}, {"role": "user", "content": content}]);
        let body = json!({"model": "llava", "messages": messages, "temperature": 0,
            "max_tokens": 6, "logprobs": true, "return_token_ids": true});
        let request = request(Method::POST, "/v1/chat/completions", Body::from(body.to_string()));
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap())
    }

    async fn answer(&self, content: Value) -> Value {
        let (status, body) = self.chat(content).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        body
    }

    /// The parameter and the message of a refusal.
    async fn refusal(&self, content: Value) -> (String, String) {
        let (status, body) = self.chat(content).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        let text = |key: &str| body["error"][key].as_str().unwrap_or_default().to_owned();
        (text("param"), text("message"))
    }
}

fn data_url(bytes: &[u8]) -> String {
    format!("data:image/png;base64,{}", STANDARD.encode(bytes))
}

fn golden_picture() -> Vec<u8> {
    std::fs::read(golden::path("llava/clip_default/image.png")).unwrap()
}

/// A PNG of one colour.
fn plain(red: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let picture = image::RgbImage::from_pixel(40, 30, image::Rgb([red, 90, 200]));
    picture.write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Png).unwrap();
    bytes
}

/// A PNG that does not compress: more than a request without pictures may have.
fn noise() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut state = 1u32;
    let mut byte = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let picture = image::RgbImage::from_fn(1300, 1100, |_, _| image::Rgb([byte(), byte(), byte()]));
    picture.write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Png).unwrap();
    assert!(bytes.len() > 4 << 20);
    bytes
}

fn shown(picture: &[u8]) -> Value {
    json!({"type": "image_url", "image_url": {"url": data_url(picture)}})
}

fn said(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

/// What these lines of training data become, read for the golden model.
fn trained(
    lines: &[Value],
    template: &str,
    limits: Limits,
    train_on: TrainOn,
) -> Result<Dataset, DatasetError> {
    let folder = tempfile::tempdir().unwrap();
    let model = model_folder(&folder);
    let base = ServedBase {
        info: Arc::clone(
            &golden::load_from(&mut CpuBackend::new(1), &ModelSource::Folder(model.clone())).info,
        ),
        text: Arc::new(TextModel::from_folder(&model, Some(template)).unwrap()),
        pictures: Some(Arc::new(PictureReader::new(
            PictureConfig::from_folder(&model, 32).unwrap(),
        ))),
    };
    let path = folder.path().join("data.jsonl");
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(&path, format!("\u{feff}{text}")).unwrap();
    let shelf = base.shelf(std::fs::File::open(&path).unwrap());
    let reader = std::io::BufReader::new(std::fs::File::open(&path).unwrap());
    let read = dataset::load(reader, &base.text, &limits, train_on, base.seeing(shelf.as_ref()));
    std::fs::remove_file(&path).unwrap();
    read
}

fn refused(lines: &[Value], template: &str) -> Report {
    match trained(lines, template, Limits::of(true), TrainOn::Completion) {
        Err(DatasetError::Invalid(report)) => *report,
        other => panic!("{other:?}"),
    }
}

fn turn(content: Value, answer: &str) -> Value {
    json!({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": content},
        {"role": "assistant", "content": answer}]})
}

#[test]
fn training_lines_show_pictures_as_chat_does() {
    let one = turn(json!([said("what?"), shown(&golden_picture())]), "it");
    let other = turn(json!([said("what?"), shown(&plain(10))]), "it");
    let both = turn(json!([shown(&plain(10)), shown(&golden_picture())]), "both");
    let words = turn(json!("what?"), "it");
    let lines = [one.clone(), other, both, words, one];
    let Dataset { examples, report } =
        trained(&lines, "llava-v1", Limits::of(true), TrainOn::All).unwrap();
    assert_eq!(examples.iter().map(|e| e.pictures.len()).collect::<Vec<_>>(), [1, 1, 2, 0, 1]);
    assert_eq!(report.duplicates, 1, "the same words with another picture are no duplicate");
    for example in &examples {
        let image = |at: usize| example.pictures.iter().any(|p| p.tokens.contains(&at));
        for (at, (&id, &label)) in example.ids.iter().zip(&example.labels).enumerate() {
            assert_eq!((id == 250, label == -100), (image(at), image(at)));
        }
        for placed in &example.pictures {
            // The file has been deleted meanwhile.
            assert_eq!(placed.picture.read().unwrap().digest, placed.picture.digest());
            assert_eq!(placed.tokens.len() as u64, TOKENS);
        }
    }
    assert_eq!(examples[0].pictures[0].picture.digest(), examples[2].pictures[1].picture.digest());
    assert_eq!(report.longest_tokens, examples[2].ids.len());
    let sample: String = report.samples[0].pieces.iter().map(|piece| &*piece.text).collect();
    assert_eq!(sample.matches("<image>").count(), 1, "{sample}");
}

#[test]
fn bad_pictures_of_training_lines_are_found_by_line_and_place() {
    let url = |url: &str| json!({"type": "image_url", "image_url": {"url": url}});
    let whole = golden_picture();
    let lines = [
        turn(json!([said("what?"), url("https://example.org/a.png")]), "it"),
        turn(json!([shown(&whole), url(&data_url(&whole[..900])), url("data:,")]), "it"),
        turn(json!([shown(&whole)]), "it"),
        turn(json!("an <image> in words"), "it"),
        turn(json!([said("")]), "it"),
    ];
    let report = refused(&lines, "llava-v1");
    let found: Vec<_> = report.errors.iter().map(|f| (f.line, f.path.as_str())).collect();
    let at = |part: usize| format!("$.messages[1].content[{part}].image_url.url");
    let content = "$.messages[1].content";
    let (first, second, third) = (at(1), at(1), at(2));
    let expected = [(1, &*first), (2, &*second), (2, &*third), (4, content), (5, content)];
    assert_eq!(found, expected);
    let told = report.errors[0].to_string();
    assert!(told.contains("not fetched") && told.contains("replace the picture"), "{told}");
    let report = refused(&lines[2..3], "chatml");
    assert!(report.errors[0].to_string().contains("template=llava-v1"));
    let text =
        TextModel::from_folder(&model_folder(&tempfile::tempdir().unwrap()), Some("llava-v1"));
    let line = lines[2].to_string();
    let blind = dataset::load(
        line.as_bytes(),
        &text.unwrap(),
        &Limits::default(),
        TrainOn::Completion,
        None,
    );
    assert!(blind.expect_err("no tower").to_string().contains("sees no pictures"));
}

#[test]
fn a_picture_that_does_not_fit_is_left_out_with_what_follows() {
    let line = turn(json!([shown(&golden_picture())]), "it");
    let cut = |max_seq_length| {
        let limits = Limits { max_seq_length, ..Limits::of(true) };
        trained(std::slice::from_ref(&line), "llava-v1", limits, TrainOn::All).unwrap()
    };
    let whole = cut(128).examples.remove(0);
    let seen = whole.pictures[0].tokens.clone();
    let Dataset { mut examples, report } = cut(seen.end - 1);
    let halved = examples.remove(0);
    assert_eq!((halved.ids.len(), halved.pictures.len()), (seen.start, 0));
    assert!(report.warnings.iter().any(|found| found.to_string().contains("the end is lost")));
    let exact = cut(seen.end).examples.remove(0);
    assert_eq!((exact.ids.len(), exact.pictures.len()), (seen.end, 1));
}

#[tokio::test]
async fn a_picture_is_answered_counted_and_cached() {
    let app = Seeing::start("llava-v1").await;
    let one = app.answer(json!([said("what?"), shown(&golden_picture())])).await;
    let ids: Vec<u64> = serde_json::from_value(one["prompt_token_ids"].clone()).unwrap();
    assert_eq!(ids.iter().filter(|&&id| id == 250).count() as u64, TOKENS);
    let text: Vec<u8> = ids.iter().filter(|&&id| id < 248).map(|&id| id as u8).collect();
    assert_eq!(text, b"s USER: \nwhat? ASSISTANT:");
    assert_eq!(ids[0], 248);
    assert_eq!(one["usage"]["prompt_tokens"], ids.len());
    let again = app.answer(json!([said("what?"), shown(&golden_picture())])).await;
    assert_eq!(again["choices"], one["choices"]);
    assert_eq!(again["usage"]["prompt_tokens_details"]["cached_tokens"], 32);
    let other = app.answer(json!([said("what?"), shown(&plain(10))])).await;
    assert_ne!(other["choices"], one["choices"], "another picture is another question");
    assert_eq!(other["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    let both = json!([shown(&golden_picture()), shown(&plain(10)), said("what?")]);
    let both = app.answer(both).await;
    let difference = both["usage"]["prompt_tokens"].as_u64().unwrap() - ids.len() as u64;
    assert_eq!(difference, TOKENS + 1, "a picture and its line break");
    app.answer(json!([shown(&noise())])).await;
    let words = app.answer(json!("what?")).await;
    assert_eq!(words["usage"]["prompt_tokens"].as_u64(), Some(ids.len() as u64 - TOKENS - 1));
}

#[tokio::test]
async fn bad_pictures_are_refused_by_their_place() {
    let app = Seeing::start("llava-v1").await;
    const URL: &str = "messages[1].content[1].image_url.url";
    let url = |url: &str| json!({"type": "image_url", "image_url": {"url": url}});
    let whole = golden_picture();
    for (bad, word) in [
        (url("http://169.254.169.254/latest/meta-data"), "not fetched"),
        (url("/etc/passwd"), "data URL"),
        (url("data:image/png;base64,????"), "base64"),
        (url(&data_url(b"GIF89a")), "neither PNG"),
        (url(&data_url(&whole[..whole.len() / 2])), "decoded"),
    ] {
        let (param, message) = app.refusal(json!([said("what?"), bad])).await;
        assert!(param == URL && message.contains(word), "{param}: {message}");
    }
    let many: Vec<Value> = (0..8).map(|red| shown(&plain(red))).collect();
    let (_, message) = app.refusal(json!(many)).await;
    assert!(message.contains("context holds 128 tokens"), "{message}");
    let (param, _) = app.refusal(json!("an <image> in words")).await;
    assert_eq!(param, "messages[1].content");
}

#[tokio::test]
async fn a_template_without_a_place_for_pictures_says_what_to_use() {
    let app = Seeing::start("chatml").await;
    let (param, message) = app.refusal(json!([shown(&plain(1))])).await;
    assert_eq!(param, "messages[1].content[0].type");
    assert!(message.contains("template=llava-v1"), "{message}");
}

#[tokio::test]
async fn a_model_that_reads_text_alone_names_the_part() {
    let app = TestApp::answering("x").await;
    let messages = json!([{"role": "user", "content": [said("see"), shown(&plain(1))]}]);
    let answer = app.chat(json!({"messages": messages})).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert_eq!(answer.error()["param"], "messages[0].content[1].type");
}
