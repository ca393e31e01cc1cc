//! The task that takes jobs from the queue: claim, prepare, train on the device, finish once.
//!
//! Two loops beside each other: files are validated while another job trains, so a bad file is
//! known at once; training runs one job after the other, in the order of the queue. Whatever kills
//! this process, the row, the lease and the last checkpoint are enough for the next claim to go on.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::follow::Follower;
use super::heartbeat::{Heartbeat, LeaseTiming};
use super::prepare::Prepare;
use crate::artifacts::{ArtifactError, Artifacts};
use crate::store::{ClaimedJob, Stage, Store, StoreError, StoreResult};
use crate::worker::WorkerHandle;

/// Nothing announces that a lease ran out or that a job's time came; so one looks.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Everything a job needs on its way.
#[derive(Clone)]
pub struct Runner {
    pub store: Store,
    pub artifacts: Artifacts,
    pub worker: WorkerHandle,
    pub prepare: Arc<dyn Prepare>,
    /// Whose leases these are: the same after a restart on the same data folder.
    pub server_id: String,
    pub timing: LeaseTiming,
}

impl Runner {
    /// Works until `stop`; then gives back what it holds, checkpointed and uncharged, and returns.
    pub async fn run(self, stop: CancellationToken) {
        if let Err(error) = self.tidy().await {
            tracing::warn!(%error, "the leavings of an earlier run could not be cleared away");
        }
        tokio::join!(self.work(Stage::Validate, &stop), self.work(Stage::Train, &stop));
    }

    /// An earlier process of this server is dead: its leases are over, and checkpoints that no job
    /// can go on from are rubbish.
    async fn tidy(&self) -> Result<(), TidyError> {
        self.store.expire_leases_of(&self.server_id).await?;
        self.artifacts.sweep_checkpoints(self.store.live_states().await?).await?;
        Ok(())
    }

    async fn work(&self, stage: Stage, stop: &CancellationToken) {
        let mut changes = self.store.changes();
        while !stop.is_cancelled() {
            changes.mark_unchanged();
            match self.claim(stage).await {
                Ok(Some(claimed)) => self.handle(stage, claimed, stop).await,
                Ok(None) => wait(&mut changes, stop).await,
                Err(error) => {
                    tracing::warn!(%error, "no job could be claimed");
                    wait(&mut self.store.changes(), stop).await;
                }
            }
        }
    }

    async fn claim(&self, stage: Stage) -> StoreResult<Option<ClaimedJob>> {
        let bases: Vec<&str> = self.worker.bases().iter().map(|base| &*base.name).collect();
        self.store.claim_job(&self.server_id, self.timing.length, stage, &bases).await
    }

    async fn handle(&self, stage: Stage, claimed: ClaimedJob, stop: &CancellationToken) {
        let id = claimed.job.id.clone();
        tracing::info!(job.id = %id, job.attempt = claimed.job.attempt, ?stage, "job claimed");
        let heartbeat = self.heartbeat(&claimed, stop);
        let follower = Follower {
            store: &self.store,
            artifacts: &self.artifacts,
            worker: &self.worker,
            prepare: &*self.prepare,
            claimed: &claimed,
        };
        let done = match stage {
            Stage::Validate => follower.validate(heartbeat).await,
            Stage::Train => follower.train(heartbeat).await,
        };
        match done {
            Ok(()) => {}
            Err(StoreError::LeaseLost { .. }) => {
                tracing::info!(job.id = %id, "the job was cancelled or taken over");
            }
            Err(error) => tracing::error!(job.id = %id, %error, "the job could not be recorded"),
        }
        self.clear_states(&claimed).await;
    }

    fn heartbeat(&self, claimed: &ClaimedJob, stop: &CancellationToken) -> Heartbeat {
        let tenant = claimed.job.tenant.clone();
        let lease = claimed.lease.clone();
        Heartbeat::start(self.store.clone(), tenant, lease, self.timing, stop.clone())
    }

    /// A job that ended needs its training states no more.
    async fn clear_states(&self, claimed: &ClaimedJob) {
        let job = self.store.job(&claimed.job.tenant, &claimed.job.id).await;
        if !job.is_ok_and(|job| job.status.is_final()) {
            return;
        }
        let folder = format!("checkpoints/{}", claimed.job.id);
        if let Err(error) = self.artifacts.delete_folder(&folder).await {
            tracing::warn!(job.id = %claimed.job.id, %error, "old checkpoints stay until restart");
        }
    }
}

/// Until something changed, or it is time to look again.
async fn wait(changes: &mut watch::Receiver<u64>, stop: &CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        _ = changes.changed() => {}
        () = tokio::time::sleep(LOOK_EVERY) => {}
    }
}

#[derive(Debug, thiserror::Error)]
enum TidyError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Artifacts(#[from] ArtifactError),
}
