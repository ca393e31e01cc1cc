//! Jobs as handlers reach them, and what their errors are on the wire.

use super::{ApiError, AppState};
use crate::jobs::{InvalidKind, InvalidRequest, Jobs, JobsError};

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

impl AppState {
    /// Fine-tuning, over the engine's catalog.
    pub(super) fn jobs(&self) -> Jobs {
        Jobs::new(self.engine.catalog().clone(), self.engine.worker().clone())
    }
}
