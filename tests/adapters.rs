//! Adapters: PEFT files in and out, names, uploads, folders; used and deleted at the same time.

use std::fs;

use axum::body::Body;
use axum::http::{Method, StatusCode};
use http_body_util::BodyExt;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tandem::domain::{
    AdapterWeights, BaseInfo, LoraSpec, ModuleShape, SaveableModule, TrainingCost,
};
use tandem::peft::{self, AdapterFiles, Fingerprints, PeftError, Provenance};
use tower::ServiceExt;

use crate::support::app::request;
use crate::support::workshop::{Part, Workshop, golden};

fn files(folder: &str) -> AdapterFiles {
    AdapterFiles::from_dir(&golden(folder)).expect("a golden adapter")
}

fn served() -> Fingerprints {
    Fingerprints { base: "b".repeat(64), tokenizer: "t".repeat(64), template: None }
}

fn table(name: &str) -> SaveableModule {
    SaveableModule::table(name, 320, 64)
}

/// The linear layers of `golden/models/llama_gqa`.
fn base() -> BaseInfo {
    let layers = (0..2).flat_map(|layer| {
        let sizes = [
            ("self_attn.q_proj", 64, 64),
            ("self_attn.k_proj", 64, 32),
            ("self_attn.v_proj", 64, 32),
            ("self_attn.o_proj", 64, 64),
            ("mlp.gate_proj", 64, 128),
            ("mlp.up_proj", 64, 128),
            ("mlp.down_proj", 128, 64),
        ];
        sizes.map(|(name, in_features, out_features)| ModuleShape {
            name: format!("model.layers.{layer}.{name}"),
            in_features,
            out_features,
            layer: Some(layer),
        })
    });
    BaseInfo {
        name: "tiny".into(),
        family: "llama".to_owned(),
        context_length: 128,
        vocab_size: 320,
        hidden_size: 64,
        num_layers: 2,
        parameters: 1,
        dtype: "f32".to_owned(),
        size_bytes: 4,
        fingerprint: served().base,
        modules: layers.collect(),
        saveable: ["model.embed_tokens", "lm_head"].map(table).to_vec(),
        default_targets: vec!["q_proj".to_owned(), "v_proj".to_owned()],
        vision: None,
        training: TrainingCost::default(),
    }
}

fn scaling_at(weights: &AdapterWeights, module: &str) -> (usize, f32) {
    let site = weights.sites.iter().find(|site| site.module == module).expect("a site");
    (site.r, site.scaling)
}

#[test]
fn adapters_that_peft_wrote_are_read() {
    let lora = peft::read(&files("lora/llama_lora/adapter"), &base(), &served()).expect("lora");
    assert_eq!(lora.weights.sites.len(), 14);
    assert_eq!(scaling_at(&lora.weights, "model.layers.1.mlp.down_proj"), (4, 2.0));
    let rslora = peft::read(&files("lora/llama_rslora/adapter"), &base(), &served());
    let rslora = rslora.expect("rank-stabilised");
    let expected = (4.0 / 8f64.sqrt()) as f32;
    assert_eq!(scaling_at(&rslora.weights, "model.layers.0.self_attn.q_proj"), (8, expected));
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    for feature in ["lora_bias", "use_qalora", "target_parameters"] {
        let error = peft::read(&with_feature(feature), &base(), &served()).expect_err(feature);
        assert!(matches!(&error, PeftError::Unsupported { feature: found } if found == feature));
    }
    let gpt2 = peft::read(&files("lora/gpt2_lora/adapter"), &base(), &served());
    let error = gpt2.expect_err("another family").to_string();
    assert!(error.contains("match no module") && error.contains("q_proj"), "{error}");
}

/// A sound adapter that says it uses what is not built here.
fn with_feature(feature: &str) -> AdapterFiles {
    let sound = files("lora/llama_rslora/adapter");
    let mut config: Value = serde_json::from_slice(&sound.config).expect("JSON");
    config[feature] = Value::Bool(true);
    AdapterFiles { config: config.to_string().into_bytes(), ..sound }
}

#[test]
fn rank_and_alpha_patterns_hold_where_they_fit() {
    let files = files("lora/llama_patterns/adapter");
    let read = peft::read(&files, &base(), &served()).expect("patterns");
    for (module, expected) in [
        ("model.layers.0.self_attn.q_proj", (4, 2.0)),
        ("model.layers.1.self_attn.q_proj", (2, 4.0)),
        ("model.layers.0.mlp.down_proj", (6, 0.5)),
    ] {
        assert_eq!(scaling_at(&read.weights, module), expected, "{module}");
    }
}

#[test]
fn what_is_written_is_what_peft_reads_back() {
    for (folder, r, alpha) in
        [("llama_lora", 4, 8.0), ("llama_dora", 4, 8.0), ("llama_patterns", 4, 8.0)]
    {
        let theirs = files(&format!("lora/{folder}/adapter"));
        let read = peft::read(&theirs, &base(), &served()).expect(folder);
        let modules = read.weights.sites.iter().map(|site| site.module.clone()).collect();
        let spec = LoraSpec { r, alpha, modules, ..LoraSpec::default() };
        let provenance = Provenance {
            base_model: "tiny".to_owned(),
            fingerprints: served(),
            job: None,
            step: None,
        };
        let ours = peft::write(&read.weights, &spec, &base(), &provenance);
        let again = peft::read(&ours, &base(), &served()).expect("ours");
        assert_eq!(again.weights.sites, read.weights.sites);
        assert_eq!(again.weights.saved, read.weights.saved);
        assert_eq!(again.weights.key, read.weights.key);
        same_files(folder, &ours, &theirs);
    }
}

/// The keys that count, and every byte of every tensor.
fn same_files(case: &str, ours: &AdapterFiles, theirs: &AdapterFiles) {
    let config =
        |files: &AdapterFiles| -> Value { serde_json::from_slice(&files.config).expect("JSON") };
    let (mine, their) = (config(ours), config(theirs));
    for key in [
        "peft_type",
        "task_type",
        "r",
        "lora_alpha",
        "bias",
        "use_rslora",
        "use_dora",
        "modules_to_save",
        "target_modules",
    ] {
        assert_eq!(mine.get(key), their.get(key), "{case}: {key}");
    }
    let tensors = SafeTensors::deserialize(&theirs.tensors).expect("tensors");
    let mine = SafeTensors::deserialize(&ours.tensors).expect("tensors");
    assert_eq!(mine.len(), tensors.len());
    for (name, tensor) in tensors.tensors() {
        let mine = mine.tensor(&name).expect("the same names");
        assert_eq!((mine.shape(), mine.data()), (tensor.shape(), tensor.data()), "{case}: {name}");
    }
}

#[test]
fn no_damage_to_the_files_is_a_panic_or_goes_unnoticed_in_the_header() {
    let whole = files("lora/llama_rslora/adapter");
    let header = 8 + u64::from_le_bytes(whole.tensors[..8].try_into().expect("8 bytes")) as usize;
    for at in (0..header).step_by(7) {
        for flip in [1u8, 0x80] {
            let mut tensors = whole.tensors.clone();
            tensors[at] ^= flip;
            let damaged = AdapterFiles { tensors, ..whole.clone() };
            // Only a change that means the same JSON may pass, and then the numbers are the same.
            if let Ok(read) = peft::read(&damaged, &base(), &served()) {
                let sound = peft::read(&whole, &base(), &served()).expect("the golden adapter");
                assert_eq!(read.weights.sites.len(), sound.weights.sites.len());
            }
        }
    }
}

fn parts<'a>(name: &'a str, files: &'a AdapterFiles) -> Vec<Part<'a>> {
    vec![
        ("name", None, name.as_bytes()),
        ("files", Some("adapter_config.json"), &files.config),
        ("files", Some("adapter_model.safetensors"), &files.tensors),
    ]
}

#[tokio::test]
async fn an_uploaded_adapter_answers_at_once_and_after_a_restart() {
    let shop = Workshop::open().await;
    let plain = shop.tokens("tiny", "Hello").await;
    let lora = files("lora/llama_lora/adapter");
    let answer = shop.form("/v1/adapters", &parts("mine", &lora)).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    let object = answer.json();
    assert_eq!(
        (&object["name"], &object["generation"], &object["r"]),
        (&json!("mine"), &json!(1), &json!(4))
    );
    assert!(object["notes"][0].as_str().is_some_and(|note| note.contains("no fingerprints")));
    let adapted = shop.tokens("mine", "Hello").await;
    assert_ne!(adapted, plain);
    assert_eq!(shop.tokens("tiny", "Hello").await, plain);
    let listed = shop.get("/v1/adapters").await.json();
    assert_eq!(listed["data"][0]["name"], "mine");
    let models = shop.get("/v1/models").await.json();
    let ids: Vec<_> =
        models["data"].as_array().expect("models").iter().map(|m| m["id"].clone()).collect();
    assert_eq!(ids, ["tiny", "mine"]);

    let again = Workshop::open_in(shop.close().await, &[]).await;
    assert_eq!(again.tokens("mine", "Hello").await, adapted);
    let gone = again.delete("/v1/adapters/mine").await.json();
    assert_eq!((&gone["name"], &gone["deleted"]), (&json!("mine"), &json!(true)));
    assert_eq!(again.get("/v1/adapters/mine").await.status, StatusCode::NOT_FOUND);
    let body = json!({"model": "mine", "prompt": "Hello"});
    assert_eq!(again.post("/v1/completions", &body).await.status, StatusCode::NOT_FOUND);
    again.close().await;
}

#[tokio::test]
async fn a_taken_name_is_refused_or_becomes_the_next_generation() {
    let shop = Workshop::open().await;
    let (lora, rslora) = (files("lora/llama_lora/adapter"), files("lora/llama_rslora/adapter"));
    shop.form("/v1/adapters", &parts("mine", &lora)).await;
    let first = shop.tokens("mine", "Hello").await;
    let taken = shop.form("/v1/adapters", &parts("mine", &rslora)).await;
    assert_eq!(
        (taken.status, taken.error()["code"].clone()),
        (StatusCode::CONFLICT, json!("name_taken"))
    );
    assert_eq!(taken.headers["x-should-retry"], "false");
    let mut replacing = parts("mine", &rslora);
    replacing.push(("replace", None, b"true"));
    let replaced = shop.form("/v1/adapters", &replacing).await.json();
    assert_eq!((&replaced["generation"], &replaced["r"]), (&json!(2), &json!(8)));
    assert_ne!(shop.tokens("mine", "Hello").await, first);
    shop.close().await;
}

#[tokio::test]
async fn deleting_an_adapter_does_not_disturb_the_request_that_uses_it() {
    let shop = Workshop::open().await;
    let lora = files("lora/llama_lora/adapter");
    shop.form("/v1/adapters", &parts("mine", &lora)).await;
    let mut body = json!({"model": "mine", "prompt": "Hello", "max_tokens": 100,
        "temperature": 0, "ignore_eos": true});
    let whole = shop.post("/v1/completions", &body).await.json();
    body["stream"] = json!(true);
    let body = Body::from(body.to_string());
    let response =
        shop.router.clone().oneshot(request(Method::POST, "/v1/completions", body)).await;
    let mut stream = response.expect("an answer").into_body();
    let first = stream.frame().await.expect("a frame").expect("data");
    assert_eq!(shop.delete("/v1/adapters/mine").await.status, StatusCode::OK);
    let mut text = first.into_data().expect("data").to_vec();
    text.extend_from_slice(&stream.collect().await.expect("the rest").to_bytes());
    let text = String::from_utf8(text).expect("text");
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    let streamed: String = text
        .split("\n\n")
        .filter_map(|frame| serde_json::from_str::<Value>(frame.strip_prefix("data: ")?).ok())
        .filter_map(|chunk| chunk["choices"][0]["text"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(streamed, whole["choices"][0]["text"].as_str().expect("text"));
    shop.close().await;
}

#[tokio::test]
async fn what_cannot_be_an_adapter_is_refused_with_the_reason() {
    let shop = Workshop::open().await;
    let sound = files("lora/llama_rslora/adapter");
    let bias = with_feature("lora_bias");
    let cut = AdapterFiles {
        tensors: sound.tensors[..sound.tensors.len() - 4].to_vec(),
        ..sound.clone()
    };
    let mut nan = sound.clone();
    let end = nan.tensors.len();
    nan.tensors[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let gpt2 = files("lora/gpt2_lora/adapter");
    for (files, reason) in [
        (&bias, "lora_bias"),
        (&cut, "cannot be read"),
        (&nan, "not finite"),
        (&gpt2, "match no module"),
    ] {
        let answer = shop.form("/v1/adapters", &parts("bad", files)).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}", answer.text);
        let error = answer.error();
        assert_eq!(error["code"], "invalid_adapter");
        assert!(error["message"].as_str().is_some_and(|m| m.contains(reason)), "{error}");
    }
    let lone = [("name", None, &b"bad"[..]), ("f", Some("adapter_config.json"), &sound.config)];
    let answer = shop.form("/v1/adapters", &lone).await;
    assert!(answer.error()["message"].as_str().is_some_and(|m| m.contains("is missing")));
    let pickle = [("name", None, &b"bad"[..]), ("f", Some("adapter_model.bin"), &b"x"[..])];
    assert_eq!(shop.form("/v1/adapters", &pickle).await.status, StatusCode::BAD_REQUEST);
    for name in ["../x", "a/b", "ft:x", "", "tiny"] {
        let answer = shop.form("/v1/adapters", &parts(name, &sound)).await;
        assert_eq!(
            (answer.status, answer.error()["param"].clone()),
            (StatusCode::BAD_REQUEST, json!("name")),
            "{name}"
        );
    }
    assert_eq!(shop.get("/v1/adapters").await.json()["data"], json!([]));
    shop.close().await;
}

#[tokio::test]
async fn folders_are_registered_only_from_beneath_the_root() {
    let shop = Workshop::open().await;
    let root = shop.folder.path().join("root");
    let outside = shop.folder.path().join("outside");
    for folder in [root.join("team/pirate"), outside.clone()] {
        fs::create_dir_all(&folder).expect("a folder");
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            let from = golden("lora/llama_lora/adapter").join(file);
            fs::copy(from, folder.join(file)).expect("a copy");
        }
    }
    std::os::unix::fs::symlink(&outside, root.join("link")).expect("a link");
    let outside = outside.display().to_string();
    for path in ["../outside", "link", &outside, "/etc", ".", "", "nowhere", "team/../../outside"] {
        let answer = shop.post("/v1/adapters", &json!({"name": "p", "path": path})).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path}");
        assert_eq!(answer.error()["param"], "path", "{path}");
    }
    let good = shop.post("/v1/adapters", &json!({"name": "p", "path": "team/pirate"})).await;
    assert_eq!(good.json()["source"], "folder", "{}", good.text);
    fs::remove_dir_all(root.join("team")).expect("removed");
    shop.complete("p", "Hello").await;
    shop.close().await;
}

#[tokio::test]
async fn vllms_routes_load_and_unload() {
    let shop = Workshop::open().await;
    let folder = shop.folder.path().join("root/pirate");
    fs::create_dir_all(&folder).expect("a folder");
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(golden("lora/llama_lora/adapter").join(file), folder.join(file)).expect("a copy");
    }
    let body = json!({"lora_name": "pirate", "lora_path": "pirate"});
    let loaded = shop.post("/v1/load_lora_adapter", &body).await;
    assert_eq!(loaded.text, "Success: LoRA adapter 'pirate' added successfully.");
    shop.complete("pirate", "Hello").await;
    let name = json!({"lora_name": "pirate"});
    let unloaded = shop.post("/v1/unload_lora_adapter", &name).await;
    assert_eq!(unloaded.text, "Success: LoRA adapter 'pirate' removed successfully.");
    let twice = shop.post("/v1/unload_lora_adapter", &name).await;
    assert_eq!(twice.status, StatusCode::NOT_FOUND);
    shop.close().await;
}
