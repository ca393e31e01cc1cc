//! Leases: which worker may act for a job, and for how long.
//!
//! Leases run on the database's clock only. Every claim raises `lease_epoch`, and every write of a
//! worker names the epoch of its claim, so one that was overtaken changes nothing.
//! Kleppmann 2016, "How to do distributed locking", on fencing tokens.

use std::time::Duration;

use sqlx::{Any, Transaction};

use super::job::{Job, status};
use super::{NewEvent, Store, StoreError, StoreResult, events};
use crate::domain::{JobId, JobStatus};

/// A worker that dies so often in a row, without a checkpoint in between, dies of the job.
const MOST_CRASHES: i64 = 3;

/// `$1` and `$2` are the statuses of a stage, as [`Stage::while_held`] and [`Stage::from`].
const CLAIMABLE: &str = "status in ($1, $2)
                   and run_at <= {now}
                   and (lease_until is null or lease_until <= {now})";

/// What a worker wants to do with a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Read its files: `validating_files`.
    Validate,
    /// Train: `queued`, or `running` under a lease that expired.
    Train,
}

/// The right to act for a job, until it expires or is taken away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub job: JobId,
    pub owner: String,
    /// The fencing number of this claim.
    pub epoch: i64,
}

/// A job and the right to act for it.
#[derive(Clone, Debug)]
pub struct ClaimedJob {
    pub job: Job,
    pub lease: Lease,
}

/// What the holder of a lease should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewed {
    GoOn,
    /// Write a checkpoint and let go: somebody paused the job.
    Pause,
}

impl Store {
    /// Claims the first runnable job on one of `bases`, or `None` if there is nothing to do.
    ///
    /// Runnable: waiting for this stage, or left in it under a lease that has expired. Jobs whose
    /// workers died too often are failed first. Highest priority first, then oldest.
    pub async fn claim_job(
        &self,
        owner: &str,
        lease: Duration,
        stage: Stage,
        bases: &[&str],
    ) -> StoreResult<Option<ClaimedJob>> {
        self.fail_crashing_jobs().await?;
        if !self.work_waits(stage).await? {
            return Ok(None);
        }
        let claim = self.dialect.sql(&format!(
            "update jobs
             set status = $1, attempt = attempt + 1, lease_epoch = lease_epoch + 1,
                 crash_streak = crash_streak + case when lease_until is null then 0 else 1 end,
                 lease_owner = $3, lease_until = {{now}} + $4
             where id = (
                 select id from jobs
                 where {CLAIMABLE}
                   and base in ({})
                 order by priority desc, created_at, id
                 limit 1
                 {{skip_locked}})
             returning *",
            parameters(5, bases.len())
        ));
        let mut query = sqlx::query_as(claim)
            .bind(stage.while_held().as_str())
            .bind(stage.from().as_str())
            .bind(owner)
            .bind(super::micros(lease));
        for base in bases {
            query = query.bind(*base);
        }
        let mut tx = self.begin().await?;
        let Some(job) = query.fetch_optional(&mut *tx).await? else { return Ok(None) };
        self.commit(tx).await?;
        Ok(Some(ClaimedJob::new(job, owner)))
    }

    /// A look that disturbs no writer: most claims find nothing to do.
    async fn work_waits(&self, stage: Stage) -> StoreResult<bool> {
        let look = self.dialect.sql(&format!(
            "select 1 from jobs
             where {CLAIMABLE}
             limit 1"
        ));
        let found = sqlx::query(look)
            .bind(stage.while_held().as_str())
            .bind(stage.from().as_str())
            .fetch_optional(&self.reader)
            .await?;
        Ok(found.is_some())
    }

    /// Extends a lease, also one that expired but was not taken by anybody yet, and brings back
    /// what people asked for meanwhile.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if the job was cancelled, [`StoreError::LeaseLost`] if another
    /// worker has it.
    pub async fn renew_lease(&self, lease: &Lease, length: Duration) -> StoreResult<Renewed> {
        let update = self.dialect.sql(
            "update jobs
             set lease_until = {now} + $4
             where id = $1 and lease_epoch = $2 and lease_owner = $3
             returning status",
        );
        let row = sqlx::query(update)
            .bind(lease.job.as_str())
            .bind(lease.epoch)
            .bind(&*lease.owner)
            .bind(super::micros(length))
            .fetch_optional(&self.writer)
            .await?;
        let Some(row) = row else { return Err(self.why_lost(lease).await?) };
        match status(&row)? {
            JobStatus::ValidatingFiles | JobStatus::Running => Ok(Renewed::GoOn),
            _ => Ok(Renewed::Pause),
        }
    }

    async fn why_lost(&self, lease: &Lease) -> StoreResult<StoreError> {
        let row = sqlx::query("select status from jobs where id = $1")
            .bind(lease.job.as_str())
            .fetch_optional(&self.reader)
            .await?;
        Ok(match row.map(|row| status(&row)).transpose()? {
            Some(status @ JobStatus::Cancelled) => {
                StoreError::Conflict { id: lease.job.to_string(), status, action: "go on" }
            }
            _ => lease.lost(),
        })
    }

    /// Ends the leases of an owner that is known to be dead: this server's own, at its start, since
    /// the data folder it holds locked gave it its name.
    pub async fn expire_leases_of(&self, owner: &str) -> StoreResult<u64> {
        let update = self.dialect.sql(
            "update jobs
             set lease_until = {now}
             where lease_owner = $1 and lease_until > {now}",
        );
        let done = sqlx::query(update).bind(owner).execute(&self.writer).await?;
        self.changes.announce();
        Ok(done.rows_affected())
    }

    /// Fails the jobs whose lease expired once too often.
    async fn fail_crashing_jobs(&self) -> StoreResult<()> {
        let expired = self.dialect.sql(
            "select count(*) from jobs
             where lease_until <= {now} and status in ('validating_files', 'running')
               and (crash_streak + 1 >= $1 or attempt >= max_attempts)",
        );
        let count: i64 =
            sqlx::query_scalar(expired).bind(MOST_CRASHES).fetch_one(&self.reader).await?;
        if count == 0 {
            return Ok(());
        }
        let mut tx = self.begin().await?;
        for job in self.fail_expired(&mut tx).await? {
            let sentence = job.error.map(|error| error.message).unwrap_or_default();
            let event = [NewEvent::message(super::EventLevel::Error, sentence)];
            events::append(self.dialect, &mut tx, &job.id, job.event_seq, &event).await?;
        }
        self.commit(tx).await
    }

    async fn fail_expired(&self, tx: &mut Transaction<'static, Any>) -> StoreResult<Vec<Job>> {
        let update = self.dialect.sql(
            "update jobs
             set status = 'failed', finished_at = {now}, lease_owner = null, lease_until = null,
                 event_seq = event_seq + 1, error_code = 'job_crashed_worker',
                 error_message = 'The server died several times while it worked on this job, \
             and the job was given up.'
             where lease_until <= {now} and status in ('validating_files', 'running')
               and (crash_streak + 1 >= $1 or attempt >= max_attempts)
             returning *",
        );
        Ok(sqlx::query_as(update).bind(MOST_CRASHES).fetch_all(&mut **tx).await?)
    }
}

impl Stage {
    fn from(self) -> JobStatus {
        match self {
            Self::Validate => JobStatus::ValidatingFiles,
            Self::Train => JobStatus::Queued,
        }
    }

    fn while_held(self) -> JobStatus {
        match self {
            Self::Validate => JobStatus::ValidatingFiles,
            Self::Train => JobStatus::Running,
        }
    }
}

impl ClaimedJob {
    fn new(job: Job, owner: &str) -> Self {
        let lease = Lease { job: job.id.clone(), owner: owner.to_owned(), epoch: job.lease_epoch };
        Self { job, lease }
    }
}

/// `$5, $6, …`, or `null` for none, which nothing equals.
fn parameters(first: usize, count: usize) -> String {
    let list: Vec<String> = (first..first + count).map(|n| format!("${n}")).collect();
    if list.is_empty() { "null".to_owned() } else { list.join(", ") }
}
