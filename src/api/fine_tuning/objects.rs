//! Jobs, events and checkpoints as the wire has them.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::domain::JobStatus;
use crate::jobs::{JobSpec, Jobs, shown_hyperparameters};
use crate::store::{Checkpoint, Job, JobError, JobEvent};

/// Why a job failed.
#[derive(Debug, Serialize, ToSchema)]
pub struct FineTuningError {
    pub code: String,
    pub message: String,
    pub param: Option<String>,
}

/// How a job trains.
#[derive(Debug, Serialize, ToSchema)]
pub struct Method {
    /// Always `supervised`.
    pub r#type: &'static str,
    /// `{"hyperparameters": {…}}`, as under the top-level `hyperparameters`.
    #[schema(value_type = Object)]
    pub supervised: Value,
}

/// A fine-tuning job.
#[derive(Debug, Serialize, ToSchema)]
pub struct FineTuningJob {
    pub id: String,
    /// Always `fine_tuning.job`.
    pub object: &'static str,
    /// Unix seconds, as all times here.
    pub created_at: i64,
    /// `null` unless the job failed.
    pub error: Option<FineTuningError>,
    /// What requests call the result; `null` until it is there.
    pub fine_tuned_model: Option<String>,
    pub finished_at: Option<i64>,
    /// What was asked for; once training began, what "auto" became.
    #[schema(value_type = Object)]
    pub hyperparameters: Value,
    pub model: String,
    pub organization_id: String,
    /// A table of metrics by step, as a file.
    pub result_files: Vec<String>,
    #[schema(value_type = String)]
    pub status: &'static str,
    /// Tokens that bore loss; `null` until the job has ended.
    pub trained_tokens: Option<i64>,
    pub training_file: String,
    pub validation_file: Option<String>,
    pub seed: u64,
    #[schema(value_type = Vec<Object>)]
    pub integrations: Vec<Value>,
    pub estimated_finish: Option<i64>,
    pub method: Method,
    pub metadata: Option<BTreeMap<String, String>>,
    pub user_provided_suffix: Option<String>,
    /// The adapter that is trained: rank, alpha, dropout, target modules.
    #[schema(value_type = Object)]
    pub lora: Value,
    pub priority: i64,
    pub started_at: Option<i64>,
    /// Optimiser steps done.
    pub step: i64,
    /// `null` until training began.
    pub total_steps: Option<i64>,
    /// Once it succeeded: how far the result, as it is served, gives the logits it gave in training
    /// on held-out rows: `tokens`, `max_abs_logit_difference`, `top1_agreement`.
    #[schema(value_type = Option<Object>)]
    pub trained_as_served: Option<Value>,
}

/// A page of jobs.
#[derive(Debug, Serialize, ToSchema)]
pub struct FineTuningJobList {
    /// Always `list`.
    pub object: &'static str,
    pub data: Vec<FineTuningJob>,
    pub has_more: bool,
}

/// Something that happened to a job.
#[derive(Debug, Serialize, ToSchema)]
pub struct FineTuningEvent {
    /// Always `fine_tuning.job.event`.
    pub object: &'static str,
    pub id: String,
    pub created_at: i64,
    /// `info`, `warn` or `error`.
    pub level: &'static str,
    pub message: String,
    /// `message` or `metrics`.
    pub r#type: &'static str,
    /// For `metrics`: `step`, `total_steps`, `train_loss`, `train_mean_token_accuracy`, …
    #[schema(value_type = Option<Object>)]
    pub data: Option<Value>,
}

/// A page of events.
#[derive(Debug, Serialize, ToSchema)]
pub struct FineTuningEventList {
    /// Always `list`.
    pub object: &'static str,
    pub data: Vec<FineTuningEvent>,
    pub has_more: bool,
}

/// A checkpoint: a model that can be used as it was after a step.
#[derive(Debug, Serialize, ToSchema)]
pub struct FineTuningCheckpoint {
    pub id: String,
    /// Always `fine_tuning.job.checkpoint`.
    pub object: &'static str,
    pub created_at: i64,
    /// `ft:…:ckpt-step-<n>`: may be named as `model`.
    pub fine_tuned_model_checkpoint: String,
    pub fine_tuning_job_id: String,
    /// `step`, `train_loss`, `valid_loss`, …
    #[schema(value_type = Object)]
    pub metrics: Value,
    pub step_number: i64,
}

/// A page of checkpoints.
#[derive(Debug, Serialize, ToSchema)]
pub struct FineTuningCheckpointList {
    /// Always `list`.
    pub object: &'static str,
    pub data: Vec<FineTuningCheckpoint>,
    pub first_id: Option<String>,
    pub last_id: Option<String>,
    pub has_more: bool,
}

impl FineTuningJob {
    /// The object of a row.
    ///
    /// # Errors
    /// If another version of the program wrote its spec.
    pub(super) fn of(job: Job, jobs: &Jobs) -> Result<Self, serde_json::Error> {
        let spec = JobSpec::of(&job)?;
        let settled = spec.settled.as_ref();
        let hyperparameters = shown_hyperparameters(
            &spec.hyperparameters,
            settled.map(|settled| &settled.hyperparameters),
        );
        let lora = spec.lora.shown(settled.map(|settled| &settled.lora));
        let ended = job.status.is_final();
        Ok(Self {
            id: job.id.to_string(),
            object: "fine_tuning.job",
            created_at: job.created_at.unix_seconds(),
            error: job.error.map(FineTuningError::from),
            fine_tuned_model: job.fine_tuned_model,
            finished_at: job.finished_at.map(|time| time.unix_seconds()),
            method: Method {
                r#type: "supervised",
                supervised: json!({"hyperparameters": hyperparameters.clone()}),
            },
            hyperparameters,
            model: spec.model,
            organization_id: jobs.catalog().organization().to_owned(),
            result_files: job.result_file.iter().map(ToString::to_string).collect(),
            status: JobStatus::as_str(job.status),
            trained_tokens: job.trained_tokens.filter(|_| ended),
            training_file: job.training_file.to_string(),
            validation_file: job.validation_file.map(|file| file.to_string()),
            seed: spec.seed,
            integrations: Vec::new(),
            estimated_finish: job.estimated_finish.map(|time| time.unix_seconds()),
            metadata: job.metadata,
            user_provided_suffix: spec.suffix,
            lora,
            priority: job.priority,
            started_at: job.started_at.map(|time| time.unix_seconds()),
            step: job.step,
            total_steps: job.total_steps,
            trained_as_served: job.served_check,
        })
    }
}

impl From<JobError> for FineTuningError {
    fn from(error: JobError) -> Self {
        Self { code: error.code, message: error.message, param: error.param }
    }
}

impl From<JobEvent> for FineTuningEvent {
    fn from(event: JobEvent) -> Self {
        Self {
            object: "fine_tuning.job.event",
            id: event.id.to_string(),
            created_at: event.created_at.unix_seconds(),
            level: event.level.as_str(),
            message: event.message,
            r#type: event.kind.as_str(),
            data: event.data,
        }
    }
}

impl From<Checkpoint> for FineTuningCheckpoint {
    fn from(checkpoint: Checkpoint) -> Self {
        Self {
            id: checkpoint.id.to_string(),
            object: "fine_tuning.job.checkpoint",
            created_at: checkpoint.created_at.unix_seconds(),
            fine_tuned_model_checkpoint: checkpoint.adapter_name,
            fine_tuning_job_id: checkpoint.job.to_string(),
            metrics: checkpoint.metrics,
            step_number: checkpoint.step,
        }
    }
}
