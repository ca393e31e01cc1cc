//! A fine-tuning job as a row.

use std::collections::BTreeMap;

use serde_json::Value;
use sqlx::any::AnyRow;
use sqlx::{FromRow, Row};

use super::page::Timestamp;
use crate::domain::{FileId, JobId, JobStatus};

/// A client's own notes on a job.
pub type Metadata = BTreeMap<String, String>;

/// A job to be queued.
#[derive(Clone, Debug)]
pub struct NewJob {
    pub id: JobId,
    pub tenant: String,
    /// The resident base model it trains on: only a server that holds it claims the job.
    pub base: String,
    pub base_fingerprint: String,
    /// What was asked for, as `jobs` reads it back.
    pub spec: Value,
    pub metadata: Option<Metadata>,
    pub training_file: FileId,
    pub validation_file: Option<FileId>,
    /// Higher goes first.
    pub priority: i64,
}

/// A job as the database knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    pub id: JobId,
    pub tenant: String,
    pub base: String,
    pub base_fingerprint: String,
    pub spec: Value,
    pub metadata: Option<Metadata>,
    pub training_file: FileId,
    pub validation_file: Option<FileId>,
    pub status: JobStatus,
    pub priority: i64,
    /// Times it was claimed for training since its last checkpoint and not given back.
    pub attempt: i64,
    /// Attempts that ended without a word since the last checkpoint.
    pub crash_streak: i64,
    pub lease_owner: Option<String>,
    /// The fencing number of the newest claim.
    pub lease_epoch: i64,
    /// Optimiser steps done, as far as is known.
    pub step: i64,
    pub total_steps: Option<i64>,
    /// The number of its last event.
    pub event_seq: i64,
    pub trained_tokens: Option<i64>,
    /// The name of the finished adapter.
    pub fine_tuned_model: Option<String>,
    pub result_file: Option<FileId>,
    /// How the finished adapter as served compares with training.
    pub served_check: Option<Value>,
    pub error: Option<JobError>,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub estimated_finish: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
}

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobError {
    /// A word for programs, for example `invalid_training_file`.
    pub code: String,
    pub message: String,
    /// The parameter at fault, if one is.
    pub param: Option<String>,
}

impl<'r> FromRow<'r, AnyRow> for Job {
    fn from_row(row: &'r AnyRow) -> Result<Self, sqlx::Error> {
        let time =
            |column| Ok::<_, sqlx::Error>(row.try_get::<Option<i64>, _>(column)?.map(Timestamp));
        let file = |column| {
            Ok::<_, sqlx::Error>(row.try_get::<Option<String>, _>(column)?.map(FileId::from))
        };
        Ok(Self {
            id: row.try_get::<String, _>("id")?.into(),
            tenant: row.try_get("tenant")?,
            base: row.try_get("base")?,
            base_fingerprint: row.try_get("base_fingerprint")?,
            spec: json(row, "spec")?.unwrap_or(Value::Null),
            metadata: json(row, "metadata")?,
            training_file: row.try_get::<String, _>("training_file")?.into(),
            validation_file: file("validation_file")?,
            status: status(row)?,
            priority: row.try_get("priority")?,
            attempt: row.try_get("attempt")?,
            crash_streak: row.try_get("crash_streak")?,
            lease_owner: row.try_get("lease_owner")?,
            lease_epoch: row.try_get("lease_epoch")?,
            step: row.try_get("step")?,
            total_steps: row.try_get("total_steps")?,
            event_seq: row.try_get("event_seq")?,
            trained_tokens: row.try_get("trained_tokens")?,
            fine_tuned_model: row.try_get("fine_tuned_model")?,
            result_file: file("result_file")?,
            served_check: json(row, "served_check")?,
            error: error(row)?,
            created_at: Timestamp(row.try_get("created_at")?),
            started_at: time("started_at")?,
            estimated_finish: time("estimated_finish")?,
            finished_at: time("finished_at")?,
        })
    }
}

fn error(row: &AnyRow) -> Result<Option<JobError>, sqlx::Error> {
    let Some(code) = row.try_get::<Option<String>, _>("error_code")? else { return Ok(None) };
    let message: Option<String> = row.try_get("error_message")?;
    Ok(Some(JobError {
        code,
        message: message.unwrap_or_default(),
        param: row.try_get("error_param")?,
    }))
}

/// The `status` column of a row.
pub(super) fn status(row: &AnyRow) -> Result<JobStatus, sqlx::Error> {
    let word: String = row.try_get("status")?;
    JobStatus::parse(&word).ok_or_else(|| undecodable("status", format!("`{word}`")))
}

/// A column that holds JSON text, or nothing.
pub(super) fn json<T: serde::de::DeserializeOwned>(
    row: &AnyRow,
    column: &'static str,
) -> Result<Option<T>, sqlx::Error> {
    let text: Option<String> = row.try_get(column)?;
    text.map(|text| serde_json::from_str(&text))
        .transpose()
        .map_err(|cause| undecodable(column, cause))
}

/// A value that this version of the program does not know.
pub(super) fn undecodable(column: &str, cause: impl ToString) -> sqlx::Error {
    sqlx::Error::ColumnDecode { index: column.to_owned(), source: cause.to_string().into() }
}
