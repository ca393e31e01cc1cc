//! `POST /v1/chat/completions`, form by form.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::support::app::{CONTEXT, END_OF_TURN, EOS, Setup, TestApp, says};

fn bytes_of(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

#[tokio::test]
async fn a_conversation_is_answered_through_the_template() {
    let app = TestApp::answering("Hello").await;
    let body = app.chat(json!({})).await.json();
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(body["object"], "chat.completion");
    let message = json!({"role": "assistant", "content": "Hello", "refusal": null});
    let choice = json!({"index": 0, "message": message, "logprobs": null, "finish_reason": "stop"});
    assert_eq!(body["choices"], json!([choice]));
    assert_eq!(body["usage"]["total_tokens"], 7 + 6);
    let seen = app.only_request();
    let expected = [bytes_of("u:Hi"), vec![END_OF_TURN], bytes_of("a:")].concat();
    assert_eq!(seen.prompt, expected);
    assert!(seen.stop_tokens.contains(&EOS) && seen.stop_tokens.contains(&END_OF_TURN));
    assert_eq!(seen.sampling.max_tokens, CONTEXT - 7);
}

#[tokio::test]
async fn every_role_and_form_of_content_is_read() {
    let app = TestApp::answering("x").await;
    let messages = json!([
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "refusal": null, "annotations": [], "audio": null},
        {"role": "tool", "content": "d", "tool_call_id": "call_1"},
    ]);
    let answer = app.chat(json!({"messages": messages})).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    let end = vec![END_OF_TURN];
    let expected = ["s:be brief", "u:a\nb", "a:c", "t:d"].map(bytes_of).join(&END_OF_TURN);
    assert_eq!(app.only_request().prompt, [expected, end, bytes_of("a:")].concat());
}

#[tokio::test]
async fn logprobs_come_with_bytes() {
    let app = TestApp::answering("aé").await;
    let body = app.chat(json!({"logprobs": true, "top_logprobs": 2})).await.json();
    let content = body["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 3, "the end of the turn is no content");
    assert_eq!(content[0]["token"], "a");
    assert_eq!(content[0]["top_logprobs"][0]["token"], "a");
    assert_eq!(content[0]["top_logprobs"][1]["token"], "!");
    assert_eq!(content[1]["token"], "\\xc3");
    assert_eq!(content[1]["bytes"], json!([0xC3]));
    assert_eq!(body["choices"][0]["logprobs"]["refusal"], Value::Null);
    let body = app.chat(json!({"logprobs": true})).await.json();
    assert_eq!(body["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
}

#[tokio::test]
async fn several_choices_are_numbered() {
    let app = Setup::new(says(&["x", "y"])).start().await;
    let body = app.chat(json!({"n": 2})).await.json();
    assert_eq!(body["choices"][0]["message"]["content"], "x");
    assert_eq!(body["choices"][1]["message"]["content"], "y");
    assert_eq!(body["choices"][1]["index"], 1);
}

#[tokio::test]
async fn a_stream_gives_role_content_reason_usage_and_done() {
    let app = TestApp::answering("hi").await;
    let form = json!({"stream": true, "stream_options": {"include_usage": true}});
    let frames = app.chat(form).await.frames();
    let deltas: Vec<_> = frames[..4]
        .iter()
        .map(|frame| {
            assert_eq!(frame["object"], "chat.completion.chunk");
            assert_eq!(
                (&frame["id"], &frame["created"]),
                (&frames[0]["id"], &frames[0]["created"])
            );
            assert_eq!(frame.as_object().unwrap().get("usage"), Some(&Value::Null));
            let choice = &frame["choices"][0];
            assert_eq!(choice["logprobs"], Value::Null);
            (choice["delta"].clone(), choice["finish_reason"].clone())
        })
        .collect();
    assert_eq!(
        deltas,
        [
            (json!({"role": "assistant", "content": ""}), Value::Null),
            (json!({"content": "h"}), Value::Null),
            (json!({"content": "i"}), Value::Null),
            (json!({}), json!("stop")),
        ]
    );
    assert_eq!(frames[4]["choices"], json!([]));
    assert_eq!(frames[4]["usage"]["completion_tokens"], 3);
    assert_eq!(frames[5..], ["[DONE]"]);
}

#[tokio::test]
async fn a_stream_opens_each_choice_and_carries_logprobs() {
    let app = Setup::new(says(&["x", "y"])).start().await;
    let form = json!({"stream": true, "n": 2, "logprobs": true, "return_token_ids": true});
    let frames = app.chat(form).await.frames();
    for index in 0..2 {
        assert_eq!(frames[index]["choices"][0]["index"], index);
        assert_eq!(frames[index]["choices"][0]["delta"]["role"], "assistant");
    }
    assert!(frames[0]["prompt_token_ids"].is_array());
    let content: Vec<_> = frames
        .iter()
        .filter(|frame| frame["choices"][0]["index"] == 1)
        .filter_map(|frame| frame["choices"][0]["logprobs"]["content"][0]["token"].as_str())
        .collect();
    assert_eq!(content, ["y"]);
}

#[tokio::test]
async fn a_stop_string_never_shows() {
    let app = TestApp::answering("one END two").await;
    let form = json!({"stream": true, "stop": " END", "logprobs": true});
    let frames = app.chat(form).await.frames();
    let text: String = frames
        .iter()
        .filter_map(|frame| frame["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(text, "one");
    let tokens: String = frames
        .iter()
        .filter_map(|frame| frame["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .filter_map(|token| token["token"].as_str())
        .collect();
    assert_eq!(tokens, "one");
}

#[tokio::test]
async fn a_model_without_a_template_says_how_to_give_one() {
    let app = Setup { template: false, ..Setup::new(says(&["x"])) }.start().await;
    let answer = app.chat(json!({})).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    let error = answer.error();
    assert_eq!(error["param"], "model");
    assert!(error["message"].as_str().unwrap().contains("template="), "{error}");
}

#[tokio::test]
async fn a_wrong_parameter_is_named() {
    let app = TestApp::answering("x").await;
    let user = |content: Value| json!([{"role": "user", "content": content}]);
    let image = json!([{"type": "image_url", "image_url": {"url": "http://localhost/x"}}]);
    let pairs: serde_json::Map<_, _> = (0..17).map(|i| (i.to_string(), json!("x"))).collect();
    let cases = [
        ("messages", json!([])),
        ("messages", json!("hi")),
        ("messages[0].role", json!([{"role": "narrator", "content": "x"}])),
        ("messages[0].role", json!([{"content": "x"}])),
        ("messages[0]", json!([{"role": "user"}])),
        ("messages[0].content", user(json!(3))),
        ("messages[0].content[0].type", user(image)),
        ("messages[0].content", user(json!("a<end>b"))),
        ("messages[0].colour", json!([{"role": "user", "content": "x", "colour": 1}])),
        ("messages[0].audio", json!([{"role": "assistant", "content": "x", "audio": {"id": "a"}}])),
        ("messages[0]", json!([{"role": "assistant"}])),
        ("messages[0]", json!(["hi"])),
        ("tools", json!([{"type": "function", "function": {"name": "f"}}])),
        ("tool_choice", json!("required")),
        ("parallel_tool_calls", json!(1)),
        ("functions", json!([{"name": "f"}])),
        ("function_call", json!({"name": "f"})),
        ("response_format", json!({"type": "json_object"})),
        ("modalities", json!(["audio"])),
        ("audio", json!({"voice": "x"})),
        ("prediction", json!({"type": "content", "content": "x"})),
        ("web_search_options", json!({})),
        ("store", json!(true)),
        ("service_tier", json!("flex")),
        ("reasoning_effort", json!("high")),
        ("verbosity", json!("low")),
        ("prompt_cache_retention", json!("24h")),
        ("metadata", json!("x")),
        ("metadata", pairs.into()),
        ("top_logprobs", json!(3)),
        ("logprobs", json!(3)),
        ("max_tokens", json!(0)),
        ("max_completion_tokens", json!(-1)),
        ("max_tokens", json!(CONTEXT)),
        ("n", json!(200)),
        ("chat_template", json!("{{ 1 }}")),
        ("chat_template_kwargs", json!({"x": 1})),
        ("best_of", json!(2)),
        ("suffix", json!("x")),
    ];
    for (param, value) in cases {
        let key = param.split('[').next().unwrap();
        let answer = app.chat(json!({key: value})).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{param}: {}", answer.text);
        let error = answer.error();
        let named = error["param"].as_str().unwrap_or_default();
        assert!(named.starts_with(param), "{param}: {error}");
    }
    let answer = app.chat(json!({"logprobs": true, "top_logprobs": 21})).await;
    assert_eq!(answer.error()["param"], "top_logprobs");
    let answer = app.chat(json!({"max_tokens": 3, "max_completion_tokens": 4})).await;
    assert_eq!(answer.error()["param"], "max_tokens");
    assert!(app.seen.lock().unwrap().is_empty(), "nothing wrong reached the device");
}

#[tokio::test]
async fn refusals_of_openai_parameters_say_that_they_are_unsupported() {
    let app = TestApp::answering("x").await;
    let error = app.chat(json!({"response_format": {"type": "json_object"}})).await.error();
    assert_eq!(error["code"], "unsupported_parameter");
    assert_eq!(
        error["message"],
        "`response_format` is not supported unless it is {\"type\": \"text\"}"
    );
}

#[tokio::test]
async fn parameters_that_ask_for_nothing_pass() {
    let app = TestApp::answering("x").await;
    let form = json!({
        "tools": [], "tool_choice": "none", "parallel_tool_calls": false, "functions": null,
        "function_call": "none", "response_format": {"type": "text"}, "modalities": ["text"],
        "audio": null, "prediction": null, "web_search_options": null, "store": false,
        "service_tier": "auto", "reasoning_effort": "none", "verbosity": "medium",
        "metadata": {"a": "b"}, "user": "u", "safety_identifier": "s", "prompt_cache_key": "k",
        "max_tokens": 3, "max_completion_tokens": 3, "temperature": null, "stop": null, "n": null,
        "logit_bias": null, "stream_options": null, "seed": null, "top_logprobs": null,
    });
    let answer = app.chat(form).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    assert_eq!(app.only_request().sampling.max_tokens, 3);
}
