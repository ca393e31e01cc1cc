//! Files: uploaded, listed, read back, deleted; and everything that is refused.

use axum::body::Body;
use axum::http::{Method, StatusCode};
use serde_json::json;

use crate::support::app::request;
use crate::support::workshop::{Workshop, form, upload};

const GOOD: &[u8] = b"{\"prompt\": \"Hi\", \"completion\": \"Ahoy\"}\n";

#[tokio::test]
async fn a_file_is_kept_listed_read_back_and_deleted() {
    let shop = Workshop::open().await;
    let created = shop.form("/v1/files", &upload("pirate.jsonl", GOOD)).await.json();
    assert_eq!((&created["object"], &created["purpose"]), (&json!("file"), &json!("fine-tune")));
    assert_eq!((&created["bytes"], &created["status"]), (&json!(GOOD.len()), &json!("processed")));
    assert_eq!(created["filename"], "pirate.jsonl");
    let id = created["id"].as_str().expect("an id");
    assert!(id.starts_with("file-"));
    assert_eq!(shop.get(&format!("/v1/files/{id}")).await.json(), created);
    let content = shop.get(&format!("/v1/files/{id}/content")).await;
    assert_eq!(content.text.as_bytes(), GOOD);
    let listed = shop.get("/v1/files").await.json();
    assert_eq!(listed["data"], json!([created]));
    assert_eq!((&listed["first_id"], &listed["has_more"]), (&json!(id), &json!(false)));
    let gone = shop.delete(&format!("/v1/files/{id}")).await.json();
    assert_eq!(gone, json!({"id": id, "object": "file", "deleted": true}));
    for path in [format!("/v1/files/{id}"), format!("/v1/files/{id}/content")] {
        let answer = shop.get(&path).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
        answer.error();
    }
    shop.close().await;
}

#[tokio::test]
async fn a_list_goes_on_behind_its_cursor_in_either_order() {
    let shop = Workshop::open().await;
    let mut ids = Vec::new();
    for number in 0..3 {
        let line = json!({"prompt": number.to_string(), "completion": "x"});
        ids.push(shop.training_file(&[line]).await);
    }
    let page = shop.get("/v1/files?limit=2").await.json();
    assert_eq!((&page["first_id"], &page["last_id"]), (&json!(ids[2]), &json!(ids[1])));
    assert_eq!(page["has_more"], true);
    let rest = shop.get(&format!("/v1/files?limit=2&after={}", ids[1])).await.json();
    assert_eq!((&rest["first_id"], &rest["has_more"]), (&json!(ids[0]), &json!(false)));
    let oldest = shop.get("/v1/files?order=asc&limit=1&purpose=fine-tune").await.json();
    assert_eq!(oldest["first_id"], json!(ids[0]));
    assert_eq!(shop.get("/v1/files?purpose=batch").await.json()["data"], json!([]));
    for (query, param) in
        [("limit=0", "limit"), ("order=up", "order"), ("after=file-x", "after"), ("x=1", "x")]
    {
        let answer = shop.get(&format!("/v1/files?{query}")).await;
        assert_eq!(
            (answer.status, answer.error()["param"].clone()),
            (StatusCode::BAD_REQUEST, json!(param))
        );
    }
    shop.close().await;
}

#[tokio::test]
async fn a_bad_file_is_refused_with_every_bad_line() {
    let shop = Workshop::open().await;
    let lines = [
        r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ahoy"}]}"#,
        r#"{"messages": ["#,
        r#"{"messages": [{"role": "pirate", "content": "Hi"}]}"#,
        r#"[1, 2]"#,
        r#"{"prompt": "Hi", "completion": "Ahoy"}"#,
    ];
    let answer = shop.form("/v1/files", &upload("bad.jsonl", lines.join("\n").as_bytes())).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    let error = answer.json()["error"].clone();
    assert_eq!(
        (&error["param"], &error["code"]),
        (&json!("file"), &json!("invalid_training_file"))
    );
    let found = error["errors"].as_array().expect("a list");
    assert_eq!(error["error_count"], found.len());
    let mut numbers: Vec<_> = found.iter().map(|finding| finding["line"].as_u64()).collect();
    numbers.dedup();
    assert_eq!(numbers, [Some(2), Some(3), Some(4), Some(5)]);
    let role = found.iter().find(|finding| finding["line"] == 3).expect("the third line");
    assert_eq!(role["path"], "$.messages[0].role");
    assert!(found.iter().all(|finding| finding["reason"].is_string()), "{error:#}");
    assert!(error["message"].as_str().is_some_and(|message| message.contains("line 5")));
    assert_eq!(shop.get("/v1/files").await.json()["data"], json!([]));
    let left: Vec<_> = walk(&shop.folder.path().join("artifacts/blobs"));
    assert_eq!(left, Vec::<std::path::PathBuf>::new());
    shop.close().await;
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries =
        std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[tokio::test]
async fn a_file_name_is_a_label_whatever_it_says() {
    let shop = Workshop::open().await;
    for (sent, kept) in [
        ("../../../etc/cron.d/x.jsonl", "x.jsonl"),
        ("/etc/passwd.jsonl", "passwd.jsonl"),
        ("%2e%2e%2fx.jsonl", "%2e%2e%2fx.jsonl"),
    ] {
        let answer = shop.form("/v1/files", &upload(sent, GOOD)).await;
        assert_eq!(answer.json()["filename"], kept, "{}", answer.text);
    }
    for id in ["..", "../x", "%2e%2e", "%00", "file-%2F..%2F..%2Fetc"] {
        let answer = shop.get(&format!("/v1/files/{id}")).await;
        assert!(answer.status.is_client_error(), "{id}: {}", answer.status);
        answer.error();
    }
    shop.close().await;
}

#[tokio::test]
async fn forms_that_cannot_be_are_refused_by_their_part() {
    let shop = Workshop::open().await;
    for (param, parts) in [
        ("purpose", vec![("file", Some("a.jsonl"), GOOD)]),
        ("file", vec![("purpose", None, &b"fine-tune"[..])]),
        ("purpose", vec![("purpose", None, b"fun"), ("file", Some("a.jsonl"), GOOD)]),
        ("file", vec![("purpose", None, b"fine-tune"), ("file", Some("a.txt"), GOOD)]),
        ("file", vec![("file", Some("a.jsonl"), GOOD), ("file", Some("a.jsonl"), GOOD)]),
        ("colour", vec![("colour", None, b"red"), ("file", Some("a.jsonl"), GOOD)]),
        (
            "expires_after[seconds]",
            vec![
                ("purpose", None, b"fine-tune"),
                ("expires_after[anchor]", None, b"created_at"),
                ("expires_after[seconds]", None, b"1"),
                ("file", Some("a.jsonl"), GOOD),
            ],
        ),
    ] {
        let answer = shop.form("/v1/files", &parts).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}", answer.text);
        assert_eq!(answer.error()["param"], param, "{}", answer.text);
    }
    let json = shop.post("/v1/files", &json!({"purpose": "fine-tune"})).await;
    assert_eq!(json.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let mut packed = form("/v1/files", &upload("a.jsonl", GOOD));
    packed.headers_mut().insert("content-encoding", "gzip".parse().expect("a header"));
    assert_eq!(shop.send(packed).await.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let mut broken = form("/v1/files", &upload("a.jsonl", GOOD));
    *broken.body_mut() = Body::from("--line\r\nContent-Disposition: form-data; name=\"fi");
    assert_eq!(shop.send(broken).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(shop.get("/v1/files").await.json()["data"], json!([]));
    shop.close().await;
}

#[tokio::test]
async fn the_same_bytes_under_two_ids_live_until_both_are_gone() {
    let shop = Workshop::open().await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let created = shop.form("/v1/files", &upload("a.jsonl", GOOD)).await.json();
        ids.push(created["id"].as_str().expect("an id").to_owned());
    }
    shop.delete(&format!("/v1/files/{}", ids[0])).await;
    let content = shop.get(&format!("/v1/files/{}/content", ids[1])).await;
    assert_eq!(content.text.as_bytes(), GOOD);
    shop.close().await;
}

#[tokio::test]
async fn a_repeated_upload_with_its_key_makes_one_file() {
    let shop = Workshop::open().await;
    let send = |bytes: &'static [u8]| {
        let mut request = form("/v1/files", &upload("a.jsonl", bytes));
        request.headers_mut().insert("idempotency-key", "once".parse().expect("a header"));
        shop.send(request)
    };
    let first = send(GOOD).await.json();
    assert_eq!(send(GOOD).await.json(), first);
    let other = send(b"{\"prompt\": \"No\", \"completion\": \"way\"}\n").await;
    assert_eq!(other.status, StatusCode::UNPROCESSABLE_ENTITY);
    other.error();
    shop.close().await;
}

#[tokio::test]
async fn the_files_of_one_key_do_not_exist_for_another() {
    let shop = Workshop::with_keys(&["sk-one", "sk-two"]).await;
    let with = |mut request: axum::http::Request<Body>, key: &str| {
        let value = format!("Bearer {key}").parse().expect("a header");
        request.headers_mut().insert("authorization", value);
        shop.send(request)
    };
    let created = with(form("/v1/files", &upload("a.jsonl", GOOD)), "sk-one").await.json();
    let path = format!("/v1/files/{}", created["id"].as_str().expect("an id"));
    let get = |path: &str| request(Method::GET, path, Body::empty());
    assert_eq!(with(get(&path), "sk-one").await.status, StatusCode::OK);
    assert_eq!(with(get(&path), "sk-two").await.status, StatusCode::NOT_FOUND);
    assert_eq!(with(get("/v1/files"), "sk-two").await.json()["data"], json!([]));
    let deletion = request(Method::DELETE, &path, Body::empty());
    assert_eq!(with(deletion, "sk-two").await.status, StatusCode::NOT_FOUND);
    let job = json!({"model": "tiny", "training_file": created["id"]}).to_string();
    let job = request(Method::POST, "/v1/fine_tuning/jobs", Body::from(job));
    assert_eq!(with(job, "sk-two").await.error()["param"], "training_file");
    shop.close().await;
}
