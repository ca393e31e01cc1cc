//! What errors of jobs, catalog, store and artifacts are on the wire.

use axum::http::StatusCode;

use super::ApiError;
use crate::artifacts::ArtifactError;
use crate::catalog::CatalogError;
use crate::jobs::{InvalidKind, InvalidRequest, JobsError};
use crate::store::StoreError;

impl From<InvalidRequest> for ApiError {
    fn from(error: InvalidRequest) -> Self {
        let refused = Self::invalid(&*error.param, &error.reason);
        match error.kind {
            InvalidKind::Value => refused,
            InvalidKind::Missing => refused.code("missing_required_parameter"),
            InvalidKind::Unknown => refused.code("unknown_parameter"),
            InvalidKind::Unsupported => refused.code("unsupported_parameter"),
        }
    }
}

impl From<JobsError> for ApiError {
    fn from(error: JobsError) -> Self {
        match error {
            JobsError::Invalid(error) => error.into(),
            JobsError::Catalog(error) => error.into(),
            JobsError::Store(error) => error.into(),
        }
    }
}

impl From<CatalogError> for ApiError {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::UnknownModel(_) => {
                Self::not_found("model_not_found", &error).param("model")
            }
            CatalogError::NotDeletable(_) => Self::invalid("model", &error),
            CatalogError::BadName(_) | CatalogError::NameOfBase(_) => Self::invalid("name", &error),
            CatalogError::UnknownBase(_) => Self::invalid("base", &error),
            CatalogError::Unusable { .. } | CatalogError::BaseNotServed { .. } => {
                Self::invalid("model", &error).code("invalid_adapter")
            }
            CatalogError::Adapter(_) => {
                Self::new(StatusCode::BAD_REQUEST, &error).code("invalid_adapter")
            }
            CatalogError::NoAdapterRoot | CatalogError::OutsideRoot(_) => {
                Self::invalid("path", &error)
            }
            CatalogError::NotJsonLines => Self::invalid("file", &error),
            CatalogError::BadLines(_) => {
                Self::invalid("file", &error).code("invalid_training_file")
            }
            CatalogError::Store(error) => error.into(),
            CatalogError::Artifacts(error) => error.into(),
            CatalogError::Folder { .. } | CatalogError::Thread(_) => Self::internal(error),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::NotFound { .. } => Self::not_found("not_found", &error),
            StoreError::Conflict { .. } => Self::conflict("job_state_conflict", &error),
            StoreError::NameTaken(_) => Self::conflict("name_taken", &error).param("name"),
            StoreError::IdempotencyMismatch(_) => {
                let status = StatusCode::UNPROCESSABLE_ENTITY;
                Self::new(status, &error).code("idempotency_key_reused")
            }
            StoreError::UnknownCursor(_) => Self::invalid("after", &error),
            StoreError::Nul(_) => Self::new(StatusCode::BAD_REQUEST, &error),
            StoreError::Unavailable(_) => {
                let message = "The database cannot be reached at the moment; try again shortly.";
                Self::unavailable("db_unavailable", message).cause(error)
            }
            _ => Self::internal(error),
        }
    }
}

impl From<ArtifactError> for ApiError {
    fn from(error: ArtifactError) -> Self {
        match &error {
            ArtifactError::TooLarge { .. } => Self::too_large(&error),
            ArtifactError::Upload(_) => Self::new(StatusCode::BAD_REQUEST, &error),
            ArtifactError::Full(_) => {
                let message = "The server's storage is full; delete files or ask its operator.";
                Self::unavailable("storage_full", message).cause(error)
            }
            ArtifactError::Stopping => Self::unavailable("server_shutting_down", &error),
            _ => Self::internal(error),
        }
    }
}
