//! `POST /v1/completions`, form by form.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::support::app::{BASE, BOS, CONTEXT, EOS, Setup, TestApp, Work, says};

#[tokio::test]
async fn a_prompt_is_answered_with_text_reason_and_usage() {
    let app = TestApp::answering("there").await;
    let answer = app.complete(json!({})).await;
    assert_eq!(answer.status, StatusCode::OK);
    let body = answer.json();
    assert!(body["id"].as_str().unwrap().starts_with("cmpl-"));
    assert!(body["system_fingerprint"].as_str().unwrap().starts_with("fp_"));
    assert_eq!(body["object"], "text_completion");
    assert_eq!(body["model"], BASE);
    let choice = json!({"text": "there", "index": 0, "logprobs": null, "finish_reason": "stop"});
    assert_eq!(body["choices"], json!([choice]));
    assert_eq!(
        body["usage"],
        json!({"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9,
               "prompt_tokens_details": {"cached_tokens": 1}})
    );
    let seen = app.only_request();
    assert_eq!(seen.prompt, [BOS, u32::from(b'H'), u32::from(b'i')]);
    assert_eq!((seen.sampling.max_tokens, seen.choices), (16, 1));
    assert!(seen.stop_tokens.contains(&EOS));
}

#[tokio::test]
async fn prompts_and_choices_are_numbered_prompt_by_prompt() {
    let app = Setup::new(says(&["x", "y"])).start().await;
    let body = app.complete(json!({"prompt": ["a", "b", "c"], "n": 2})).await.json();
    let choices: Vec<_> = body["choices"].as_array().unwrap().iter().collect();
    let texts: Vec<_> = choices.iter().map(|choice| choice["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["x", "y", "x", "y", "x", "y"]);
    let indices: Vec<_> = choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [0, 1, 2, 3, 4, 5]);
    assert_eq!(body["usage"]["completion_tokens"], 12);
    assert_eq!(body["usage"]["prompt_tokens"], 6);
}

#[tokio::test]
async fn more_prompts_than_the_queue_holds_are_all_answered() {
    let app = Setup { queue: 4, ..Setup::new(says(&["x"])) }.start().await;
    let body = app.complete(json!({"prompt": vec!["a"; 200]})).await.json();
    let choices = body["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 200);
    assert!(choices.iter().all(|choice| choice["text"] == "x"));
}

#[tokio::test]
async fn prompts_may_be_token_ids() {
    let app = TestApp::answering("x").await;
    let answer = app.complete(json!({"prompt": [72, 105]})).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(app.only_request().prompt, [72, 105]);
    let body = app.complete(json!({"prompt": [[72], [105, 33]]})).await.json();
    assert_eq!(body["choices"].as_array().unwrap().len(), 2);
    let error = app.complete(json!({"prompt": [72, 259]})).await.error();
    assert_eq!(error["param"], "prompt");
    assert!(error["message"].as_str().unwrap().contains("259"), "{error}");
}

#[tokio::test]
async fn a_null_prompt_is_the_beginning_of_a_text() {
    let app = TestApp::answering("x").await;
    let body = app.complete(json!({"prompt": null, "echo": true})).await.json();
    assert_eq!(body["choices"][0]["text"], "x");
    assert_eq!(app.only_request().prompt, [BOS]);
}

#[tokio::test]
async fn echo_scores_the_prompt_and_shows_only_what_was_written() {
    let app = TestApp::answering("x").await;
    let form = json!({"prompt": "Hé", "echo": true, "logprobs": 1, "max_tokens": 0});
    let body = app.complete(form).await.json();
    let choice = &body["choices"][0];
    assert_eq!(choice["text"], "Hé");
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(body["usage"]["completion_tokens"], 0);
    let logprobs = &choice["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["<s>", "H", "bytes:\\xc3", "bytes:\\xa9"]));
    assert_eq!(logprobs["token_logprobs"], json!([null, -0.5, -0.5, -0.5]));
    assert_eq!(logprobs["top_logprobs"][0], Value::Null);
    assert_eq!(logprobs["top_logprobs"][1], json!({"H": -0.5}));
    assert_eq!(logprobs["text_offset"], json!([0, 0, 1, 1]));
}

#[tokio::test]
async fn echo_precedes_the_answer_and_its_offsets() {
    let app = TestApp::answering("yo").await;
    let form = json!({"prompt": "Hé", "echo": true, "logprobs": 0, "n": 2});
    let body = app.complete(form).await.json();
    for choice in body["choices"].as_array().unwrap() {
        assert_eq!(choice["text"], "Héyo");
        assert_eq!(choice["logprobs"]["text_offset"], json!([0, 0, 1, 1, 2, 3, 4]));
        assert_eq!(choice["logprobs"]["tokens"][6], "</s>");
    }
}

#[tokio::test]
async fn logprobs_hold_the_chosen_token_and_the_likeliest() {
    let app = TestApp::answering("ab").await;
    let body = app.complete(json!({"logprobs": 2})).await.json();
    let logprobs = &body["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["a", "b", "</s>"]));
    assert_eq!(logprobs["token_logprobs"], json!([-1.0, -1.0, -1.0]));
    let top = logprobs["top_logprobs"][0].as_object().unwrap();
    assert_eq!(top.keys().collect::<Vec<_>>(), ["a", "!"]);
    let body = app.complete(json!({"logprobs": 0})).await.json();
    assert_eq!(body["choices"][0]["logprobs"]["top_logprobs"][0], json!({"a": -1.0}));
}

#[tokio::test]
async fn best_of_keeps_the_likeliest_and_counts_them_all() {
    let app = Setup::new(says(&["first", "second", "third"])).start().await;
    let body = app.complete(json!({"n": 2, "best_of": 3})).await.json();
    let texts: Vec<_> =
        body["choices"].as_array().unwrap().iter().map(|choice| &choice["text"]).collect();
    assert_eq!(texts, ["first", "second"]);
    assert_eq!(body["usage"]["completion_tokens"], 6 + 7 + 6);
    assert_eq!(body["choices"][0]["logprobs"], Value::Null);
    assert_eq!(app.only_request().choices, 3);
}

#[tokio::test]
async fn a_stop_string_ends_the_answer_exactly_before_it() {
    let app = TestApp::answering("one##two").await;
    let form = json!({"stop": ["##", "zzz"], "logprobs": 0, "max_tokens": 20});
    let body = app.complete(form).await.json();
    let choice = &body["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("one"), &json!("stop")));
    assert_eq!(choice["logprobs"]["tokens"], json!(["o", "n", "e"]));
    assert_eq!(body["usage"]["completion_tokens"], 5);
}

#[tokio::test]
async fn a_stop_string_stops_the_device() {
    let (told, mut heard) = tokio::sync::mpsc::channel(1);
    let script = move |work: Work| -> futures::future::BoxFuture<'static, ()> {
        let told = told.clone();
        Box::pin(async move {
            let stops = Arc::clone(&work.stops);
            let answer = says(&["aXbbbbbbbbbbbb"])(work);
            answer.await;
            told.send(stops[0].load(Ordering::Relaxed)).await.expect("a listener");
        })
    };
    let app = Setup::new(Arc::new(script)).start().await;
    let body = app.complete(json!({"stop": "X"})).await.json();
    assert_eq!(body["choices"][0]["text"], "a");
    assert_eq!(heard.recv().await, Some(true));
}

#[tokio::test]
async fn a_stop_string_is_not_looked_for_among_the_least_tokens() {
    let app = TestApp::answering("a#b#c").await;
    let body = app.complete(json!({"stop": "#", "min_tokens": 2})).await.json();
    assert_eq!(body["choices"][0]["text"], "a#b");
}

#[tokio::test]
async fn a_stream_gives_deltas_the_reason_the_usage_and_done() {
    let app = TestApp::answering("hi").await;
    let form = json!({"stream": true, "stream_options": {"include_usage": true}});
    let answer = app.complete(form).await;
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    let frames = answer.frames();
    let shown: Vec<_> = frames[..3]
        .iter()
        .map(|frame| {
            assert_eq!(frame["usage"], Value::Null);
            assert!(frame.as_object().unwrap().contains_key("usage"));
            assert_eq!(
                (&frame["id"], &frame["object"]),
                (&frames[0]["id"], &json!("text_completion"))
            );
            let choice = &frame["choices"][0];
            (choice["text"].as_str().unwrap(), choice["finish_reason"].as_str())
        })
        .collect();
    assert_eq!(shown, [("h", None), ("i", None), ("", Some("stop"))]);
    assert_eq!(frames[3]["choices"], json!([]));
    assert_eq!(frames[3]["usage"]["completion_tokens"], 3);
    assert_eq!(frames[3]["usage"]["prompt_tokens_details"]["cached_tokens"], 1);
    assert_eq!(frames[4..], ["[DONE]"]);
}

#[tokio::test]
async fn a_stream_without_usage_does_not_mention_it() {
    let app = TestApp::answering("hi").await;
    let frames = app.complete(json!({"stream": true})).await.frames();
    assert!(frames[..3].iter().all(|frame| frame.get("usage").is_none()));
    assert_eq!(frames.len(), 4);
}

#[tokio::test]
async fn a_stream_never_shows_half_a_character_or_part_of_a_stop_string() {
    let app = TestApp::answering("é€🙂<stop>x").await;
    let form = json!({"stream": true, "stop": "<stop>", "max_tokens": 40});
    let frames = app.complete(form).await.frames();
    let texts: Vec<_> = frames
        .iter()
        .filter_map(|frame| frame["choices"][0]["text"].as_str())
        .filter(|text| !text.is_empty())
        .collect();
    assert_eq!(texts, ["é", "€", "🙂"]);
}

#[tokio::test]
async fn a_stream_echoes_each_choice_before_its_answer() {
    let app = TestApp::answering("x").await;
    let form = json!({"stream": true, "echo": true, "n": 2, "logprobs": 0, "max_tokens": 1});
    let frames = app.complete(form).await.frames();
    assert_eq!(frames[0]["choices"][0]["text"], "Hi");
    assert_eq!(frames[0]["choices"][0]["logprobs"]["tokens"], json!(["<s>", "H", "i"]));
    assert_eq!(frames[1]["choices"][0]["index"], 1);
    assert_eq!(frames[2]["choices"][0]["logprobs"]["text_offset"], json!([2]));
}

#[tokio::test]
async fn token_ids_and_prompt_logprobs_are_given_on_request() {
    let app = TestApp::answering("x").await;
    let body = app.complete(json!({"return_token_ids": true, "prompt_logprobs": 1})).await.json();
    let choice = &body["choices"][0];
    assert_eq!(choice["token_ids"], json!([120, EOS]));
    assert_eq!(choice["prompt_token_ids"], json!([BOS, 72, 105]));
    assert_eq!(choice["prompt_logprobs"][0], Value::Null);
    let entry = json!({"72": {"logprob": -0.5, "decoded_token": "H"}});
    assert_eq!(choice["prompt_logprobs"][1], entry);
}

#[tokio::test]
async fn every_control_reaches_the_device() {
    let app = TestApp::answering("x").await;
    let form = json!({
        "temperature": 0.5, "top_p": 0.25, "top_k": 7, "min_p": 0.125, "repetition_penalty": 1.5,
        "frequency_penalty": -1.0, "presence_penalty": 2.0, "logit_bias": {"65": -100, "66": 1.5},
        "seed": -3, "max_tokens": 5, "min_tokens": 2, "ignore_eos": true, "adapter_scale": 1.0,
        "speculative": false,
        "user": "u",
    });
    assert_eq!(app.complete(form).await.status, StatusCode::OK);
    let sampling = app.only_request().sampling;
    assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k), (0.5, 0.25, 7));
    assert_eq!((sampling.min_p, sampling.repetition_penalty), (0.125, 1.5));
    assert_eq!((sampling.frequency_penalty, sampling.presence_penalty), (-1.0, 2.0));
    assert_eq!(sampling.logit_bias, [(65, -100.0), (66, 1.5)]);
    assert_eq!((sampling.seed, sampling.max_tokens), (-3i64 as u64, 5));
    assert_eq!((sampling.min_tokens, sampling.ignore_eos), (2, true));
}

#[tokio::test]
async fn without_a_seed_each_request_draws_its_own() {
    let app = TestApp::answering("x").await;
    app.complete(json!({})).await;
    app.complete(json!({})).await;
    let seen = app.seen.lock().unwrap();
    assert_ne!(seen[0].sampling.seed, seen[1].sampling.seed);
}

#[tokio::test]
async fn a_wrong_parameter_is_named() {
    let app = TestApp::answering("x").await;
    let bias: serde_json::Map<_, _> = (0..1025).map(|id| (id.to_string(), json!(0))).collect();
    let cases = [
        ("temperature", json!(2.1)),
        ("temperature", json!(-0.1)),
        ("temperature", json!("hot")),
        ("top_p", json!(1.1)),
        ("top_k", json!(-2)),
        ("min_p", json!(2)),
        ("repetition_penalty", json!(0)),
        ("repetition_penalty", json!(-1)),
        ("frequency_penalty", json!(2.5)),
        ("presence_penalty", json!(-2.5)),
        ("n", json!(0)),
        ("n", json!(129)),
        ("n", json!(-1)),
        ("n", json!(1.5)),
        ("n", json!(1e30)),
        ("best_of", json!(21)),
        ("best_of", json!(0)),
        ("logprobs", json!(6)),
        ("logprobs", json!(-1)),
        ("logprobs", json!(true)),
        ("max_tokens", json!(-1)),
        ("max_tokens", json!(CONTEXT)),
        ("max_tokens", json!(u64::MAX)),
        ("min_tokens", json!(-1)),
        ("prompt_logprobs", json!(21)),
        ("seed", json!("x")),
        ("seed", json!(1e300)),
        ("stop", json!([1])),
        ("stop", json!(["a", "b", "c", "d", "e"])),
        ("stop", json!("")),
        ("stop", json!("x".repeat(257))),
        ("logit_bias", json!({"259": 1})),
        ("logit_bias", json!({"x": 1})),
        ("logit_bias", json!({"1": 101})),
        ("logit_bias", bias.into()),
        ("stream", json!("yes")),
        ("stream_options", json!({"include_usage": true})),
        ("adapter_scale", json!(0.5)),
        ("adapter_scale", json!(11)),
        ("suffix", json!("end")),
        ("prompt", json!([])),
        ("prompt", json!([[]])),
        ("prompt", json!([1, "a"])),
        ("prompt", json!([-1])),
        ("prompt", json!({})),
        ("prompt", json!("x".repeat(CONTEXT))),
        ("model", json!(1)),
        ("colour", json!("blue")),
    ];
    for (param, value) in cases {
        let answer = app.complete(json!({param: value})).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{param}: {}", answer.text);
        let error = answer.error();
        let named = error["param"].as_str().unwrap_or_default();
        assert!(named == param || named.starts_with(&format!("{param}[")), "{param}: {error}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    assert!(app.seen.lock().unwrap().is_empty(), "nothing wrong reached the device");
}

#[tokio::test]
async fn combinations_that_cannot_be_are_named() {
    let app = TestApp::answering("x").await;
    let error = app.complete(json!({"n": 3, "best_of": 2})).await.error();
    assert_eq!(error["param"], "best_of");
    let error = app.complete(json!({"stream": true, "best_of": 2})).await.error();
    assert_eq!(error["param"], "best_of");
    let form = json!({"stream": true, "stream_options": {"include_obfuscation": true}});
    let error = app.complete(form).await.error();
    assert_eq!(error["param"], "stream_options.include_obfuscation");
    assert_eq!(error["code"], "unsupported_parameter");
}

#[tokio::test]
async fn missing_parameters_are_named() {
    let app = TestApp::answering("x").await;
    for (param, body) in [("model", json!({"prompt": "x"})), ("prompt", json!({"model": BASE}))] {
        let error = app.post("/v1/completions", &body).await.error();
        assert_eq!(
            (&error["param"], &error["code"]),
            (&json!(param), &json!("missing_required_parameter"))
        );
    }
}

#[tokio::test]
async fn more_than_the_context_is_refused_by_name() {
    let app = TestApp::answering("x").await;
    let answer = app.complete(json!({"max_tokens": CONTEXT - 2})).await;
    assert_eq!(answer.error()["code"], "context_length_exceeded");
    assert_eq!(app.complete(json!({"max_tokens": CONTEXT - 3})).await.status, StatusCode::OK);
    let full = "x".repeat(CONTEXT - 1);
    let error = app.complete(json!({"prompt": full})).await.error();
    assert_eq!(error["code"], "context_length_exceeded");
    let scored = app.complete(json!({"prompt": full, "max_tokens": 0})).await;
    assert_eq!(scored.status, StatusCode::OK);
}

#[tokio::test]
async fn the_default_length_gives_way_to_the_context() {
    let app = TestApp::answering("x").await;
    app.complete(json!({"prompt": "x".repeat(CONTEXT - 5)})).await;
    assert_eq!(app.only_request().sampling.max_tokens, 4);
}
