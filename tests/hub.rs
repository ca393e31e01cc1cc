//! `hf:` sources against a small hub of our own: what is fetched, resumed, verified and refused.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tandem::hub::{HubError, HubModel, HubSettings, locate};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub with one model, `org/name`, and the ways in which it misbehaves.
#[derive(Clone, Default)]
struct Hub {
    files: HashMap<String, Vec<u8>>,
    /// Answers of the API other than 200, with their `X-Error-Code`.
    refusal: Option<(u16, &'static str)>,
    /// So many answers with weights break off half-way.
    broken_answers: usize,
    /// A digest for weights that is not theirs.
    wrong_digest: bool,
    /// Where bytes of weights are redirected to.
    bytes_at: Option<String>,
    /// Request lines, each with its authorization and range.
    seen: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    fn new() -> Self {
        let weights = (0..100_000_u32).map(|at| (at % 241) as u8).collect();
        let files = [
            ("config.json", b"{}".to_vec()),
            ("tokenizer.json", br#"{"version": "1.0"}"#.to_vec()),
            ("model.safetensors", weights),
            ("pytorch_model.bin", b"not for us".to_vec()),
            ("small.gguf", b"GGUF".to_vec()),
            ("onnx/model.onnx", b"nor this".to_vec()),
        ];
        let files = files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
        Self { files, ..Self::default() }
    }

    /// Answers until the test ends; its address.
    fn serve(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let mut hub = self.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = hub.answer(stream);
            }
        });
        format!("http://{address}")
    }

    fn answer(&mut self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let request = lines.next().transpose()?.unwrap_or_default();
        let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut headers = HashMap::new();
        for line in lines {
            let line = line?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let header = |name: &str| headers.get(name).cloned().unwrap_or_default();
        let (authorization, range) = (header("authorization"), header("range"));
        self.seen.lock().expect("no panic").push(format!("{path} {authorization} {range}"));
        if path.starts_with("/api/") {
            return match self.refusal {
                Some((status, code)) => write!(
                    stream,
                    "HTTP/1.1 {status} No\r\nX-Error-Code: {code}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                ),
                None => respond(&mut stream, "200 OK", "", self.listing().as_bytes()),
            };
        }
        let name = path.rsplit('/').next().unwrap_or_default();
        if let (Some(host), "model.safetensors") = (&self.bytes_at, name) {
            let head = format!("Location: {host}/cdn/{name}\r\n");
            return respond(&mut stream, "302 Found", &head, b"");
        }
        let Some(bytes) = self.files.get(name) else {
            return respond(&mut stream, "404 Not Found", "", b"");
        };
        self.send(&mut stream, name, &bytes.clone(), &range)
    }

    fn send(
        &mut self,
        stream: &mut TcpStream,
        name: &str,
        bytes: &[u8],
        range: &str,
    ) -> std::io::Result<()> {
        let from: usize =
            range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap_or(0);
        let rest = &bytes[from..];
        let (status, head) = match from {
            0 => ("200 OK", String::new()),
            _ => (
                "206 Partial Content",
                format!("Content-Range: bytes {from}-{}/{}\r\n", bytes.len() - 1, bytes.len()),
            ),
        };
        if name == "model.safetensors" && self.broken_answers > 0 {
            self.broken_answers -= 1;
            let half = &rest[..rest.len() / 2];
            write!(stream, "HTTP/1.1 {status}\r\n{head}Content-Length: {}\r\n\r\n", rest.len())?;
            return stream.write_all(half);
        }
        respond(stream, status, &head, rest)
    }

    fn listing(&self) -> String {
        let files = self.files.iter().map(|(name, bytes)| {
            let mut sha256 = hex::encode(Sha256::digest(bytes));
            if self.wrong_digest {
                sha256.replace_range(0..4, "0000");
            }
            match name.ends_with(".safetensors") {
                true => serde_json::json!({"rfilename": name, "size": bytes.len(),
                    "lfs": {"sha256": sha256, "size": bytes.len(), "pointerSize": 130}}),
                false => serde_json::json!({"rfilename": name, "size": bytes.len()}),
            }
        });
        let files: Vec<_> = files.collect();
        serde_json::json!({"id": "org/name", "sha": COMMIT, "siblings": files}).to_string()
    }

    fn seen(&self, part: &str) -> Vec<String> {
        let seen = self.seen.lock().expect("no panic");
        seen.iter().filter(|line| line.contains(part)).cloned().collect()
    }
}

fn respond(stream: &mut TcpStream, status: &str, head: &str, body: &[u8]) -> std::io::Result<()> {
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\n{head}Content-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    stream.write_all(body)
}

fn settings(cache: &Path, endpoint: String) -> HubSettings {
    let (cache, pause) = (cache.to_owned(), Duration::ZERO);
    HubSettings { cache, endpoint, token: None, offline: false, pause }
}

fn model(text: &str) -> HubModel {
    HubModel::parse(text).expect("a name")
}

fn refused(hub: &Hub, text: &str) -> HubError {
    let cache = tempfile::tempdir().expect("a temporary folder");
    let settings = settings(cache.path(), hub.serve());
    locate(&model(text), &settings).expect_err("must be refused")
}

#[test]
fn a_model_is_fetched_once_and_only_what_it_needs() {
    let (hub, cache) = (Hub::new(), tempfile::tempdir().expect("a temporary folder"));
    let settings = settings(cache.path(), hub.serve());
    let folder = locate(&model("org/name"), &settings).expect("a folder");
    assert_eq!(folder, cache.path().join("models--org--name/snapshots").join(COMMIT));
    let weights = std::fs::read(folder.join("model.safetensors")).expect("weights");
    assert_eq!(weights, hub.files["model.safetensors"]);
    let link = std::fs::read_link(folder.join("model.safetensors")).expect("a link");
    assert_eq!(link, Path::new("../../blobs").join(hex::encode(Sha256::digest(&weights))));
    assert!(hub.seen(".bin").is_empty() && hub.seen("onnx").is_empty());
    // A second start finds it without asking, also offline and under its commit.
    let offline = HubSettings { endpoint: "http://127.0.0.1:1".into(), offline: true, ..settings };
    assert_eq!(locate(&model("org/name"), &offline).expect("cached"), folder);
    assert_eq!(locate(&model(&format!("org/name@{COMMIT}")), &offline).expect("cached"), folder);
}

#[test]
fn a_gguf_file_comes_alone_and_an_unnamed_one_is_suggested() {
    let cache = tempfile::tempdir().expect("a temporary folder");
    let mut hub = Hub::new();
    let settings = settings(cache.path(), hub.serve());
    let path = locate(&model("org/name/small.gguf"), &settings).expect("a file");
    assert_eq!(std::fs::read(path).expect("readable"), b"GGUF");
    assert_eq!(hub.seen("/resolve/").len(), 1);
    hub.files.remove("model.safetensors");
    let error = refused(&hub, "org/name").to_string();
    assert!(error.contains("hf:ORG/NAME/FILE: small.gguf"), "{error}");
    let error = refused(&hub, "org/name/large.gguf").to_string();
    assert!(error.contains("no `large.gguf`") && error.contains("small.gguf"), "{error}");
}

#[test]
fn a_broken_download_goes_on_where_it_ended() {
    let cache = tempfile::tempdir().expect("a temporary folder");
    let hub = Hub { broken_answers: 2, ..Hub::new() };
    let settings = settings(cache.path(), hub.serve());
    let folder = locate(&model("org/name"), &settings).expect("a folder");
    let weights = std::fs::read(folder.join("model.safetensors")).expect("weights");
    assert_eq!(weights, hub.files["model.safetensors"]);
    let ranges = hub.seen("model.safetensors");
    assert!(
        ranges[1].ends_with("bytes=50000-") && ranges[2].ends_with("bytes=75000-"),
        "{ranges:?}"
    );
}

#[test]
fn a_download_that_was_killed_goes_on_and_damaged_bytes_are_deleted() {
    let hub = Hub::new();
    let digest = hex::encode(Sha256::digest(&hub.files["model.safetensors"]));
    for (start, expected) in
        [(&hub.files["model.safetensors"][..7], true), (&b"damaged"[..], false)]
    {
        let cache = tempfile::tempdir().expect("a temporary folder");
        let blobs = cache.path().join("models--org--name/blobs");
        let part = blobs.join(format!("{digest}.incomplete"));
        std::fs::create_dir_all(&blobs).expect("a folder");
        std::fs::write(&part, start).expect("a file");
        let found = locate(&model("org/name"), &settings(cache.path(), hub.serve()));
        assert_eq!(found.is_ok(), expected, "{found:?}");
        assert!(!part.exists());
    }
    assert!(hub.seen("model.safetensors").iter().all(|line| line.ends_with("bytes=7-")));
    let damaged = refused(&Hub { wrong_digest: true, ..Hub::new() }, "org/name");
    assert!(matches!(damaged, HubError::Damaged { kind: "SHA-256", .. }), "{damaged}");
}

#[test]
fn the_token_goes_to_the_hub_and_not_where_it_redirects_to() {
    let (cache, elsewhere) = (tempfile::tempdir().expect("a temporary folder"), Hub::new());
    let hub = Hub { bytes_at: Some(elsewhere.serve()), ..Hub::new() };
    let settings =
        HubSettings { token: Some("hf_secret".to_owned()), ..settings(cache.path(), hub.serve()) };
    locate(&model("org/name"), &settings).expect("a folder");
    assert!(hub.seen("").iter().all(|line| line.contains("Bearer hf_secret")));
    assert_eq!((elsewhere.seen("/cdn/").len(), elsewhere.seen("Bearer").len()), (1, 0));
}

#[test]
fn refusals_say_what_to_do() {
    for (status, code, remedy) in [
        (404, "RepoNotFound", "check the name"),
        (401, "", "for a private model set HF_TOKEN"),
        (404, "RevisionNotFound", "no revision `v9`"),
        (403, "GatedRepo", "accept its terms at http://"),
        (418, "", "answered 418"),
    ] {
        let hub = Hub { refusal: Some((status, code)), ..Hub::new() };
        let error = refused(&hub, "org/name@v9").to_string();
        assert!(error.contains(remedy), "{error}");
    }
    let cache = tempfile::tempdir().expect("a temporary folder");
    let offline =
        HubSettings { offline: true, ..settings(cache.path(), "http://127.0.0.1:1".into()) };
    let error = locate(&model("org/name"), &offline).expect_err("not there").to_string();
    assert!(error.contains("huggingface-cli download org/name --revision main"), "{error}");
    let nobody = HubSettings { offline: false, ..offline };
    let error = locate(&model("org/name"), &nobody).expect_err("nobody answers").to_string();
    assert!(error.contains("cannot be reached"), "{error}");
}

#[test]
fn names_from_the_server_cannot_leave_the_cache() {
    let mut hub = Hub::new();
    hub.files.remove("model.safetensors");
    let index = br#"{"weight_map": {"a": "../../../evil.safetensors"}}"#;
    hub.files.insert("model.safetensors.index.json".to_owned(), index.to_vec());
    let error = refused(&hub, "org/name").to_string();
    assert!(error.contains("no plain name"), "{error}");
}
