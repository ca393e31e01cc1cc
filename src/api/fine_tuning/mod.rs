//! `/v1/fine_tuning`: jobs, their events and checkpoints.

mod body;
mod follow;
mod objects;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ErrorBody;
use super::lists::{idempotency_key, known, page};
use super::{ApiError, ApiJson, ApiPath, ApiQuery, AppState, Caller};
use crate::domain::JobId;
use crate::store::{Job, MetadataFilter};
use body::CreateFineTuningJob;
use objects::{
    FineTuningCheckpoint, FineTuningCheckpointList, FineTuningEvent, FineTuningEventList,
    FineTuningJob, FineTuningJobList,
};

/// The most entries of one page.
const MOST: usize = 1000;

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create_job, list_jobs))
        .routes(routes!(preflight))
        .routes(routes!(retrieve_job))
        .routes(routes!(cancel_job))
        .routes(routes!(pause_job))
        .routes(routes!(resume_job))
        .routes(routes!(list_events))
        .routes(routes!(list_checkpoints))
}

fn job_id(id: String) -> Result<JobId, ApiError> {
    known("fine_tuning_job_id", id).map(JobId::from)
}

fn object(app: &AppState, job: Job) -> Result<FineTuningJob, ApiError> {
    FineTuningJob::of(job, &app.jobs()).map_err(ApiError::internal)
}

/// `POST /v1/fine_tuning/jobs`: queues a job. With `dry_run` it starts nothing and answers with the
/// pre-flight report instead.
#[utoipa::path(
    post, path = "/v1/fine_tuning/jobs", tag = "fine-tuning",
    request_body = CreateFineTuningJob,
    params(("Idempotency-Key" = Option<String>, Header, description = "Repeats answer with the first job")),
    responses(
        (status = 200, description = "The job", body = FineTuningJob),
        (status = 400, description = "A parameter is wrong", body = ErrorBody),
        (status = 404, description = "There is no such model", body = ErrorBody),
        (status = 422, description = "The idempotency key was used for another request", body = ErrorBody)
    )
)]
async fn create_job(
    State(app): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    ApiJson(body): ApiJson<Map<String, Value>>,
) -> Result<Response, ApiError> {
    if body.get("dry_run") == Some(&Value::Bool(true)) {
        return Ok(Json(app.jobs().preflight(&caller.tenant, body).await?).into_response());
    }
    let key = idempotency_key(&headers)?;
    let job = app.jobs().create(&caller.tenant, body, key).await?.into_inner();
    Ok(Json(object(&app, job)?).into_response())
}

/// `POST /v1/fine_tuning/preflight`: what a job would do. Every bad line, examples with their loss
/// mask, lengths, settled hyperparameters.
#[utoipa::path(
    post, path = "/v1/fine_tuning/preflight", tag = "fine-tuning",
    request_body = CreateFineTuningJob,
    responses(
        (status = 200, description = "The report", body = Object),
        (status = 400, description = "A parameter is wrong", body = ErrorBody)
    )
)]
async fn preflight(
    State(app): State<AppState>,
    caller: Caller,
    ApiJson(body): ApiJson<Map<String, Value>>,
) -> Result<Response, ApiError> {
    Ok(Json(app.jobs().preflight(&caller.tenant, body).await?).into_response())
}

/// `GET /v1/fine_tuning/jobs`: newest first; `metadata[key]=value` keeps jobs that carry the pair,
/// `metadata=null` those with none.
#[utoipa::path(
    get, path = "/v1/fine_tuning/jobs", tag = "fine-tuning",
    params(
        ("after" = Option<String>, Query, description = "The id of the last job already seen"),
        ("limit" = Option<i64>, Query, description = "1 to 1000; 20 if absent"),
        ("metadata" = Option<String>, Query, description = "`null`, or `metadata[key]=value`")
    ),
    responses((status = 200, description = "A page of jobs", body = FineTuningJobList))
)]
async fn list_jobs(
    State(app): State<AppState>,
    caller: Caller,
    ApiQuery(query): ApiQuery<Vec<(String, String)>>,
) -> Result<Json<FineTuningJobList>, ApiError> {
    let (mut after, mut limit, mut filter) = (None, None, MetadataFilter::All);
    for (name, value) in query {
        let value = known("metadata", value)?;
        match (name.as_str(), metadata_key(&name)) {
            ("after", _) => after = Some(value),
            ("limit", _) => limit = Some(value.parse().map_err(|_| not_a_number())?),
            ("metadata", _) if value == "null" => filter = MetadataFilter::Without,
            (_, Some(key)) => match &mut filter {
                MetadataFilter::Pairs(pairs) if pairs.len() < 16 => {
                    pairs.push((key.to_owned(), value));
                }
                MetadataFilter::All => {
                    filter = MetadataFilter::Pairs(vec![(key.to_owned(), value)]);
                }
                _ => {
                    return Err(ApiError::invalid("metadata", "too many conditions on `metadata`"));
                }
            },
            _ => {
                let name: String = name.chars().take(100).collect();
                let message = format!("unrecognized request argument: `{name}`");
                return Err(ApiError::invalid(name, message).code("unknown_parameter"));
            }
        }
    }
    let page = page(after, limit, 20, MOST)?;
    let listed = app.jobs().list(&caller.tenant, &filter, &page).await?;
    let data = listed.rows.into_iter().map(|job| object(&app, job)).collect::<Result<_, _>>()?;
    Ok(Json(FineTuningJobList { object: "list", data, has_more: listed.has_more }))
}

fn metadata_key(name: &str) -> Option<&str> {
    name.strip_prefix("metadata[")?.strip_suffix(']').filter(|key| !key.contains('\0'))
}

fn not_a_number() -> ApiError {
    ApiError::invalid("limit", "`limit` must be a whole number")
}

/// `GET /v1/fine_tuning/jobs/{id}`.
#[utoipa::path(
    get, path = "/v1/fine_tuning/jobs/{fine_tuning_job_id}", tag = "fine-tuning",
    params(("fine_tuning_job_id" = String, Path, description = "The job's id")),
    responses(
        (status = 200, description = "The job", body = FineTuningJob),
        (status = 404, description = "There is no such job", body = ErrorBody)
    )
)]
async fn retrieve_job(
    State(app): State<AppState>,
    caller: Caller,
    ApiPath(id): ApiPath<String>,
) -> Result<Json<FineTuningJob>, ApiError> {
    let job = app.jobs().job(&caller.tenant, &job_id(id)?).await?;
    Ok(Json(object(&app, job)?))
}

/// `POST /v1/fine_tuning/jobs/{id}/cancel`: final at once; checkpoints stay usable.
#[utoipa::path(
    post, path = "/v1/fine_tuning/jobs/{fine_tuning_job_id}/cancel", tag = "fine-tuning",
    params(("fine_tuning_job_id" = String, Path, description = "The job's id")),
    responses(
        (status = 200, description = "The job, cancelled", body = FineTuningJob),
        (status = 404, description = "There is no such job", body = ErrorBody),
        (status = 409, description = "The job has ended", body = ErrorBody)
    )
)]
async fn cancel_job(
    State(app): State<AppState>,
    caller: Caller,
    ApiPath(id): ApiPath<String>,
) -> Result<Json<FineTuningJob>, ApiError> {
    let job = app.jobs().cancel(&caller.tenant, &job_id(id)?).await?;
    Ok(Json(object(&app, job)?))
}

/// `POST /v1/fine_tuning/jobs/{id}/pause`: stops after the step in progress, with a checkpoint.
#[utoipa::path(
    post, path = "/v1/fine_tuning/jobs/{fine_tuning_job_id}/pause", tag = "fine-tuning",
    params(("fine_tuning_job_id" = String, Path, description = "The job's id")),
    responses(
        (status = 200, description = "The job, paused", body = FineTuningJob),
        (status = 404, description = "There is no such job", body = ErrorBody),
        (status = 409, description = "The job is paused or has ended", body = ErrorBody)
    )
)]
async fn pause_job(
    State(app): State<AppState>,
    caller: Caller,
    ApiPath(id): ApiPath<String>,
) -> Result<Json<FineTuningJob>, ApiError> {
    let job = app.jobs().pause(&caller.tenant, &job_id(id)?).await?;
    Ok(Json(object(&app, job)?))
}

/// `POST /v1/fine_tuning/jobs/{id}/resume`: back to the queue, from the last checkpoint.
#[utoipa::path(
    post, path = "/v1/fine_tuning/jobs/{fine_tuning_job_id}/resume", tag = "fine-tuning",
    params(("fine_tuning_job_id" = String, Path, description = "The job's id")),
    responses(
        (status = 200, description = "The job, queued", body = FineTuningJob),
        (status = 404, description = "There is no such job", body = ErrorBody),
        (status = 409, description = "The job is not paused", body = ErrorBody)
    )
)]
async fn resume_job(
    State(app): State<AppState>,
    caller: Caller,
    ApiPath(id): ApiPath<String>,
) -> Result<Json<FineTuningJob>, ApiError> {
    let job = app.jobs().resume(&caller.tenant, &job_id(id)?).await?;
    Ok(Json(object(&app, job)?))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct ListEvents {
    /// The id of the last event already seen; with `stream`, its number.
    after: Option<String>,
    /// 1 to 1000; 20 if absent.
    limit: Option<i64>,
    /// Server-sent events, oldest first, until the job ends; `Last-Event-ID` resumes.
    #[serde(default)]
    stream: bool,
}

/// `GET /v1/fine_tuning/jobs/{id}/events`: newest first, or a stream.
#[utoipa::path(
    get, path = "/v1/fine_tuning/jobs/{fine_tuning_job_id}/events", tag = "fine-tuning",
    params(
        ("fine_tuning_job_id" = String, Path, description = "The job's id"),
        ("Last-Event-ID" = Option<String>, Header, description = "Where a stream goes on"),
        ListEvents
    ),
    responses(
        (status = 200, description = "A page of events, or the stream", body = FineTuningEventList),
        (status = 404, description = "There is no such job", body = ErrorBody)
    )
)]
async fn list_events(
    State(app): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    ApiPath(id): ApiPath<String>,
    ApiQuery(query): ApiQuery<ListEvents>,
) -> Result<Response, ApiError> {
    let id = job_id(id)?;
    if query.stream {
        return follow::stream_events(app, &caller, &id, query.after.as_deref(), &headers).await;
    }
    let page = page(query.after, query.limit, 20, MOST)?;
    let listed = app.jobs().events(&caller.tenant, &id, &page).await?;
    let data = listed.rows.into_iter().map(FineTuningEvent::from).collect();
    let list = FineTuningEventList { object: "list", data, has_more: listed.has_more };
    Ok(Json(list).into_response())
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct ListCheckpoints {
    /// The id of the last checkpoint already seen.
    after: Option<String>,
    /// 1 to 1000; 10 if absent.
    limit: Option<i64>,
}

/// `GET /v1/fine_tuning/jobs/{id}/checkpoints`: newest first; usable while the job still runs.
#[utoipa::path(
    get, path = "/v1/fine_tuning/jobs/{fine_tuning_job_id}/checkpoints", tag = "fine-tuning",
    params(
        ("fine_tuning_job_id" = String, Path, description = "The job's id"),
        ListCheckpoints
    ),
    responses(
        (status = 200, description = "A page of checkpoints", body = FineTuningCheckpointList),
        (status = 404, description = "There is no such job", body = ErrorBody)
    )
)]
async fn list_checkpoints(
    State(app): State<AppState>,
    caller: Caller,
    ApiPath(id): ApiPath<String>,
    ApiQuery(query): ApiQuery<ListCheckpoints>,
) -> Result<Json<FineTuningCheckpointList>, ApiError> {
    let page = page(query.after, query.limit, 10, MOST)?;
    let listed = app.jobs().checkpoints(&caller.tenant, &job_id(id)?, &page).await?;
    let data: Vec<_> = listed.rows.into_iter().map(FineTuningCheckpoint::from).collect();
    Ok(Json(FineTuningCheckpointList {
        object: "list",
        first_id: data.first().map(|checkpoint| checkpoint.id.clone()),
        last_id: data.last().map(|checkpoint| checkpoint.id.clone()),
        data,
        has_more: listed.has_more,
    }))
}
