//! `/v1/files`: what clients send to train on, and what jobs leave behind.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::multipart::{Field, MultipartError, MultipartRejection};
use axum::extract::{DefaultBodyLimit, Multipart, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio_util::io::ReaderStream;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ErrorBody;
use super::lists::{idempotency_key, known, order, page};
use super::{ApiError, ApiPath, ApiQuery, AppState, Caller};
use crate::artifacts::Blob;
use crate::catalog::{CatalogError, MAX_FILE_BYTES, Upload};
use crate::domain::FileId;
use crate::store::{File, IdempotencyKey, Page};
use crate::text::dataset::Report;

/// What OpenAI's purposes are for; this server reads `fine-tune` and `batch`.
const PURPOSES: [&str; 6] = ["fine-tune", "batch", "assistants", "vision", "user_data", "evals"];
/// Room for the other parts of a form and the lines between them.
const FORM_BYTES: usize = 1 << 20;
/// The longest text in a form, in bytes.
const TEXT_BYTES: usize = 1024;
/// Bad lines written out in the message; `errors` has more.
const TOLD: usize = 20;

/// A file.
#[derive(Debug, Serialize, ToSchema)]
pub struct FileObject {
    pub id: String,
    /// Always `file`.
    pub object: &'static str,
    pub bytes: u64,
    /// Unix seconds.
    pub created_at: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<i64>,
    pub filename: String,
    pub purpose: String,
    /// `processed` once its bytes are safe and, for a training file, its lines are sound.
    pub status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_details: Option<String>,
}

/// A page of files.
#[derive(Debug, Serialize, ToSchema)]
pub struct FileList {
    /// Always `list`.
    pub object: &'static str,
    pub data: Vec<FileObject>,
    pub first_id: Option<String>,
    pub last_id: Option<String>,
    pub has_more: bool,
}

/// What remains of a deleted file.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeletedFile {
    pub id: String,
    /// Always `file`.
    pub object: &'static str,
    pub deleted: bool,
}

/// The form of an upload.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the form; its parts are read as they arrive")]
pub struct FileForm {
    /// JSON lines, for the purpose `fine-tune`; at most 512 MB.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
    /// `fine-tune`, or another of OpenAI's purposes.
    purpose: String,
    /// Always `created_at`.
    #[schema(rename = "expires_after[anchor]")]
    expires_after_anchor: Option<String>,
    /// 3600 to 2592000.
    #[schema(rename = "expires_after[seconds]")]
    expires_after_seconds: Option<u64>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct ListFiles {
    /// Only files of this purpose.
    purpose: Option<String>,
    /// 1 to 10000.
    limit: Option<i64>,
    /// `asc` or `desc`, by time of creation.
    order: Option<String>,
    /// The id of the last file already seen.
    after: Option<String>,
}

impl From<File> for FileObject {
    fn from(file: File) -> Self {
        Self {
            id: file.id.to_string(),
            object: "file",
            bytes: file.bytes,
            created_at: file.created_at.unix_seconds(),
            expires_at: file.expires_at.map(|time| time.unix_seconds()),
            filename: file.filename,
            purpose: file.purpose,
            status: file.status,
            status_details: file.status_details,
        }
    }
}

pub(super) fn routes() -> OpenApiRouter<AppState> {
    let limit = DefaultBodyLimit::max(MAX_FILE_BYTES as usize + FORM_BYTES);
    OpenApiRouter::new()
        .routes(routes!(create_file))
        .layer(limit)
        .routes(routes!(list_files))
        .routes(routes!(retrieve_file, delete_file))
        .routes(routes!(download_file))
}

/// Why an upload was not kept.
enum Refused {
    Error(ApiError),
    /// With every bad line, beyond the four keys of an error.
    BadLines(Box<Report>),
}

impl<E: Into<ApiError>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        match self {
            Self::Error(error) => error.into_response(),
            Self::BadLines(report) => {
                (StatusCode::BAD_REQUEST, Json(bad_lines(&report))).into_response()
            }
        }
    }
}

fn bad_lines(report: &Report) -> serde_json::Value {
    let mut message = report.summary();
    for finding in report.errors.iter().take(TOLD).skip(1) {
        message.push_str(&format!("\n{finding}"));
    }
    if report.error_count > TOLD as u64 {
        message.push_str(&format!("\nand {} more", report.error_count - TOLD as u64));
    }
    json!({"error": {
        "message": message,
        "type": "invalid_request_error",
        "param": "file",
        "code": "invalid_training_file",
        "error_count": report.error_count,
        "errors": report.errors,
    }})
}

/// `POST /v1/files`: a file for training, streamed to disk. A training file with bad lines is
/// refused, and `error.errors` lists every one with number, JSON path and reason.
#[utoipa::path(
    post, path = "/v1/files", tag = "files",
    request_body(content = FileForm, content_type = "multipart/form-data"),
    params(("Idempotency-Key" = Option<String>, Header, description = "Repeats answer with the first file")),
    responses(
        (status = 200, description = "The file is safe", body = FileObject),
        (status = 400, description = "The form or the file is wrong", body = ErrorBody),
        (status = 413, description = "The file is too large", body = ErrorBody)
    )
)]
async fn create_file(
    State(app): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    form: Result<Multipart, MultipartRejection>,
) -> Result<Json<FileObject>, Refused> {
    let key = idempotency_key(&headers)?;
    refuse_encoding(&headers)?;
    let form = form.map_err(|_| not_a_form())?;
    let catalog = app.engine.catalog();
    let mut parts = Parts::default();
    let read = parts.read(&app, form).await;
    let ready = match read {
        Ok(()) => parts.upload(&caller),
        Err(error) => Err(error),
    };
    let (upload, blob) = match (ready, parts.blob) {
        (Ok(upload), Some(blob)) => (upload, blob),
        (Ok(_), None) => return Err(missing("file").into()),
        (Err(error), blob) => {
            if let Some(blob) = blob {
                catalog.discard(blob).await?;
            }
            return Err(error.into());
        }
    };
    let key = key.map(|key| upload_key(&upload, &blob, key));
    match catalog.create_file(&upload, blob, key.as_ref()).await {
        Ok(created) => Ok(Json(created.into_inner().into())),
        Err(CatalogError::BadLines(report)) => Err(Refused::BadLines(report)),
        Err(error) => Err(error.into()),
    }
}

/// The parts of an upload form, in whatever order they come.
#[derive(Default)]
struct Parts {
    blob: Option<Blob>,
    filename: Option<String>,
    purpose: Option<String>,
    anchor: Option<String>,
    seconds: Option<String>,
}

impl Parts {
    async fn read(&mut self, app: &AppState, mut form: Multipart) -> Result<(), ApiError> {
        while let Some(field) = form.next_field().await.map_err(form_error)? {
            let name = field.name().unwrap_or_default().to_owned();
            match name.as_str() {
                "file" if self.blob.is_none() => {
                    self.filename = Some(plain_name(field.file_name().unwrap_or_default()));
                    self.blob = Some(app.engine.catalog().receive_file(field).await?);
                }
                "file" => return Err(ApiError::invalid("file", "`file` was sent twice")),
                "purpose" => self.purpose = Some(text(field).await?),
                "expires_after[anchor]" => self.anchor = Some(text(field).await?),
                "expires_after[seconds]" => self.seconds = Some(text(field).await?),
                _ => {
                    let name: String = name.chars().take(100).collect();
                    let message = format!("unrecognized request argument: `{name}`");
                    return Err(ApiError::invalid(name, message).code("unknown_parameter"));
                }
            }
        }
        Ok(())
    }

    fn upload(&self, caller: &Caller) -> Result<Upload, ApiError> {
        let purpose = self.purpose.clone().ok_or_else(|| missing("purpose"))?;
        if !PURPOSES.contains(&purpose.as_str()) {
            let message = format!("`purpose` must be one of {}", PURPOSES.join(", "));
            return Err(ApiError::invalid("purpose", message));
        }
        Ok(Upload {
            tenant: caller.tenant.to_string(),
            purpose,
            filename: self.filename.clone().unwrap_or_default(),
            expires_after: self.expires_after()?,
        })
    }

    fn expires_after(&self) -> Result<Option<Duration>, ApiError> {
        match (self.anchor.as_deref(), self.seconds.as_deref()) {
            (None, None) => Ok(None),
            (Some("created_at"), Some(seconds)) => match seconds.parse() {
                Ok(seconds @ 3600..=2_592_000) => Ok(Some(Duration::from_secs(seconds))),
                _ => {
                    let message = "`expires_after[seconds]` must be 3600 to 2592000";
                    Err(ApiError::invalid("expires_after[seconds]", message))
                }
            },
            _ => {
                let message = "`expires_after[anchor]` must be `created_at`, and \
                               `expires_after[seconds]` must be there too";
                Err(ApiError::invalid("expires_after[anchor]", message))
            }
        }
    }
}

fn upload_key(upload: &Upload, blob: &Blob, key: String) -> IdempotencyKey {
    let said = [&*blob.sha256, &upload.purpose, &upload.filename].join("\n");
    IdempotencyKey {
        tenant: upload.tenant.clone(),
        route: "POST /v1/files".to_owned(),
        key,
        body_sha256: hex::encode(Sha256::digest(said)),
    }
}

/// A text part of a form, up to a kilobyte.
pub(super) async fn text(mut field: Field<'_>) -> Result<String, ApiError> {
    let name = field.name().unwrap_or_default().to_owned();
    let mut bytes = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(form_error)? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > TEXT_BYTES {
            return Err(ApiError::invalid(&*name, format!("`{name}` is too long")));
        }
    }
    String::from_utf8(bytes).map_err(|_| ApiError::invalid(&*name, format!("`{name}` is no text")))
}

pub(super) fn form_error(error: MultipartError) -> ApiError {
    match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            ApiError::too_large(format!("a file may have {MAX_FILE_BYTES} bytes at most"))
        }
        _ => ApiError::new(StatusCode::BAD_REQUEST, "the form broke off or is malformed"),
    }
}

pub(super) fn not_a_form() -> ApiError {
    let message = "the body must be a form; send `Content-Type: multipart/form-data` with its \
                   boundary, which clients add where they make the form themselves";
    ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message).code("unsupported_media_type")
}

pub(super) fn refuse_encoding(headers: &HeaderMap) -> Result<(), ApiError> {
    match headers.get(header::CONTENT_ENCODING) {
        Some(encoding) if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") => {
            let message = "compressed uploads are not supported; send the file as it is";
            let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            Err(ApiError::new(status, message).code("unsupported_media_type"))
        }
        _ => Ok(()),
    }
}

pub(super) fn missing(name: &'static str) -> ApiError {
    ApiError::invalid(name, format!("`{name}` is required")).code("missing_required_parameter")
}

/// The last part of whatever the client calls the file: a label, never a path.
fn plain_name(name: &str) -> String {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    last.chars().filter(|c| !c.is_control()).take(255).collect()
}

fn file_id(id: String) -> Result<FileId, ApiError> {
    known("file_id", id).map(FileId::from)
}

/// `GET /v1/files`: newest first.
#[utoipa::path(
    get, path = "/v1/files", tag = "files", params(ListFiles),
    responses((status = 200, description = "A page of files", body = FileList))
)]
async fn list_files(
    State(app): State<AppState>,
    caller: Caller,
    ApiQuery(query): ApiQuery<ListFiles>,
) -> Result<Json<FileList>, ApiError> {
    let order = order(query.order.as_deref())?;
    let page = Page { order, ..page(query.after, query.limit, 10_000, 10_000)? };
    let listed =
        app.engine.catalog().files(&caller.tenant, query.purpose.as_deref(), &page).await?;
    let data: Vec<FileObject> = listed.rows.into_iter().map(FileObject::from).collect();
    Ok(Json(FileList {
        object: "list",
        first_id: data.first().map(|file| file.id.clone()),
        last_id: data.last().map(|file| file.id.clone()),
        data,
        has_more: listed.has_more,
    }))
}

/// `GET /v1/files/{file_id}`: what is known of a file.
#[utoipa::path(
    get, path = "/v1/files/{file_id}", tag = "files",
    params(("file_id" = String, Path, description = "The file's id")),
    responses(
        (status = 200, description = "The file", body = FileObject),
        (status = 404, description = "There is no such file", body = ErrorBody)
    )
)]
async fn retrieve_file(
    State(app): State<AppState>,
    caller: Caller,
    ApiPath(id): ApiPath<String>,
) -> Result<Json<FileObject>, ApiError> {
    Ok(Json(app.engine.catalog().file(&caller.tenant, &file_id(id)?).await?.into()))
}

/// `DELETE /v1/files/{file_id}`: a job that still needs the file will fail.
#[utoipa::path(
    delete, path = "/v1/files/{file_id}", tag = "files",
    params(("file_id" = String, Path, description = "The file's id")),
    responses(
        (status = 200, description = "It is gone", body = DeletedFile),
        (status = 404, description = "There is no such file", body = ErrorBody)
    )
)]
async fn delete_file(
    State(app): State<AppState>,
    caller: Caller,
    ApiPath(id): ApiPath<String>,
) -> Result<Json<DeletedFile>, ApiError> {
    app.engine.catalog().delete_file(&caller.tenant, &file_id(id.clone())?).await?;
    Ok(Json(DeletedFile { id, object: "file", deleted: true }))
}

/// `GET /v1/files/{file_id}/content`: the bytes.
#[utoipa::path(
    get, path = "/v1/files/{file_id}/content", tag = "files",
    params(("file_id" = String, Path, description = "The file's id")),
    responses(
        (status = 200, description = "The bytes", content_type = "application/octet-stream"),
        (status = 404, description = "There is no such file", body = ErrorBody)
    )
)]
async fn download_file(
    State(app): State<AppState>,
    caller: Caller,
    ApiPath(id): ApiPath<String>,
) -> Result<Response, ApiError> {
    let found = app.engine.catalog().file_content(&caller.tenant, &file_id(id)?).await?;
    let mut response = Body::from_stream(ReaderStream::new(found.content)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(found.file.bytes));
    if let Ok(value) = HeaderValue::from_str(&attachment(&found.file.filename)) {
        headers.insert(header::CONTENT_DISPOSITION, value);
    }
    Ok(response)
}

fn attachment(filename: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | ' ');
    let name: String = filename.chars().map(|c| if safe(c) { c } else { '_' }).collect();
    format!("attachment; filename=\"{name}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_is_a_label_and_never_a_path() {
        assert_eq!(plain_name("../../etc/passwd"), "passwd");
        assert_eq!(plain_name("C:\\data\\train.jsonl"), "train.jsonl");
        assert_eq!(plain_name("a\0b\r\n.jsonl"), "ab.jsonl");
        assert_eq!(attachment("a\"b\r\n"), "attachment; filename=\"a_b__\"");
    }
}
