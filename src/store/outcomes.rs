//! What the worker that holds a job's lease writes: progress, and how it ended. Every write is
//! fenced by the lease.

use std::time::Duration;

use serde_json::Value;
use sqlx::{Any, Transaction};

use super::adapters::{self, IfTaken, NewAdapter};
use super::claims::Lease;
use super::files::{self, NewFile};
use super::job::{Job, JobError};
use super::page::Timestamp;
use super::{NewEvent, Store, StoreResult, events};

/// How far a run has come, and what happened on the way.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    pub step: i64,
    pub total_steps: Option<i64>,
    /// Tokens that bore loss so far.
    pub trained_tokens: Option<i64>,
    pub estimated_finish: Option<Timestamp>,
    pub events: Vec<NewEvent>,
}

/// All that a successful job leaves behind; it becomes visible at once or not at all.
#[derive(Clone, Debug)]
pub struct Success {
    pub adapter: NewAdapter,
    /// The table of metrics, as a file of purpose `fine-tune-results`.
    pub result_file: NewFile,
    pub step: i64,
    pub trained_tokens: i64,
    /// How the adapter as served compares with training.
    pub served_check: Option<Value>,
    pub events: Vec<NewEvent>,
}

/// A parameter of a fenced update.
#[derive(Clone, Debug)]
pub(super) enum Parameter {
    Int(Option<i64>),
    Text(Option<String>),
}

impl Store {
    /// The files are good: to the queue, for whoever trains next.
    ///
    /// # Errors
    /// [`super::StoreError::LeaseLost`], as with all that follow.
    pub async fn finish_validation(&self, lease: &Lease, events: &[NewEvent]) -> StoreResult<()> {
        let set = "status = 'queued', validated_at = {now}, attempt = 0, crash_streak = 0,
                   lease_owner = null, lease_until = null";
        self.write(lease, set, &[], events).await
    }

    /// Training begins. `spec` is the job's with everything settled that was left to the server.
    pub async fn start_training(
        &self,
        lease: &Lease,
        spec: &Value,
        events: &[NewEvent],
    ) -> StoreResult<()> {
        let set = "spec = $5, started_at = coalesce(started_at, {now})";
        self.write(lease, set, &[spec.to_string().into()], events).await
    }

    /// Steps were made.
    pub async fn record_progress(&self, lease: &Lease, progress: &Progress) -> StoreResult<()> {
        let set = "step = case when step < $5 then $5 else step end,
                   total_steps = coalesce($6, total_steps),
                   trained_tokens = coalesce($7, trained_tokens),
                   estimated_finish = coalesce($8, estimated_finish)";
        let values = [
            progress.step.into(),
            Parameter::Int(progress.total_steps),
            Parameter::Int(progress.trained_tokens),
            Parameter::Int(progress.estimated_finish.map(|time| time.0)),
        ];
        self.write(lease, set, &values, &progress.events).await
    }

    /// The run reached its end: adapter, table of metrics, status and events in one transaction.
    /// A pause that came too late to stop it does not undo it.
    ///
    /// # Errors
    /// [`super::StoreError::LeaseLost`]; [`super::StoreError::NameTaken`] if another adapter took
    /// the name meanwhile.
    pub async fn succeed(&self, lease: &Lease, success: &Success) -> StoreResult<()> {
        let mut tx = self.begin().await?;
        let set = "status = 'succeeded', finished_at = {now}, lease_owner = null,
                   lease_until = null, estimated_finish = null, step = $5, trained_tokens = $6,
                   fine_tuned_model = $7, result_file = $8, served_check = $9";
        let values = [
            success.step.into(),
            success.trained_tokens.into(),
            success.adapter.name.clone().into(),
            success.result_file.id.to_string().into(),
            Parameter::Text(success.served_check.as_ref().map(Value::to_string)),
        ];
        self.fenced(&mut tx, lease, set, &values, &success.events).await?;
        adapters::insert(self.dialect, &mut tx, &success.adapter, IfTaken::Refuse).await?;
        files::insert(self.dialect, &mut tx, &success.result_file).await?;
        self.commit(tx).await
    }

    /// The job cannot succeed, now or later.
    pub async fn fail(
        &self,
        lease: &Lease,
        error: &JobError,
        events: &[NewEvent],
    ) -> StoreResult<()> {
        let set = "status = 'failed', finished_at = {now}, lease_owner = null,
                   lease_until = null, estimated_finish = null,
                   error_code = $5, error_message = $6, error_param = $7";
        let values = [
            error.code.clone().into(),
            error.message.replace('\0', "").into(),
            Parameter::Text(error.param.clone()),
        ];
        self.write(lease, set, &values, events).await
    }

    /// Gives the job back unharmed: the server is stopping, or the job was paused. No attempt is
    /// charged.
    pub async fn release(&self, lease: &Lease, events: &[NewEvent]) -> StoreResult<()> {
        let set = "status = case when status = 'running' then 'queued' else status end,
                   attempt = attempt - 1, lease_owner = null, lease_until = null,
                   estimated_finish = null";
        self.write(lease, set, &[], events).await
    }

    /// Gives the job back to be tried again after `delay`, because of something that may pass.
    /// When its attempts are used up it fails with `error` instead.
    pub async fn postpone(
        &self,
        lease: &Lease,
        delay: Duration,
        error: &JobError,
        events: &[NewEvent],
    ) -> StoreResult<()> {
        let set = "status = case when attempt >= max_attempts then 'failed'
                                 when status = 'running' then 'queued'
                                 else status end,
                   finished_at = case when attempt >= max_attempts then {now} end,
                   error_code = case when attempt >= max_attempts then $6 end,
                   error_message = case when attempt >= max_attempts then $7 end,
                   run_at = {now} + $5, lease_owner = null, lease_until = null,
                   estimated_finish = null";
        let values = [
            super::micros(delay).into(),
            error.code.clone().into(),
            error.message.replace('\0', "").into(),
        ];
        self.write(lease, set, &values, events).await
    }

    async fn write(
        &self,
        lease: &Lease,
        set: &str,
        values: &[Parameter],
        events: &[NewEvent],
    ) -> StoreResult<()> {
        let mut tx = self.begin().await?;
        self.fenced(&mut tx, lease, set, values, events).await?;
        self.commit(tx).await
    }

    /// Changes the job's row, if the lease is still held, and appends events. `values` are
    /// parameters from `$5` on.
    pub(super) async fn fenced(
        &self,
        tx: &mut Transaction<'static, Any>,
        lease: &Lease,
        set: &str,
        values: &[Parameter],
        events: &[NewEvent],
    ) -> StoreResult<()> {
        let update = self.dialect.sql(&format!(
            "update jobs
             set {set}, event_seq = event_seq + $4
             where id = $1 and lease_epoch = $2 and lease_owner = $3
             returning *"
        ));
        let mut query = sqlx::query_as(update)
            .bind(lease.job.as_str())
            .bind(lease.epoch)
            .bind(&*lease.owner)
            .bind(events.len() as i64);
        for value in values {
            query = match value {
                Parameter::Int(number) => query.bind(*number),
                Parameter::Text(text) => query.bind(text.clone()),
            };
        }
        let job: Option<Job> = query.fetch_optional(&mut **tx).await?;
        let job = job.ok_or_else(|| lease.lost())?;
        events::append(self.dialect, tx, &lease.job, job.event_seq, events).await
    }
}

impl From<i64> for Parameter {
    fn from(number: i64) -> Self {
        Self::Int(Some(number))
    }
}

impl From<String> for Parameter {
    fn from(text: String) -> Self {
        Self::Text(Some(text))
    }
}
