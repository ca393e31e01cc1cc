//! One error for every route, in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`,
//! all four keys always present.

use std::error::Error;
use std::fmt::Display;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::artifacts::ArtifactError;
use crate::catalog::CatalogError;
use crate::engine::EngineError;
use crate::store::StoreError;
use crate::text::TextError;
use crate::worker::WorkerError;

/// What a caller hears instead of an answer. A 5xx keeps its cause for the log.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
    retry_after: Option<Duration>,
    /// `x-should-retry`, which OpenAI's clients obey before anything else.
    should_retry: Option<bool>,
    cause: Option<Box<dyn Error + Send + Sync>>,
}

impl ApiError {
    /// An error of that status with OpenAI's usual `type` for it, without `param` and `code`.
    pub fn new(status: StatusCode, message: impl Display) -> Self {
        let kind = match status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        Self {
            status,
            kind,
            code: None,
            param: None,
            message: message.to_string(),
            retry_after: None,
            should_retry: None,
            cause: None,
        }
    }

    /// 400: the value of `param` cannot be.
    pub fn invalid(param: impl Into<String>, message: impl Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message).param(param)
    }

    /// 400: OpenAI has the parameter and this server has not.
    pub fn unsupported(param: impl Into<String>, message: impl Display) -> Self {
        Self::invalid(param, message).code("unsupported_parameter")
    }

    /// 404.
    pub fn not_found(code: &'static str, message: impl Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, message).code(code)
    }

    /// 409 that stays so: clients are told not to try again.
    pub fn conflict(code: &'static str, message: impl Display) -> Self {
        let error = Self::new(StatusCode::CONFLICT, message).code(code);
        Self { should_retry: Some(false), ..error }
    }

    /// 413.
    pub fn too_large(message: impl Display) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, message).code("request_too_large")
    }

    /// 429: room will come.
    pub fn overloaded(code: &'static str, message: impl Display, retry_after: Duration) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, message).code(code).retry_after(retry_after)
    }

    /// 503: not now.
    pub fn unavailable(code: &'static str, message: impl Display) -> Self {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, message).code(code);
        error.retry_after(Duration::from_secs(5))
    }

    /// 500: a calm sentence for the caller, the cause for the log.
    pub fn internal(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        let message = "The server had an error while processing your request. \
                       The log has the cause under the request id of this answer.";
        Self {
            cause: Some(cause.into()),
            ..Self::new(StatusCode::INTERNAL_SERVER_ERROR, message).code("internal_error")
        }
    }

    /// Names the parameter at fault, as a path into the body.
    #[must_use]
    pub fn param(self, param: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..self }
    }

    /// Gives programs a word to match on.
    #[must_use]
    pub fn code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// Keeps the cause for the log.
    #[must_use]
    pub fn cause(self, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { cause: Some(cause.into()), ..self }
    }

    /// Tells clients when to try again.
    #[must_use]
    pub fn retry_after(self, after: Duration) -> Self {
        Self { retry_after: Some(after), ..self }
    }

    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The object on the wire.
    pub fn body(&self) -> Value {
        json!({"error": {
            "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
        }})
    }

    /// Writes a 5xx to the log, with the chain of its causes.
    pub(super) fn log(&self) {
        if !self.status.is_server_error() {
            return;
        }
        let mut chain = String::new();
        let mut cause = self.cause.as_deref().map(|cause| cause as &dyn Error);
        while let Some(error) = cause {
            chain.push_str(if chain.is_empty() { "" } else { ": " });
            chain.push_str(&error.to_string());
            cause = error.source();
        }
        tracing::error!(status = self.status.as_u16(), cause = chain, "a request failed");
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.log();
        let mut response = (self.status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(after) = self.retry_after {
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
            headers.insert("retry-after-ms", HeaderValue::from(after.as_millis() as u64));
        }
        if let Some(retry) = self.should_retry {
            let value = if retry { "true" } else { "false" };
            headers.insert("x-should-retry", HeaderValue::from_static(value));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Catalog(error) => error.into(),
            EngineError::ContextExceeded { prompt, context, .. } => {
                let param = if prompt > context { "prompt" } else { "max_tokens" };
                Self::invalid(param, &error).code("context_length_exceeded")
            }
            EngineError::UnknownToken { param, .. } => Self::invalid(param, &error),
            EngineError::TooManyTokens { .. } => Self::invalid("max_tokens", &error),
            EngineError::NoAdapter { .. } => Self::invalid("adapter_scale", &error),
            EngineError::Prompt { param, error } => prompt_error(param, error),
            EngineError::Picture { path, error } => {
                Self::invalid(format!("messages{path}"), error).code("invalid_image")
            }
            EngineError::PicturePlaces { .. } => Self::invalid("messages", &error),
            EngineError::Stop(error) => Self::invalid("stop", error),
            EngineError::Worker(error) => error.into(),
            EngineError::Lost | EngineError::Tokenising(_) => Self::internal(error),
        }
    }
}

fn prompt_error(param: &'static str, error: TextError) -> ApiError {
    match &error {
        TextError::NoTemplate => ApiError::invalid("model", &error).code("no_chat_template"),
        TextError::Message(message) => {
            ApiError::invalid(format!("{param}{}", message.path), &message.problem)
        }
        TextError::SpecialToken { path, .. } => ApiError::invalid(path.clone(), &error),
        _ => ApiError::invalid(param, &error),
    }
}

impl From<CatalogError> for ApiError {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::UnknownModel(_) => {
                Self::not_found("model_not_found", &error).param("model")
            }
            CatalogError::UnknownBase(_) => Self::invalid("base_model", &error),
            CatalogError::NotDeletable(_) => Self::invalid("model", &error),
            CatalogError::BadName(_) | CatalogError::NameOfBase(_) => Self::invalid("name", &error),
            CatalogError::Unusable { .. } | CatalogError::BaseNotServed { .. } => {
                Self::invalid("model", &error).code("invalid_adapter")
            }
            CatalogError::Adapter(_) => {
                Self::new(StatusCode::BAD_REQUEST, &error).code("invalid_adapter")
            }
            CatalogError::NoAdapterRoot
            | CatalogError::OutsideRoot(_)
            | CatalogError::Folder { .. } => Self::invalid("path", &error),
            CatalogError::NotJsonLines => Self::invalid("file", &error),
            CatalogError::BadLines(_) => Self::invalid("file", &error).code("invalid_file"),
            CatalogError::Store(error) => error.into(),
            CatalogError::Artifacts(error) => error.into(),
            CatalogError::Thread(_) => Self::internal(error),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound { .. } => Self::not_found("not_found", &error),
            StoreError::Conflict { .. } | StoreError::LeaseLost { .. } => {
                Self::conflict("invalid_state", &error)
            }
            StoreError::NameTaken(_) => Self::conflict("name_taken", &error).param("name"),
            StoreError::IdempotencyMismatch(_) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, &error).code("idempotency_mismatch")
            }
            StoreError::UnknownCursor(_) => Self::invalid("after", &error),
            StoreError::Nul(_) => Self::new(StatusCode::BAD_REQUEST, &error),
            StoreError::Unavailable(_) => {
                let message = "The database cannot be reached at the moment.";
                Self::unavailable("database_unavailable", message).cause(error)
            }
            StoreError::Url(_)
            | StoreError::Open { .. }
            | StoreError::SqliteTooOld { .. }
            | StoreError::Migrate(_)
            | StoreError::Corrupt { .. }
            | StoreError::Database(_) => Self::internal(error),
        }
    }
}

impl From<ArtifactError> for ApiError {
    fn from(error: ArtifactError) -> Self {
        match error {
            ArtifactError::TooLarge { .. } => Self::too_large(&error),
            ArtifactError::Upload(_) => Self::new(StatusCode::BAD_REQUEST, &error),
            ArtifactError::Full(_) => {
                let message = "The server has no room left to store this.";
                Self::unavailable("storage_full", message).cause(error)
            }
            ArtifactError::Stopping => Self::unavailable("server_shutting_down", &error),
            ArtifactError::Unsupported { .. }
            | ArtifactError::InUse(_)
            | ArtifactError::Io { .. }
            | ArtifactError::BadName(_)
            | ArtifactError::Corrupt { .. } => Self::internal(error),
        }
    }
}

impl From<WorkerError> for ApiError {
    fn from(error: WorkerError) -> Self {
        match error {
            WorkerError::Overloaded { retry_after_secs, .. } => {
                let after = Duration::from_secs(retry_after_secs.clamp(1, 60));
                Self::overloaded("server_overloaded", &error, after)
            }
            WorkerError::Stopped => Self::unavailable("server_shutting_down", &error),
            WorkerError::TooLarge { .. } => {
                Self::invalid("max_tokens", &error).code("context_length_exceeded")
            }
            WorkerError::TooManyPictures { .. } => Self::invalid("messages", &error),
            WorkerError::Adapter(_) => Self::invalid("model", &error).code("invalid_adapter"),
            WorkerError::UnknownBase(_) | WorkerError::Device(_) => Self::internal(error),
        }
    }
}

/// The body of every error.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct ErrorBody {
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct ErrorDetail {
    /// A sentence for people.
    pub message: String,
    /// The kind of error: `invalid_request_error`, `rate_limit_error`, `server_error`.
    pub r#type: String,
    /// The parameter at fault, as a path into the body.
    pub param: Option<String>,
    /// A word for programs.
    pub code: Option<String>,
}
