//! What people may do to a job: cancel, pause, resume.

use super::job::Job;
use super::jobs::not_found;
use super::{NewEvent, Store, StoreError, StoreResult, events};
use crate::domain::JobId;

/// One transition of the state machine, as the API may ask for it.
struct Transition {
    /// Completes "cannot …".
    action: &'static str,
    /// Where it may start, as SQL.
    from: &'static str,
    set: &'static str,
    event: &'static str,
}

/// Final at once, from wherever the job stands. Taking the lease away fences the worker off: it
/// hears of it at its next renewal and stops.
const CANCEL: Transition = Transition {
    action: "be cancelled",
    from: "'validating_files', 'queued', 'running', 'paused'",
    set: "status = 'cancelled', finished_at = {now}, lease_owner = null, lease_until = null",
    event: "The job has been cancelled",
};

/// A running job keeps its lease: its worker still has a checkpoint to write, and then lets go.
const PAUSE: Transition = Transition {
    action: "be paused",
    from: "'validating_files', 'queued', 'running'",
    set: "status = 'paused',
          lease_owner = case when status = 'running' then lease_owner end,
          lease_until = case when status = 'running' then lease_until end",
    event: "The job has been paused",
};

/// Back to the queue. If its last worker has not let go yet, the next claim waits for that.
const RESUME: Transition = Transition {
    action: "be resumed",
    from: "'paused'",
    set: "status = case when validated_at is null then 'validating_files' else 'queued' end,
          run_at = {now}",
    event: "The job has been resumed",
};

impl Store {
    /// Cancels a job; it is final when this returns.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if it has ended already, [`StoreError::NotFound`].
    pub async fn cancel_job(&self, tenant: &str, id: &JobId) -> StoreResult<Job> {
        self.transition(tenant, id, CANCEL).await
    }

    /// Pauses a job. A running one is `paused` at once; its worker stops after the step it is in
    /// and writes a checkpoint. If that step was the last one, the job still succeeds.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if it is paused or has ended, [`StoreError::NotFound`].
    pub async fn pause_job(&self, tenant: &str, id: &JobId) -> StoreResult<Job> {
        self.transition(tenant, id, PAUSE).await
    }

    /// Queues a paused job again; it goes on from its last checkpoint.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if it is not paused, [`StoreError::NotFound`].
    pub async fn resume_job(&self, tenant: &str, id: &JobId) -> StoreResult<Job> {
        self.transition(tenant, id, RESUME).await
    }

    async fn transition(&self, tenant: &str, id: &JobId, way: Transition) -> StoreResult<Job> {
        let mut tx = self.begin().await?;
        let update = self.dialect.sql(&format!(
            "update jobs
             set {}, event_seq = event_seq + 1
             where tenant = $1 and id = $2 and status in ({})
             returning *",
            way.set, way.from
        ));
        let job: Option<Job> =
            sqlx::query_as(update).bind(tenant).bind(id.as_str()).fetch_optional(&mut *tx).await?;
        let Some(job) = job else {
            drop(tx);
            return Err(self.refusal(tenant, id, way.action).await);
        };
        let event = [NewEvent::info(way.event)];
        events::append(self.dialect, &mut tx, id, job.event_seq, &event).await?;
        self.commit(tx).await?;
        Ok(job)
    }

    async fn refusal(&self, tenant: &str, id: &JobId, action: &'static str) -> StoreError {
        match self.job(tenant, id).await {
            Ok(job) => StoreError::Conflict { id: id.to_string(), status: job.status, action },
            Err(StoreError::NotFound { .. }) => not_found(id),
            Err(error) => error,
        }
    }
}
