//! Fine-tuning jobs over HTTP, on a real model that really trains.

use axum::body::Body;
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::app::request;
use crate::support::workshop::Workshop;

/// Lines that teach one answer; the toy model has nothing else to say afterwards.
fn lines() -> Vec<Value> {
    (0..8).map(|n| json!({"prompt": format!("Say it {n}:"), "completion": "arr"})).collect()
}

/// A short job that learns the lines.
fn quick(file: &str) -> Value {
    json!({
        "model": "tiny",
        "training_file": file,
        "lora": {"r": 8, "target_modules": "all-linear"},
        "method": {"type": "supervised", "supervised": {"hyperparameters": {
            "n_epochs": 10, "batch_size": 4, "learning_rate": 0.02, "checkpoint_steps": 10,
        }}},
    })
}

/// A job that lasts until it is stopped.
fn endless(file: &str) -> Value {
    let mut job = quick(file);
    job["method"]["supervised"]["hyperparameters"] = json!({"max_steps": 1_000_000});
    job
}

#[tokio::test]
async fn a_job_trains_and_its_model_answers_at_once() {
    let shop = Workshop::open().await;
    let before = shop.tokens("tiny", "Say it 3:").await;
    let file = shop.training_file(&lines()).await;
    let mut body = quick(&file);
    body["suffix"] = json!("pirate");
    body["seed"] = json!(7);
    body["metadata"] = json!({"team": "sea"});
    body["validation_file"] =
        json!(shop.training_file(&[json!({"prompt": "Say it 9:", "completion": "arr"})]).await);
    let created = shop.job(&body).await;
    assert_eq!(created["object"], "fine_tuning.job");
    for key in ["error", "fine_tuned_model", "finished_at", "trained_tokens"] {
        assert!(created.get(key).is_some_and(Value::is_null), "{key}");
    }
    assert_eq!((&created["seed"], &created["model"]), (&json!(7), &json!("tiny")));
    let id = created["id"].as_str().expect("an id");
    let job = shop.until(id, "succeeded").await;
    let model = job["fine_tuned_model"].as_str().expect("a model");
    assert_eq!(model, format!("ft:tiny:tandem:pirate:{}", &id[id.len() - 8..]));
    assert_eq!(job["hyperparameters"]["n_epochs"], 10);
    assert_eq!(job["hyperparameters"], job["method"]["supervised"]["hyperparameters"]);
    assert_eq!((&job["step"], &job["total_steps"]), (&json!(20), &json!(20)));
    assert!(job["trained_tokens"].as_i64().is_some_and(|tokens| tokens > 0));
    assert!(job["finished_at"].is_i64());
    assert_eq!(job["metadata"], json!({"team": "sea"}));
    let served = &job["trained_as_served"];
    assert!(served["tokens"].as_i64().is_some_and(|tokens| tokens > 0), "{served}");
    assert!(served["max_abs_logit_difference"].as_f64().is_some_and(|off| off < 1e-3), "{served}");

    assert_eq!(shop.complete(model, "Say it 3:").await, "arr");
    assert_eq!(shop.tokens("tiny", "Say it 3:").await, before);

    let checkpoints = shop.get(&format!("/v1/fine_tuning/jobs/{id}/checkpoints")).await.json();
    let steps: Vec<_> = checkpoints["data"].as_array().expect("a list").iter().collect();
    assert_eq!(steps.iter().map(|c| c["step_number"].clone()).collect::<Vec<_>>(), [20, 10]);
    assert_eq!(steps[1]["fine_tuned_model_checkpoint"], format!("{model}:ckpt-step-10"));
    assert_eq!(checkpoints["first_id"], steps[0]["id"]);
    shop.complete(&format!("{model}:ckpt-step-10"), "Say it 3:").await;

    let result = job["result_files"][0].as_str().expect("a file");
    let csv = shop.get(&format!("/v1/files/{result}/content")).await.text;
    // A heading, the validation before the first step, and every step.
    assert_eq!(csv.lines().count(), 22);

    let again = Workshop::open_in(shop.close().await, &[]).await;
    assert_eq!(again.complete(model, "Say it 3:").await, "arr");
    let gone = again.delete(&format!("/v1/models/{model}")).await.json();
    assert_eq!((&gone["id"], &gone["deleted"]), (&json!(model), &json!(true)));
    let models = again.get("/v1/models").await.json();
    assert!(!models["data"].as_array().expect("models").iter().any(|card| card["id"] == model));
    again.close().await;
}

#[tokio::test]
async fn events_come_in_pages_and_as_a_stream_that_can_be_taken_up_again() {
    let shop = Workshop::open().await;
    let file = shop.training_file(&lines()).await;
    let id = shop.job(&quick(&file)).await["id"].as_str().expect("an id").to_owned();
    let path = format!("/v1/fine_tuning/jobs/{id}/events");
    let streamed = shop.get(&format!("{path}?stream=true")).await;
    assert_eq!(streamed.headers["content-type"], "text/event-stream");
    let (numbers, events) = frames(&streamed.text);
    assert_eq!(numbers, (1..=numbers.len() as i64).collect::<Vec<_>>());
    assert_eq!(shop.job_now(&id).await["status"], "succeeded");
    let messages: Vec<_> = events.iter().filter_map(|event| event["message"].as_str()).collect();
    for expected in [
        format!("Created fine-tuning job: {id}"),
        format!("Validating training file: {file}"),
        "Files validated, moving job to queued state".to_owned(),
        "Fine-tuning job started".to_owned(),
        "The job has successfully completed".to_owned(),
    ] {
        assert!(messages.contains(&&*expected), "{expected}: {messages:?}");
    }
    let metrics: Vec<_> = events.iter().filter(|event| event["type"] == "metrics").collect();
    assert_eq!(metrics.len(), 20);
    for key in ["step", "total_steps", "train_loss", "train_mean_token_accuracy", "learning_rate"] {
        assert!(metrics[0]["data"][key].is_number(), "{key}");
    }
    let loss = |event: &Value| event["data"]["train_loss"].as_f64().expect("a loss");
    assert!(loss(metrics[19]) < loss(metrics[0]) / 2.0);

    let mut later = request(Method::GET, &format!("{path}?stream=true"), Body::empty());
    later.headers_mut().insert("last-event-id", "5".parse().expect("a header"));
    let (rest, _) = frames(&shop.send(later).await.text);
    assert_eq!(rest, numbers[5..]);

    let newest = shop.get(&format!("{path}?limit=3")).await.json();
    assert_eq!(newest["has_more"], true);
    let newest = newest["data"].as_array().expect("a list").clone();
    assert_eq!(newest[0], events[events.len() - 1]);
    let after = newest[2]["id"].as_str().expect("an id");
    let next = shop.get(&format!("{path}?limit=1&after={after}")).await.json();
    assert_eq!(next["data"][0], events[events.len() - 4]);
    shop.close().await;
}

/// The numbers and the objects of a stream that ended with `[DONE]`.
fn frames(text: &str) -> (Vec<i64>, Vec<Value>) {
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    let field = |frame: &str, name: &str| {
        frame.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned))
    };
    text.split("\n\n")
        .filter_map(|frame| Some((field(frame, "id: ")?, field(frame, "data: ")?)))
        .map(|(id, data)| {
            let event = serde_json::from_str(&data).expect("JSON");
            (id.parse::<i64>().expect("a number"), event)
        })
        .unzip()
}

#[tokio::test]
async fn a_job_is_paused_resumed_and_cancelled() {
    let shop = Workshop::open().await;
    let file = shop.training_file(&lines()).await;
    let id = shop.job(&endless(&file)).await["id"].as_str().expect("an id").to_owned();
    let path = |action: &str| format!("/v1/fine_tuning/jobs/{id}/{action}");
    shop.until_job(&id, |job| job["step"].as_i64() > Some(0)).await;
    let early = shop.post(&path("resume"), &json!({})).await;
    assert_eq!(early.status, StatusCode::CONFLICT);
    assert_eq!(early.headers["x-should-retry"], "false");
    let paused = shop.post(&path("pause"), &json!({})).await.json();
    assert_eq!(paused["status"], "paused");
    let checkpoints = shop.until_checkpoint(&id).await;
    let name = checkpoints["data"][0]["fine_tuned_model_checkpoint"].as_str().expect("a name");
    shop.complete(name, "Say it 3:").await;
    let resumed = shop.post(&path("resume"), &json!({})).await.json();
    assert_eq!(resumed["status"], "queued");
    let step = checkpoints["data"][0]["step_number"].as_i64();
    shop.until_job(&id, |job| job["step"].as_i64() > step).await;
    let cancelled = shop.post(&path("cancel"), &json!({})).await.json();
    assert_eq!(cancelled["status"], "cancelled");
    assert!(cancelled["finished_at"].is_i64() && cancelled["fine_tuned_model"].is_null());
    for action in ["cancel", "pause", "resume"] {
        assert_eq!(shop.post(&path(action), &json!({})).await.status, StatusCode::CONFLICT);
    }
    shop.close().await;
}

impl Workshop {
    async fn until_checkpoint(&self, id: &str) -> Value {
        let path = format!("/v1/fine_tuning/jobs/{id}/checkpoints");
        loop {
            let listed = self.get(&path).await.json();
            if listed["data"].as_array().is_some_and(|list| !list.is_empty()) {
                return listed;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn a_repeated_request_with_its_key_makes_one_job() {
    let shop = Workshop::open().await;
    let file = shop.training_file(&lines()).await;
    let send = |body: Value| {
        let body = Body::from(body.to_string());
        let mut request = request(Method::POST, "/v1/fine_tuning/jobs", body);
        request.headers_mut().insert("idempotency-key", "once".parse().expect("a header"));
        shop.send(request)
    };
    let first = send(json!({"model": "tiny", "training_file": file})).await.json();
    let again = send(json!({"training_file": file, "model": "tiny"})).await.json();
    assert_eq!(again["id"], first["id"]);
    let other = send(json!({"model": "tiny", "training_file": file, "suffix": "x"})).await;
    assert_eq!(other.status, StatusCode::UNPROCESSABLE_ENTITY);
    other.error();
    assert_eq!(
        shop.get("/v1/fine_tuning/jobs").await.json()["data"].as_array().map(Vec::len),
        Some(1)
    );
    shop.close().await;
}

#[tokio::test]
async fn requests_that_cannot_be_are_refused_by_their_parameter() {
    let shop = Workshop::open().await;
    let file = shop.training_file(&lines()).await;
    let notes = [("purpose", None, &b"user_data"[..]), ("file", Some("n.txt"), &b"notes"[..])];
    let notes = shop.form("/v1/files", &notes).await.json()["id"].clone();
    for (param, more) in [
        ("training_file", json!({"training_file": "file-none"})),
        ("training_file", json!({"training_file": notes})),
        ("validation_file", json!({"validation_file": "file-none"})),
        ("method.type", json!({"method": {"type": "dpo"}})),
        ("integrations", json!({"integrations": [{"type": "wandb"}]})),
        ("quantization", json!({"quantization": "nf4"})),
        ("lora.target_modules", json!({"lora": {"target_modules": ["c_attn"]}})),
        ("lora.target_modules", json!({"lora": {"target_modules": "(?=q)"}})),
        ("lora.init_adapter", json!({"lora": {"init_adapter": "nobody"}})),
        ("hyperparameters.n_epochs", json!({"hyperparameters": {"n_epochs": 51}})),
        (
            "method.supervised.hyperparameters.max_seq_length",
            json!({"hyperparameters": {"max_seq_length": 4096}}),
        ),
        ("colour", json!({"colour": "red"})),
    ] {
        let mut body = json!({"model": "tiny", "training_file": file});
        body.as_object_mut()
            .expect("an object")
            .extend(more.as_object().expect("an object").clone());
        let answer = shop.post("/v1/fine_tuning/jobs", &body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}", answer.text);
        assert_eq!(answer.error()["param"], param, "{}", answer.text);
    }
    let unknown = json!({"model": "gpt-9", "training_file": file});
    let answer = shop.post("/v1/fine_tuning/jobs", &unknown).await;
    assert_eq!(
        (answer.status, answer.error()["code"].clone()),
        (StatusCode::NOT_FOUND, json!("model_not_found"))
    );
    assert_eq!(shop.get("/v1/fine_tuning/jobs").await.json()["data"], json!([]));
    shop.close().await;
}

#[tokio::test]
async fn a_file_that_the_model_cannot_learn_from_fails_the_job_with_its_lines() {
    let shop = Workshop::open().await;
    let ids = [
        json!({"input_ids": [1, 2], "labels": [1, 2]}),
        json!({"input_ids": [9999], "labels": [1]}),
    ];
    let file = shop.training_file(&ids).await;
    let id = shop.job(&json!({"model": "tiny", "training_file": file})).await["id"].clone();
    let id = id.as_str().expect("an id");
    let job = shop.until(id, "failed").await;
    assert_eq!(job["error"]["code"], "invalid_training_file");
    assert_eq!(job["error"]["param"], "training_file");
    let events = shop.get(&format!("/v1/fine_tuning/jobs/{id}/events")).await.json();
    let listed = events["data"]
        .as_array()
        .expect("a list")
        .iter()
        .find_map(|event| event["data"]["errors"].as_array());
    assert!(
        listed.is_some_and(|errors| errors.iter().all(|error| error["line"] == 2)),
        "{events:#}"
    );
    shop.close().await;
}

#[tokio::test]
async fn every_kind_of_adapter_and_optimizer_comes_through_a_job_and_answers() {
    let shop = Workshop::open().await;
    let file = shop.training_file(&lines()).await;
    let mut body = quick(&file);
    body["seed"] = json!(7);
    body["validation_file"] = json!(file);
    body["lora"] = json!({"use_dora": true, "modules_to_save": ["lm_head", "embed_tokens"],
        "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 4}, "use_rslora": true});
    let hyperparameters = &mut body["method"]["supervised"]["hyperparameters"];
    hyperparameters["optimizer"] = json!("paged_adamw_8bit");
    hyperparameters["optimizer_memory_bytes"] = json!(0);
    hyperparameters["early_stopping"] = json!({"patience": 50});
    hyperparameters["load_best_model_at_end"] = json!(true);
    hyperparameters["loraplus_lr_ratio"] = json!(2);
    let id = shop.job(&body).await["id"].as_str().expect("an id").to_owned();
    let job = shop.until(&id, "succeeded").await;
    assert_eq!(job["hyperparameters"]["optimizer"], "paged_adamw_8bit");
    assert_eq!(job["hyperparameters"]["early_stopping"]["patience"], 50);
    assert_eq!(job["lora"]["modules_to_save"], json!(["lm_head", "model.embed_tokens"]));
    let model = job["fine_tuned_model"].as_str().expect("a model");
    let answer = shop.complete(model, "Say it 3:").await;
    assert!(answer.starts_with("arr"), "{answer}");
    let rest = json!({"model": model, "training_file": file, "lora": {"init_adapter": model}});
    let id = shop.job(&rest).await["id"].as_str().expect("an id").to_owned();
    let job = shop.until(&id, "succeeded").await;
    assert_eq!(job["lora"]["use_dora"], true);
    shop.close().await;
}

#[tokio::test]
async fn a_dry_run_tells_what_would_happen_and_starts_nothing() {
    let shop = Workshop::open().await;
    let file = shop.training_file(&lines()).await;
    let mut body = json!({"model": "tiny", "training_file": file, "dry_run": true});
    let report = shop.post("/v1/fine_tuning/jobs", &body).await.json();
    assert_eq!((&report["ok"], &report["training"]["examples"]), (&json!(true), &json!(8)));
    assert_eq!(report["training"]["format"], "prompt_completion");
    assert_eq!(report["total_steps"], 50);
    assert_eq!(report["hyperparameters"]["batch_size"], 4);
    // Two layers, r 16, in + out of each linear layer: 2 · 16 · (2 · 128 + 2 · 96 + 3 · 192).
    assert_eq!(report["trainable_parameters"], 32768);
    let pieces = report["training"]["samples"][0]["pieces"].as_array().expect("pieces");
    assert!(pieces.iter().any(|piece| piece["trained"] == true));
    let share = report["training"]["trained_share"].as_f64().expect("a share");
    assert!(share > 0.0 && share < 1.0, "{share}");
    assert_eq!(report["overlap"], Value::Null);
    body["validation_file"] = body["training_file"].clone();
    let both = shop.post("/v1/fine_tuning/jobs", &body).await.json();
    assert_eq!(both["overlap"], 8, "every example is in both files");
    body.as_object_mut().expect("an object").shift_remove("validation_file");
    body.as_object_mut().expect("an object").shift_remove("dry_run");
    let same = shop.post("/v1/fine_tuning/preflight", &body).await.json();
    assert_eq!(without_forecast(&same), without_forecast(&report));
    assert_eq!(shop.get("/v1/fine_tuning/jobs").await.json()["data"], json!([]));
    shop.close().await;
}

/// A report without what is measured anew each time.
fn without_forecast(report: &Value) -> Value {
    let mut report = report.clone();
    assert!(report.as_object_mut().expect("an object").shift_remove("forecast").is_some());
    report
}

#[tokio::test]
async fn training_goes_on_from_an_earlier_result() {
    let shop = Workshop::open().await;
    let file = shop.training_file(&lines()).await;
    let first = shop.job(&quick(&file)).await["id"].as_str().expect("an id").to_owned();
    let first = shop.until(&first, "succeeded").await;
    let mut body = quick(&file);
    body["model"] = first["fine_tuned_model"].clone();
    let refused = shop.post("/v1/fine_tuning/jobs", &body).await;
    assert_eq!(refused.error()["param"], "lora");
    body.as_object_mut().expect("an object").shift_remove("lora");
    let second = shop.job(&body).await["id"].as_str().expect("an id").to_owned();
    let done = shop.until(&second, "succeeded").await;
    assert_eq!(done["model"], first["fine_tuned_model"]);
    assert!(done["fine_tuned_model"].as_str().is_some_and(|name| name.starts_with("ft:tiny:")));
    let first_loss = shop.first_loss(first["id"].as_str().expect("an id")).await;
    assert!(shop.first_loss(&second).await < first_loss / 2.0);
    shop.close().await;
}

impl Workshop {
    async fn first_loss(&self, id: &str) -> f64 {
        let events = self.get(&format!("/v1/fine_tuning/jobs/{id}/events?limit=1000")).await.json();
        let events = events["data"].as_array().expect("a list").clone();
        let first = events.iter().rfind(|event| event["type"] == "metrics").expect("a step");
        first["data"]["train_loss"].as_f64().expect("a loss")
    }
}

#[tokio::test]
async fn jobs_are_listed_by_metadata_newest_first() {
    let shop = Workshop::open().await;
    let file = shop.training_file(&lines()).await;
    let mut ids = Vec::new();
    for metadata in [json!({"team": "sea", "run": "1"}), json!({"team": "land"}), Value::Null] {
        let body = json!({"model": "tiny", "training_file": file, "metadata": metadata});
        ids.push(shop.job(&body).await["id"].clone());
    }
    let listed = |query: &'static str| {
        let shop = &shop;
        async move {
            let page = shop.get(&format!("/v1/fine_tuning/jobs?{query}")).await.json();
            let rows = page["data"].as_array().expect("a list").iter().map(|job| job["id"].clone());
            (rows.collect::<Vec<_>>(), page["has_more"].clone())
        }
    };
    assert_eq!(listed("limit=2").await, (vec![ids[2].clone(), ids[1].clone()], json!(true)));
    assert_eq!(listed("metadata[team]=sea&metadata[run]=1").await.0, [ids[0].clone()]);
    assert_eq!(listed("metadata%5Bteam%5D=land").await.0, [ids[1].clone()]);
    assert_eq!(listed("metadata=null").await.0, [ids[2].clone()]);
    for query in ["limit=x", "colour=red", "limit=0"] {
        let answer = shop.get(&format!("/v1/fine_tuning/jobs?{query}")).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{query}");
    }
    for id in &ids {
        let path = format!("/v1/fine_tuning/jobs/{}/cancel", id.as_str().expect("an id"));
        shop.post(&path, &json!({})).await;
    }
    shop.close().await;
}
