//! Following a job's events as they come.

use std::collections::VecDeque;

use futures::stream::{self, Stream};
use tokio::sync::watch;

use super::service::{Jobs, JobsResult};
use crate::domain::JobId;
use crate::store::{JobEvent, StoreResult};

/// Events fetched at once.
const BATCH: usize = 256;

struct Follower {
    jobs: Jobs,
    tenant: String,
    id: JobId,
    /// The number of the last event handed out.
    seq: i64,
    fetched: VecDeque<JobEvent>,
    changes: watch::Receiver<u64>,
}

impl Jobs {
    /// The job's events behind number `after` (0: all), oldest first, until the job has ended and
    /// every event was seen. No event is missed and none comes twice.
    ///
    /// # Errors
    /// [`crate::store::StoreError::NotFound`].
    pub async fn follow(
        &self,
        tenant: &str,
        id: &JobId,
        after: i64,
    ) -> JobsResult<impl Stream<Item = StoreResult<JobEvent>> + Send + 'static> {
        self.job(tenant, id).await?;
        let follower = Follower {
            jobs: self.clone(),
            tenant: tenant.to_owned(),
            id: id.clone(),
            seq: after,
            fetched: VecDeque::new(),
            changes: self.store().changes(),
        };
        Ok(stream::try_unfold(follower, |mut follower| async move {
            Ok(follower.next().await?.map(|event| (event, follower)))
        }))
    }
}

impl Follower {
    async fn next(&mut self) -> StoreResult<Option<JobEvent>> {
        loop {
            if let Some(event) = self.fetched.pop_front() {
                self.seq = event.seq;
                return Ok(Some(event));
            }
            // Looked at first: what changes from here on wakes the wait below.
            self.changes.mark_unchanged();
            let store = self.jobs.store();
            let job = store.job(&self.tenant, &self.id).await?;
            self.fetched = store.events_after(&self.id, self.seq, BATCH).await?.into();
            if !self.fetched.is_empty() {
                continue;
            }
            if job.status.is_final() || self.changes.changed().await.is_err() {
                return Ok(None);
            }
        }
    }
}
