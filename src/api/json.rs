//! Extractors whose refusals name the parameter at fault.

use std::time::Duration;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use super::{ApiError, wording};

/// Largest JSON body.
pub const MAX_JSON_BYTES: usize = 4 << 20;
/// How long a client may take to send one.
const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// A JSON body. Malformed JSON, a wrong type, a missing and an unknown field are 400s that name the
/// place; the types that it decodes say `deny_unknown_fields`. A route that takes more bytes than
/// others says so here and with `DefaultBodyLimit`.
#[derive(Clone, Copy, Debug)]
pub struct ApiJson<T, const MAX_BYTES: usize = MAX_JSON_BYTES>(pub T);

/// Path parameters, percent-decoded.
#[derive(Clone, Copy, Debug)]
pub struct ApiPath<T>(pub T);

/// Query parameters.
#[derive(Clone, Copy, Debug)]
pub struct ApiQuery<T>(pub T);

impl<T, S, const MAX_BYTES: usize> FromRequest<S> for ApiJson<T, MAX_BYTES>
where
    T: DeserializeOwned,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        check_content(request.headers())?;
        let body = tokio::time::timeout(BODY_DEADLINE, Bytes::from_request(request, state))
            .await
            .map_err(|_| {
                let message = "the body did not arrive within 30 seconds";
                ApiError::new(StatusCode::REQUEST_TIMEOUT, message)
            })?
            .map_err(|rejection| match rejection.status() {
                StatusCode::PAYLOAD_TOO_LARGE => {
                    ApiError::too_large(format!("the body is larger than {MAX_BYTES} bytes"))
                }
                _ => ApiError::new(StatusCode::BAD_REQUEST, "the body could not be read"),
            })?;
        decode(&body).map(Self)
    }
}

/// Decodes a JSON text.
///
/// # Errors
/// A 400 that names the parameter.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    // serde would take a list for a struct, its fields in the order of our source.
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Err(no_object());
    }
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        refusal(&path, &error.into_inner())
    })?;
    deserializer.end().map_err(|error| refusal(".", &error))?;
    Ok(value)
}

fn no_object() -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "the body must be a JSON object")
}

fn check_content(headers: &HeaderMap) -> Result<(), ApiError> {
    let unsupported = |message| {
        ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message).code("unsupported_media_type")
    };
    let encoding = headers.get(header::CONTENT_ENCODING);
    if encoding.is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(unsupported("compressed bodies are not supported; send the JSON as it is"));
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
    let kind = kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    match kind.as_str() {
        "application/json" => Ok(()),
        _ => Err(unsupported("the body must be JSON; send `Content-Type: application/json`")),
    }
}

fn refusal(path: &str, error: &serde_json::Error) -> ApiError {
    let full = error.to_string();
    if error.classify() == Category::Eof && error.line() <= 1 && error.column() == 0 {
        let message = "the body is empty; send a JSON object";
        return ApiError::new(StatusCode::BAD_REQUEST, message).code("invalid_json");
    }
    if error.classify() != Category::Data {
        let message = format!("the body is not valid JSON: {full}");
        return ApiError::new(StatusCode::BAD_REQUEST, message).code("invalid_json");
    }
    let reason = full.rsplit_once(" at line ").map_or(&*full, |(reason, _)| reason);
    let quoted = |reason: &str| reason.split('`').nth(1).unwrap_or_default().to_owned();
    if reason.starts_with("unknown field") {
        let param = child(path, &quoted(reason));
        let message = format!("unrecognized request argument: `{param}`");
        return ApiError::invalid(param, message).code("unknown_parameter");
    }
    if reason.starts_with("missing field") {
        let param = child(path, &quoted(reason));
        let message = format!("`{param}` is required");
        return ApiError::invalid(param, message).code("missing_required_parameter");
    }
    let Some(path) = Some(path).filter(|path| *path != ".") else {
        if reason.starts_with("invalid type") {
            return no_object();
        }
        return ApiError::new(StatusCode::BAD_REQUEST, format!("the body is wrong: {reason}"));
    };
    match reason.strip_prefix(super::refused::MARK) {
        Some(reason) => ApiError::unsupported(path, format!("`{path}` {reason}")),
        None => ApiError::invalid(path, about(path, &wording::of_value(reason))),
    }
}

/// A sentence on `param` that begins with its name.
fn about(param: &str, reason: &str) -> String {
    let colon = if reason.starts_with("must ") { "" } else { ":" };
    format!("`{param}`{colon} {reason}")
}

/// The field `name` below `path`, unless `path` ends with it already.
fn child(path: &str, name: &str) -> String {
    match path {
        "." => name.to_owned(),
        path if path == name || path.ends_with(&format!(".{name}")) => path.to_owned(),
        path => format!("{path}.{name}"),
    }
}

/// `limit: invalid digit found in string`, `foo: unknown field `foo`, expected …`, or another
/// sentence that quotes the parameter.
fn query_refusal(reason: &str) -> ApiError {
    let quoted = || reason.split('`').nth(1).unwrap_or_default();
    let (param, why) = match reason.split_once(": ") {
        Some((param, why)) if !param.contains(' ') => (param, why),
        _ => (quoted(), reason),
    };
    if let Some((_, known)) = why.split_once("unknown field").and(why.split_once("expected ")) {
        let message = format!("unrecognized query parameter: `{param}`; expected {known}");
        return ApiError::invalid(param, message).code("unknown_parameter");
    }
    if param.is_empty() {
        return ApiError::new(StatusCode::BAD_REQUEST, reason);
    }
    ApiError::invalid(param, about(param, wording::of_text(why)))
}

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for ApiPath<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(PathRejection::FailedToDeserializePathParams(error)) => {
                Err(ApiError::new(StatusCode::BAD_REQUEST, error.body_text()))
            }
            Err(error) => Err(ApiError::internal(error)),
        }
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for ApiQuery<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let refused = |error: QueryRejection| {
            let text = error.body_text();
            let reason = text.rsplit_once("query string: ").map_or(&*text, |(_, reason)| reason);
            query_refusal(reason)
        };
        Query::from_request_parts(parts, state)
            .await
            .map(|Query(value)| Self(value))
            .map_err(refused)
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::{Value, json};

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code)]
    struct Inner {
        size: Option<u32>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code)]
    struct Body {
        model: String,
        inner: Option<Inner>,
        list: Option<Vec<Inner>>,
    }

    fn refused(body: &str) -> Value {
        let error = decode::<Body>(body.as_bytes()).expect_err("a wrong body");
        error.body()["error"].clone()
    }

    #[test]
    fn a_body_that_is_no_object_is_told_so() {
        for body in [r#"["m", null, null]"#, "7", r#""text""#, " null"] {
            assert_eq!(refused(body)["message"], "the body must be a JSON object", "{body}");
        }
    }

    #[test]
    fn a_wrong_type_names_its_place() {
        let error = refused(r#"{"model": "m", "list": [{"size": 1}, {"size": "x"}]}"#);
        assert_eq!(error["param"], "list[1].size");
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error["message"].as_str().unwrap().contains("must be a whole number"), "{error}");
    }

    #[test]
    fn unknown_and_missing_fields_are_named() {
        let error = refused(r#"{"model": "m", "inner": {"size": 1, "colour": 2}}"#);
        assert_eq!(
            (&error["param"], &error["code"]),
            (&json!("inner.colour"), &json!("unknown_parameter"))
        );
        assert_eq!(refused(r#"{"model": "m", "colour": 2}"#)["param"], "colour");
        let error = refused("{}");
        assert_eq!(error["param"], "model");
        assert_eq!(error["code"], "missing_required_parameter");
    }

    #[test]
    fn what_is_no_json_is_said_so() {
        for body in ["", "{", "{\"model\": \"m\"} x", "{'model': 1}"] {
            let error = refused(body);
            assert_eq!((&error["code"], &error["param"]), (&json!("invalid_json"), &Value::Null));
        }
        assert_eq!(refused("[]")["param"], Value::Null);
    }

    #[test]
    fn nesting_without_end_is_refused() {
        let body = format!("{{\"model\": {}1", "[".repeat(100_000));
        assert_eq!(refused(&body)["type"], "invalid_request_error");
    }
}
