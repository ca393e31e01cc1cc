//! `/v1/adapters`: adapters by name; and vLLM's two routes for the same.

use axum::Json;
use axum::extract::{DefaultBodyLimit, FromRequest, Multipart, Request, State};
use axum::http::{HeaderMap, header};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ErrorBody;
use super::files::{form_error, missing, not_a_form, refuse_encoding, text};
use super::json::MAX_JSON_BYTES;
use super::lists::page;
use super::{ApiError, ApiJson, ApiPath, ApiQuery, AppState};
use crate::catalog::{AdapterBytes, Registered};
use crate::store::{Adapter, IfTaken};

/// The files of an adapter together.
const MAX_ADAPTER_BYTES: usize = 512 << 20;
/// The parts of a form that are kept as files, by their names in the folder, and how large each
/// may be.
const FILES: [(&str, usize); 3] = [
    ("adapter_config.json", 1 << 20),
    ("adapter_model.safetensors", MAX_ADAPTER_BYTES),
    ("tandem.json", 64 << 10),
];

/// One generation of an adapter.
#[derive(Debug, Serialize, ToSchema)]
pub struct AdapterObject {
    pub id: String,
    /// Always `adapter`.
    pub object: &'static str,
    /// What requests put into `model`.
    pub name: String,
    /// Counted from 1 for each name.
    pub generation: i64,
    pub base_model: String,
    /// Of the base it was trained on; `null` if it does not say.
    pub base_fingerprint: Option<String>,
    /// Hex SHA-256 over its files.
    pub sha256: String,
    pub r: usize,
    pub bytes: u64,
    /// `job`, `upload` or `folder`.
    pub source: &'static str,
    pub fine_tuning_job_id: Option<String>,
    /// For a checkpoint: the step after which it was taken.
    pub step: Option<i64>,
    /// Unix seconds.
    pub created_at: i64,
    /// What whoever registered it should know; only in the answer to that.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A page of adapters.
#[derive(Debug, Serialize, ToSchema)]
pub struct AdapterList {
    /// Always `list`.
    pub object: &'static str,
    pub data: Vec<AdapterObject>,
    pub first_id: Option<String>,
    pub last_id: Option<String>,
    pub has_more: bool,
}

/// What remains of a deleted adapter.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeletedAdapter {
    pub id: String,
    pub name: String,
    /// Always `adapter`.
    pub object: &'static str,
    pub deleted: bool,
}

/// A folder to register.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterAdapter {
    /// 1 to 64 of letters, digits, `.`, `_`, `-`.
    name: String,
    /// A PEFT folder beneath the server's adapter root.
    path: String,
    /// Which base it belongs to; without it, the one it fits.
    base_model: Option<String>,
    /// Make it the next generation if the name is taken.
    #[serde(default)]
    replace: bool,
}

/// The form of an upload.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the form; its parts are read as they arrive")]
pub struct AdapterForm {
    /// 1 to 64 of letters, digits, `.`, `_`, `-`.
    name: String,
    /// PEFT's configuration.
    #[schema(rename = "adapter_config.json", value_type = String, format = Binary)]
    config: Vec<u8>,
    /// PEFT's matrices.
    #[schema(rename = "adapter_model.safetensors", value_type = String, format = Binary)]
    weights: Vec<u8>,
    /// Where the adapter was made by this program: what it was trained on.
    #[schema(rename = "tandem.json", value_type = Option<String>, format = Binary)]
    provenance: Option<Vec<u8>>,
    /// Which base it belongs to; without it, the one it fits.
    base_model: Option<String>,
    /// Make it the next generation if the name is taken.
    replace: Option<bool>,
}

/// vLLM's request to load an adapter.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadLoraAdapter {
    lora_name: String,
    /// A PEFT folder beneath the server's adapter root.
    lora_path: String,
    base_model_name: Option<String>,
    #[serde(default)]
    load_inplace: bool,
}

/// vLLM's request to forget an adapter.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UnloadLoraAdapter {
    lora_name: String,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct ListAdapters {
    /// The id of the last adapter already seen.
    after: Option<String>,
    /// 1 to 1000; 100 if absent.
    limit: Option<i64>,
}

impl From<Adapter> for AdapterObject {
    fn from(adapter: Adapter) -> Self {
        Self {
            id: adapter.id.to_string(),
            object: "adapter",
            name: adapter.name,
            generation: adapter.generation,
            base_model: adapter.base,
            base_fingerprint: adapter.base_fingerprint,
            sha256: adapter.sha256,
            r: adapter.r,
            bytes: adapter.size_bytes,
            source: adapter.source.as_str(),
            fine_tuning_job_id: adapter.job.map(|job| job.to_string()),
            step: adapter.step,
            created_at: adapter.created_at.unix_seconds(),
            notes: Vec::new(),
        }
    }
}

impl From<Registered> for AdapterObject {
    fn from(registered: Registered) -> Self {
        Self { notes: registered.notes, ..registered.adapter.into() }
    }
}

pub(super) fn routes() -> OpenApiRouter<AppState> {
    let limit = DefaultBodyLimit::max(MAX_ADAPTER_BYTES + MAX_JSON_BYTES);
    OpenApiRouter::new()
        .routes(routes!(create_adapter))
        .layer(limit)
        .routes(routes!(list_adapters))
        .routes(routes!(retrieve_adapter, delete_adapter))
        .routes(routes!(load_lora_adapter))
        .routes(routes!(unload_lora_adapter))
}

/// `POST /v1/adapters`: registers a PEFT adapter, as a form with its files
/// (`adapter_config.json`, `adapter_model.safetensors`) and `name`, or as JSON with a `path`
/// beneath the server's adapter root.
#[utoipa::path(
    post, path = "/v1/adapters", tag = "adapters",
    request_body(content(
        (RegisterAdapter = "application/json"),
        (AdapterForm = "multipart/form-data")
    )),
    responses(
        (status = 200, description = "The adapter can be named in requests", body = AdapterObject),
        (status = 400, description = "The adapter cannot be used, and why", body = ErrorBody),
        (status = 409, description = "The name is taken", body = ErrorBody)
    )
)]
async fn create_adapter(
    State(app): State<AppState>,
    headers: HeaderMap,
    request: Request,
) -> Result<Json<AdapterObject>, ApiError> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let registered = if kind.is_some_and(|kind| kind.starts_with("multipart/form-data")) {
        refuse_encoding(&headers)?;
        let form = Multipart::from_request(request, &app).await.map_err(|_| not_a_form())?;
        register_form(&app, form).await?
    } else {
        let ApiJson(body) = ApiJson::<RegisterAdapter>::from_request(request, &app).await?;
        let base = body.base_model.as_deref();
        let if_taken = if_taken(body.replace);
        app.engine.catalog().register_path(&body.name, base, &body.path, if_taken).await?
    };
    Ok(Json(registered.into()))
}

async fn register_form(app: &AppState, mut form: Multipart) -> Result<Registered, ApiError> {
    let (mut name, mut base, mut replace) = (None, None, false);
    let mut files = AdapterBytes::new();
    while let Some(field) = form.next_field().await.map_err(form_error)? {
        let part = field.name().unwrap_or_default().to_owned();
        let file = file_of(&part, field.file_name());
        match (part.as_str(), file) {
            (_, Some((file, most))) => {
                if files.iter().any(|(known, _)| known == file) {
                    return Err(ApiError::invalid(file, format!("`{file}` was sent twice")));
                }
                files.push((file.to_owned(), bytes(field, file, most).await?));
            }
            ("name", _) => name = Some(text(field).await?),
            ("base_model", _) => base = Some(text(field).await?),
            ("replace", _) => replace = boolean("replace", &text(field).await?)?,
            _ => return Err(unknown_part(&part)),
        }
    }
    let name = name.ok_or_else(|| missing("name"))?;
    let catalog = app.engine.catalog();
    Ok(catalog.register_upload(&name, base.as_deref(), files, if_taken(replace)).await?)
}

/// The file that a part of the form is: by its own name, or by its file's.
fn file_of(part: &str, file_name: Option<&str>) -> Option<(&'static str, usize)> {
    let called = |name: &str| FILES.into_iter().find(|(file, _)| *file == name);
    called(part).or_else(|| called(file_name?))
}

async fn bytes(
    mut field: axum::extract::multipart::Field<'_>,
    file: &'static str,
    most: usize,
) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(form_error)? {
        if bytes.len() + chunk.len() > most {
            return Err(ApiError::too_large(format!("`{file}` is larger than {most} bytes")));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn boolean(param: &'static str, value: &str) -> Result<bool, ApiError> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(ApiError::invalid(param, format!("`{param}` must be true or false"))),
    }
}

fn unknown_part(part: &str) -> ApiError {
    let part: String = part.chars().take(100).collect();
    let message = format!(
        "unrecognized part of the form: `{part}`; send `name`, `adapter_config.json` and \
         `adapter_model.safetensors`, and no pickled weights"
    );
    ApiError::invalid(part, message).code("unknown_parameter")
}

fn if_taken(replace: bool) -> IfTaken {
    if replace { IfTaken::Replace } else { IfTaken::Refuse }
}

/// `GET /v1/adapters`: newest first, checkpoints included.
#[utoipa::path(
    get, path = "/v1/adapters", tag = "adapters", params(ListAdapters),
    responses((status = 200, description = "A page of adapters", body = AdapterList))
)]
async fn list_adapters(
    State(app): State<AppState>,
    ApiQuery(query): ApiQuery<ListAdapters>,
) -> Result<Json<AdapterList>, ApiError> {
    let page = page(query.after, query.limit, 100, 1000)?;
    let listed = app.engine.catalog().adapter_rows(&page).await?;
    let data: Vec<_> = listed.rows.into_iter().map(AdapterObject::from).collect();
    Ok(Json(AdapterList {
        object: "list",
        first_id: data.first().map(|adapter| adapter.id.clone()),
        last_id: data.last().map(|adapter| adapter.id.clone()),
        data,
        has_more: listed.has_more,
    }))
}

/// `GET /v1/adapters/{name}`: where an adapter came from.
#[utoipa::path(
    get, path = "/v1/adapters/{*name}", tag = "adapters",
    params(("name" = String, Path, description = "The adapter's name")),
    responses(
        (status = 200, description = "The adapter", body = AdapterObject),
        (status = 404, description = "There is no such adapter", body = ErrorBody)
    )
)]
async fn retrieve_adapter(
    State(app): State<AppState>,
    ApiPath(name): ApiPath<String>,
) -> Result<Json<AdapterObject>, ApiError> {
    Ok(Json(app.engine.catalog().adapter_row(&name).await?.into()))
}

/// `DELETE /v1/adapters/{name}`: takes the name away. Requests that use the adapter go on.
#[utoipa::path(
    delete, path = "/v1/adapters/{*name}", tag = "adapters",
    params(("name" = String, Path, description = "The adapter's name")),
    responses(
        (status = 200, description = "It is gone", body = DeletedAdapter),
        (status = 404, description = "There is no such adapter", body = ErrorBody)
    )
)]
async fn delete_adapter(
    State(app): State<AppState>,
    ApiPath(name): ApiPath<String>,
) -> Result<Json<DeletedAdapter>, ApiError> {
    let catalog = app.engine.catalog();
    let id = catalog.adapter_row(&name).await?.id.to_string();
    catalog.delete_model(&name).await?;
    Ok(Json(DeletedAdapter { id, name, object: "adapter", deleted: true }))
}

/// `POST /v1/load_lora_adapter`: as vLLM has it.
#[utoipa::path(
    post, path = "/v1/load_lora_adapter", tag = "adapters",
    request_body = LoadLoraAdapter,
    responses(
        (status = 200, description = "It can be named in requests", body = String),
        (status = 400, description = "It cannot be used, and why", body = ErrorBody)
    )
)]
async fn load_lora_adapter(
    State(app): State<AppState>,
    ApiJson(body): ApiJson<LoadLoraAdapter>,
) -> Result<String, ApiError> {
    let if_taken = if_taken(body.load_inplace);
    let base = body.base_model_name.as_deref();
    let catalog = app.engine.catalog();
    catalog.register_path(&body.lora_name, base, &body.lora_path, if_taken).await?;
    Ok(format!("Success: LoRA adapter '{}' added successfully.", body.lora_name))
}

/// `POST /v1/unload_lora_adapter`: as vLLM has it.
#[utoipa::path(
    post, path = "/v1/unload_lora_adapter", tag = "adapters",
    request_body = UnloadLoraAdapter,
    responses(
        (status = 200, description = "It is gone", body = String),
        (status = 404, description = "There is no such adapter", body = ErrorBody)
    )
)]
async fn unload_lora_adapter(
    State(app): State<AppState>,
    ApiJson(body): ApiJson<UnloadLoraAdapter>,
) -> Result<String, ApiError> {
    app.engine.catalog().delete_model(&body.lora_name).await?;
    Ok(format!("Success: LoRA adapter '{}' removed successfully.", body.lora_name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_files_by_their_own_name_or_by_their_files() {
        let name = |part, file| file_of(part, file).map(|(name, _)| name);
        assert_eq!(name("adapter_config.json", None), Some("adapter_config.json"));
        assert_eq!(
            name("file", Some("adapter_model.safetensors")),
            Some("adapter_model.safetensors")
        );
        assert_eq!(name("file", Some("../adapter_config.json")), None);
        assert_eq!(name("adapter_model.bin", Some("adapter_model.bin")), None);
    }
}
