//! Checkpoints of a job: visible once their row is, whatever lies on disk.

use serde_json::Value;
use sqlx::any::AnyRow;
use sqlx::{FromRow, Row};

use super::adapters::{self, IfTaken, NewAdapter};
use super::claims::Lease;
use super::job::json;
use super::page::{Listed, Page, Timestamp};
use super::{NewEvent, Store, StoreError, StoreResult};
use crate::domain::{AdapterId, CheckpointId, JobId};

/// A checkpoint whose state and adapter are already safe.
#[derive(Clone, Debug)]
pub struct NewCheckpoint {
    pub id: CheckpointId,
    /// The optimiser step after which it was taken.
    pub step: i64,
    /// The state's folder, a key of `artifacts`.
    pub state: String,
    /// Hex SHA-256 of the state folder's manifest.
    pub state_sha256: String,
    /// As the API shows them: `step`, `train_loss`, …
    pub metrics: Value,
    /// The adapter as it stood, servable at once.
    pub adapter: NewAdapter,
}

/// A recorded checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    pub id: CheckpointId,
    pub job: JobId,
    pub step: i64,
    pub adapter: AdapterId,
    /// What requests call its adapter: `ft:…:ckpt-step-N`.
    pub adapter_name: String,
    /// `None` once a run can no longer go on from it; its adapter may still be there.
    pub state: Option<String>,
    pub state_sha256: String,
    pub metrics: Value,
    pub created_at: Timestamp,
}

const SELECT: &str = "
    select c.*, a.name as adapter_name
    from checkpoints c
    join adapters a on a.id = c.adapter_id";

impl Store {
    /// Records a checkpoint with its adapter and the events that tell of it, and ends the streak of
    /// crashes and attempts: the job got somewhere. One already there at the same step is replaced.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`].
    pub async fn record_checkpoint(
        &self,
        lease: &Lease,
        new: &NewCheckpoint,
        events: &[NewEvent],
    ) -> StoreResult<()> {
        let mut tx = self.begin().await?;
        let set = "step = case when step < $5 then $5 else step end, crash_streak = 0, attempt = 1";
        self.fenced(&mut tx, lease, set, &[new.step.into()], events).await?;
        let adapter =
            adapters::insert(self.dialect, &mut tx, &new.adapter, IfTaken::Replace).await?;
        let insert = self.dialect.sql(
            "insert into checkpoints (id, job_id, step, lease_epoch, adapter_id, state,
                 state_sha256, metrics, created_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, {now})
             on conflict (job_id, step) do update
             set lease_epoch = excluded.lease_epoch, adapter_id = excluded.adapter_id,
                 state = excluded.state, state_sha256 = excluded.state_sha256,
                 metrics = excluded.metrics",
        );
        sqlx::query(insert)
            .bind(new.id.as_str())
            .bind(lease.job.as_str())
            .bind(new.step)
            .bind(lease.epoch)
            .bind(adapter.id.as_str())
            .bind(&*new.state)
            .bind(&*new.state_sha256)
            .bind(new.metrics.to_string())
            .execute(&mut *tx)
            .await?;
        self.commit(tx).await
    }

    /// A page of a job's checkpoints.
    ///
    /// # Errors
    /// [`StoreError::UnknownCursor`] if `page.after` is no checkpoint.
    pub async fn checkpoints(&self, job: &JobId, page: &Page) -> StoreResult<Listed<Checkpoint>> {
        let after = self.cursor("checkpoints", page).await?;
        let inner = format!("select * from ({SELECT}) as listed\n             where job_id = $4");
        let rows = sqlx::query_as(self.dialect.sql(&page.keyset(&inner)))
            .bind(after.at)
            .bind(after.id)
            .bind(page.fetch_limit())
            .bind(job.as_str())
            .fetch_all(&self.reader)
            .await?;
        Ok(Listed::from_one_too_many(rows, page.limit))
    }

    /// The checkpoints a run of this job could go on from, newest step first.
    pub async fn resumable_checkpoints(&self, job: &JobId) -> StoreResult<Vec<Checkpoint>> {
        let query = self.dialect.sql(&format!(
            "{SELECT}
             where c.job_id = $1 and c.state is not null
             order by c.step desc"
        ));
        Ok(sqlx::query_as(query).bind(job.as_str()).fetch_all(&self.reader).await?)
    }

    /// Notes that no run can go on from this checkpoint any more; only then may its state be
    /// removed from disk.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`].
    pub async fn forget_state(&self, lease: &Lease, id: &CheckpointId) -> StoreResult<()> {
        let done = sqlx::query(
            "update checkpoints
             set state = null
             where id = $1 and exists (
                 select 1 from jobs
                 where id = job_id and id = $2 and jobs.lease_epoch = $3 and lease_owner = $4)",
        )
        .bind(id.as_str())
        .bind(lease.job.as_str())
        .bind(lease.epoch)
        .bind(&*lease.owner)
        .execute(&self.writer)
        .await?;
        if done.rows_affected() == 0 { Err(lease.lost()) } else { Ok(()) }
    }

    /// The states some run may still go on from; every other one on disk is rubbish.
    pub async fn live_states(&self) -> StoreResult<Vec<String>> {
        Ok(sqlx::query_scalar(
            "select c.state from checkpoints c
             join jobs j on j.id = c.job_id
             where c.state is not null and j.finished_at is null",
        )
        .fetch_all(&self.reader)
        .await?)
    }
}

impl Lease {
    pub(super) fn lost(&self) -> StoreError {
        StoreError::LeaseLost { id: self.job.to_string(), epoch: self.epoch }
    }
}

impl<'r> FromRow<'r, AnyRow> for Checkpoint {
    fn from_row(row: &'r AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get::<String, _>("id")?.into(),
            job: row.try_get::<String, _>("job_id")?.into(),
            step: row.try_get("step")?,
            adapter: row.try_get::<String, _>("adapter_id")?.into(),
            adapter_name: row.try_get("adapter_name")?,
            state: row.try_get("state")?,
            state_sha256: row.try_get("state_sha256")?,
            metrics: json(row, "metrics")?.unwrap_or(Value::Null),
            created_at: Timestamp(row.try_get("created_at")?),
        })
    }
}
