//! What holds for every route: keys, errors in one form, ids, limits, draining.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use serde_json::{Value, json};

use crate::support::app::{Answer, BASE, Setup, TestApp, request, says};

const KEY: &str = "sk-a-secret-key";

async fn locked() -> TestApp {
    Setup { keys: vec!["sk-other", KEY], ..Setup::new(says(&["x"])) }.start().await
}

fn with(method: Method, path: &str, header: (&str, &str)) -> Request<Body> {
    let mut call = request(method, path, Body::empty());
    let name: axum::http::HeaderName = header.0.parse().expect("a header name");
    call.headers_mut().insert(name, header.1.parse().expect("a header value"));
    call
}

fn assert_form(answer: &Answer, status: StatusCode, code: &str) {
    assert_eq!(answer.status, status, "{}", answer.text);
    assert_eq!(answer.error()["code"], code, "{}", answer.text);
    assert!(answer.headers.contains_key("x-request-id"));
    assert!(answer.headers.contains_key("openai-processing-ms"));
}

#[tokio::test]
async fn every_documented_route_but_the_probes_needs_a_key() {
    let app = locked().await;
    let document = serde_json::to_value(tandem::api::openapi()).expect("a document");
    for (path, item) in document["paths"].as_object().expect("paths") {
        for method in item.as_object().expect("operations").keys() {
            let method: Method = method.to_uppercase().parse().expect("a method");
            let path = path.replace(['{', '}'], "");
            let answer = app.send(request(method.clone(), &path, Body::empty())).await;
            if path.starts_with("/health/") {
                assert_eq!(answer.status, StatusCode::OK, "{path}");
            } else {
                assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{method} {path}");
                assert_eq!(answer.error()["code"], "invalid_api_key");
                assert_eq!(answer.headers["www-authenticate"], "Bearer");
            }
        }
    }
}

#[tokio::test]
async fn a_known_key_opens_and_nothing_else_does() {
    let app = locked().await;
    for value in ["Bearer wrong", "Bearer ", "Bearer", KEY, "Basic c2stYS1zZWNyZXQta2V5"] {
        let answer = app.send(with(Method::GET, "/v1/models", ("authorization", value))).await;
        assert_form(&answer, StatusCode::UNAUTHORIZED, "invalid_api_key");
        assert!(!answer.text.contains("sk-"), "a key is never repeated");
    }
    for value in [format!("Bearer {KEY}"), format!("bearer {KEY}"), "Bearer sk-other".to_owned()] {
        let answer = app.send(with(Method::GET, "/v1/models", ("authorization", &value))).await;
        assert_eq!(answer.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn unknown_paths_and_path_tricks_stay_locked() {
    let app = locked().await;
    let paths = [
        "/nowhere",
        "/v1/nowhere",
        "//v1/models",
        "/health/live/../../v1/models",
        "/docs/../v1/models",
        "/health/%2e%2e/v1/models",
        "/V1/MODELS",
        "/health",
        "/health/live/",
    ];
    for path in paths {
        let answer = app.get(path).await;
        assert!(
            answer.status == StatusCode::UNAUTHORIZED || answer.status == StatusCode::NOT_FOUND,
            "{path}: {}",
            answer.status
        );
        assert!(!answer.text.contains("\"object\":\"list\""), "{path}");
    }
}

#[tokio::test]
async fn pages_without_data_are_open() {
    let app = locked().await;
    let page = app.get("/").await;
    assert_eq!(page.status, StatusCode::OK);
    assert!(page.headers["content-type"].to_str().unwrap().starts_with("text/html"));
    assert!(page.headers.contains_key("content-security-policy"));
    assert_eq!(app.get("/docs/").await.status, StatusCode::OK);
    let document = app.get("/openapi.json").await.json();
    assert_eq!(document, serde_json::to_value(tandem::api::openapi()).unwrap());
}

#[tokio::test]
async fn the_dashboard_loads_nothing_from_elsewhere() {
    let page = TestApp::answering("x").await.get("/").await.text;
    for elsewhere in ["https://", "src=\"http", "href=\"http", "//cdn", "@import"] {
        assert!(!page.contains(elsewhere), "{elsewhere}");
    }
}

#[tokio::test]
async fn pages_of_other_origins_are_kept_out() {
    let app = TestApp::answering("x").await;
    for (header, value) in
        [("origin", "http://evil.example"), ("host", "evil.example:8080"), ("origin", "null")]
    {
        let answer = app.send(with(Method::GET, "/v1/models", (header, value))).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{header}: {value}");
        answer.error();
    }
    let mut own = with(Method::GET, "/v1/models", ("origin", "http://127.0.0.1:8080"));
    own.headers_mut().insert("host", "127.0.0.1:8080".parse().unwrap());
    assert_eq!(app.send(own).await.status, StatusCode::OK);
}

#[tokio::test]
async fn what_does_not_exist_has_the_form_of_every_error() {
    let app = TestApp::answering("x").await;
    assert_form(&app.get("/v1/nowhere").await, StatusCode::NOT_FOUND, "unknown_url");
    let wrong = app.send(request(Method::PUT, "/v1/completions", Body::empty())).await;
    assert_form(&wrong, StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed");
    assert!(wrong.headers["allow"].to_str().unwrap().contains("POST"));
}

#[tokio::test]
async fn bodies_that_are_no_json_have_the_form_of_every_error() {
    let app = TestApp::answering("x").await;
    for path in ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"] {
        let broken = app.send(request(Method::POST, path, Body::from("{\"model\": "))).await;
        assert_form(&broken, StatusCode::BAD_REQUEST, "invalid_json");
        let text = with(Method::POST, path, ("content-type", "text/plain"));
        assert_form(
            &app.send(text).await,
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
        );
        let packed = with(Method::POST, path, ("content-encoding", "gzip"));
        assert_form(
            &app.send(packed).await,
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
        );
        // Chats may bring pictures.
        let most = if path == "/v1/chat/completions" { 32 << 20 } else { 4 << 20 };
        let large = Body::from(vec![b' '; most + 1]);
        let large = app.send(request(Method::POST, path, large)).await;
        assert_form(&large, StatusCode::PAYLOAD_TOO_LARGE, "request_too_large");
    }
}

#[tokio::test]
async fn a_plain_request_id_is_kept_and_another_replaced() {
    let app = TestApp::answering("x").await;
    let answer = app.send(with(Method::GET, "/health/live", ("x-request-id", "mine-1"))).await;
    assert_eq!(answer.headers["x-request-id"], "mine-1");
    for id in ["two words", &"x".repeat(129)] {
        let answer = app.send(with(Method::GET, "/health/live", ("x-request-id", id))).await;
        assert!(answer.headers["x-request-id"].to_str().unwrap().starts_with("req_"));
    }
}

#[tokio::test]
async fn models_are_listed_retrieved_and_protected() {
    let app = TestApp::answering("x").await;
    let list = app.get("/v1/models").await.json();
    assert_eq!((&list["object"], &list["data"][0]["id"]), (&json!("list"), &json!(BASE)));
    let model = app.get(&format!("/v1/models/{BASE}")).await.json();
    assert_eq!((&model["object"], &model["parent"]), (&json!("model"), &Value::Null));
    for id in ["ft:tiny:org::abc", "org/name", "org%2Fname", "%C3%A9"] {
        let answer = app.get(&format!("/v1/models/{id}")).await;
        assert_form(&answer, StatusCode::NOT_FOUND, "model_not_found");
    }
    assert!(app.get("/v1/models/org%2Fname").await.text.contains("`org/name`"));
    let base =
        app.send(request(Method::DELETE, &format!("/v1/models/{BASE}"), Body::empty())).await;
    assert_eq!((base.status, &base.error()["param"]), (StatusCode::BAD_REQUEST, &json!("model")));
    let unknown = app.send(request(Method::DELETE, "/v1/models/a:b/c", Body::empty())).await;
    assert_form(&unknown, StatusCode::NOT_FOUND, "model_not_found");
}

#[tokio::test]
async fn text_becomes_tokens_and_tokens_text() {
    let app = TestApp::answering("x").await;
    let body = json!({"model": BASE, "prompt": "Hé", "return_token_strs": true});
    let tokens = app.post("/tokenize", &body).await.json();
    assert_eq!(tokens["tokens"], json!([256, 72, 0xC3, 0xA9]));
    assert_eq!((&tokens["count"], &tokens["max_model_len"]), (&json!(4), &json!(64)));
    let body = json!({"model": BASE, "prompt": "Hé", "add_special_tokens": false});
    let plain = app.post("/tokenize", &body).await.json();
    assert_eq!(plain["tokens"], json!([72, 0xC3, 0xA9]));
    let body = json!({"model": BASE, "messages": [{"role": "user", "content": "a"}]});
    let chat = app.post("/tokenize", &body).await.json();
    assert_eq!(chat["tokens"], json!([117, 58, 97, 258, 97, 58]));
    let body = json!({"model": BASE, "tokens": tokens["tokens"], "skip_special_tokens": true});
    assert_eq!(app.post("/detokenize", &body).await.json(), json!({"prompt": "Hé"}));
    let body = json!({"model": BASE, "tokens": [259]});
    assert_eq!(app.post("/detokenize", &body).await.error()["param"], "tokens");
    let body = json!({"model": BASE, "prompt": "a", "messages": []});
    assert_eq!(app.post("/tokenize", &body).await.error()["param"], "messages");
}

#[tokio::test]
async fn metrics_count_requests_by_route_and_never_by_name() {
    let app = TestApp::answering("there").await;
    app.complete(json!({"prompt": "a canary"})).await;
    app.get("/v1/models/a-canary").await;
    let text = app.get("/metrics").await.text;
    let line =
        "tandem_http_requests_total{method=\"POST\",route=\"/v1/completions\",status=\"200\"} 1";
    assert!(text.contains(line), "{text}");
    assert!(text.contains("tandem_time_to_first_token_seconds_count 1"), "{text}");
    assert!(text.contains("# HELP tandem_requests_waiting"), "{text}");
    assert!(!text.contains("canary"), "{text}");
}

#[tokio::test]
async fn while_draining_probes_say_so_and_new_work_is_refused() {
    let app = TestApp::answering("x").await;
    assert_eq!(app.get("/health/ready").await.status, StatusCode::OK);
    app.state.lifecycle.drain();
    assert_eq!(app.get("/health/live").await.status, StatusCode::OK);
    let ready = app.get("/health/ready").await;
    assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ready.json(), json!({"status": "draining"}));
    let refused = app.complete(json!({})).await;
    assert_form(&refused, StatusCode::SERVICE_UNAVAILABLE, "server_shutting_down");
    assert!(refused.headers.contains_key("retry-after"));
}
