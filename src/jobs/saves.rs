//! Bringing a run's snapshots to disk, then into the database: never the other way round.

use std::path::PathBuf;

use serde_json::json;

use super::insist::insist;
use super::metrics::{self, Table, Validation};
use super::prepare::{Prepare, Prepared};
use crate::artifacts::{ArtifactError, Artifacts, Folder};
use crate::domain::{AdapterId, AdapterWeights, CheckpointId, FileId, ServedCheck};
use crate::store::{
    AdapterSource, ClaimedJob, EventLevel, NewAdapter, NewCheckpoint, NewEvent, NewFile, Store,
    StoreError, Success,
};
use crate::worker::TrainSnapshot;

/// The training state's name in a checkpoint folder.
const STATE_FILE: &str = "state.safetensors";

/// So many newest checkpoints can be resumed from; a damaged one has another behind it.
const KEPT_STATES: usize = 2;

const PAGE: usize = 1000;

/// Why a snapshot could not be kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum SaveError {
    #[error(transparent)]
    Artifacts(#[from] ArtifactError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Where the snapshots of one run go.
pub(super) struct Saves<'a> {
    pub store: &'a Store,
    pub artifacts: &'a Artifacts,
    pub prepare: &'a dyn Prepare,
    pub claimed: &'a ClaimedJob,
}

impl Saves<'_> {
    /// The newest checkpoint whose every byte is as it was written. Damaged ones are set aside, and
    /// the job's events say so.
    ///
    /// # Errors
    /// [`SaveError`]; a damaged checkpoint is none.
    pub async fn newest_valid(&self) -> Result<Option<(i64, PathBuf)>, SaveError> {
        let job = &self.claimed.job.id;
        for checkpoint in self.store.resumable_checkpoints(job).await? {
            let Some(state) = &checkpoint.state else { continue };
            match self.artifacts.verified_folder(state, &checkpoint.state_sha256).await {
                Ok(folder) => return Ok(Some((checkpoint.step, folder.join(STATE_FILE)))),
                Err(ArtifactError::Corrupt { reason, .. }) => {
                    tracing::warn!(job.id = %job, checkpoint.step, reason, "a checkpoint is damaged");
                    self.store.forget_state(&self.claimed.lease, &checkpoint.id).await?;
                    self.artifacts.quarantine(state).await?;
                    self.tell_of_damage(checkpoint.step).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    async fn tell_of_damage(&self, step: i64) -> Result<(), StoreError> {
        let message = format!("The checkpoint at step {step} is damaged; an earlier one is used");
        let events = vec![NewEvent::message(EventLevel::Warn, message)];
        let progress = crate::store::Progress { events, ..Default::default() };
        self.store.record_progress(&self.claimed.lease, &progress).await
    }

    /// Keeps a checkpoint, and with it the events that came before it.
    ///
    /// # Errors
    /// [`SaveError`]; then the checkpoint does not exist.
    pub async fn checkpoint(
        &self,
        run: &Prepared,
        snapshot: &TrainSnapshot,
        mut events: Vec<NewEvent>,
    ) -> Result<(), SaveError> {
        let (job, lease) = (&self.claimed.job, &self.claimed.lease);
        let adapter = self.adapter(run, &snapshot.adapter, Some(snapshot.step)).await?;
        let files = vec![(STATE_FILE.to_owned(), snapshot.state.to_vec())];
        let state = self
            .artifacts
            .put_checkpoint(job.id.as_str(), snapshot.step, lease.epoch, files)
            .await?;
        let id = CheckpointId::generate();
        events.push(NewEvent::info(format!(
            "Checkpoint created at step {} with Snapshot ID: {}",
            snapshot.step, adapter.name
        )));
        let metrics = snapshot.metrics.as_ref();
        let new = NewCheckpoint {
            id,
            step: snapshot.step as i64,
            state: state.location,
            state_sha256: state.sha256,
            metrics: metrics::of_checkpoint(snapshot.step, metrics, validation(snapshot)),
            adapter,
        };
        insist(|| self.store.record_checkpoint(lease, &new, &events)).await?;
        self.forget_old_states().await
    }

    async fn forget_old_states(&self) -> Result<(), SaveError> {
        let kept = self.store.resumable_checkpoints(&self.claimed.job.id).await?;
        for old in kept.into_iter().skip(KEPT_STATES) {
            self.store.forget_state(&self.claimed.lease, &old.id).await?;
            if let Some(state) = old.state {
                self.artifacts.delete_folder(&state).await?;
            }
        }
        Ok(())
    }

    /// Ends the job: adapter, table of metrics, status and events, at once.
    ///
    /// # Errors
    /// [`SaveError`]; then nothing of it is visible.
    pub async fn success(
        &self,
        run: &Prepared,
        snapshot: &TrainSnapshot,
        trained_tokens: Option<i64>,
    ) -> Result<(), SaveError> {
        let result = snapshot.best.as_ref().unwrap_or(&snapshot.adapter);
        let adapter = self.adapter(run, result, None).await?;
        let csv = self.table().await?.to_csv();
        // Alive until the row that names it is there.
        let blob = self.artifacts.put_bytes(csv).await?;
        let job = &self.claimed.job;
        let result_file = NewFile {
            id: FileId::generate(),
            tenant: job.tenant.clone(),
            purpose: "fine-tune-results".into(),
            filename: "step_metrics.csv".into(),
            bytes: blob.bytes,
            sha256: blob.sha256.clone(),
            status: "processed".into(),
            status_details: None,
            expires_after: None,
        };
        let mut events = vec![
            NewEvent::info(format!("New fine-tuned model created: {}", adapter.name)),
            NewEvent::info("The job has successfully completed"),
        ];
        events.splice(0..0, snapshot.served.as_ref().map(told_of_serving));
        let served_check = snapshot.served.map(|check| json!(check));
        let trained_tokens = trained_tokens.or(job.trained_tokens).unwrap_or_default();
        let step = snapshot.step as i64;
        let success = Success { adapter, result_file, step, trained_tokens, served_check, events };
        insist(|| self.store.succeed(&self.claimed.lease, &success)).await?;
        Ok(())
    }

    async fn table(&self) -> Result<Table, StoreError> {
        let (mut table, mut seq) = (Table::default(), 0);
        loop {
            let events = self.store.events_after(&self.claimed.job.id, seq, PAGE).await?;
            let Some(last) = events.last() else { return Ok(table) };
            seq = last.seq;
            events.iter().for_each(|event| table.add(event));
        }
    }

    async fn adapter(
        &self,
        run: &Prepared,
        adapter: &AdapterWeights,
        step: Option<usize>,
    ) -> Result<NewAdapter, SaveError> {
        let job = &self.claimed.job;
        let files = self.prepare.adapter_files(job, run, adapter, step);
        let folder: Folder = self.artifacts.put_adapter(files).await?;
        let name = match step {
            Some(step) => format!("{}:ckpt-step-{step}", run.model_name),
            None => run.model_name.clone(),
        };
        Ok(NewAdapter {
            id: AdapterId::generate(),
            name,
            base: job.base.clone(),
            base_fingerprint: Some(job.base_fingerprint.clone()),
            location: folder.location,
            sha256: folder.sha256,
            r: run.lora.r,
            size_bytes: folder.size_bytes,
            source: AdapterSource::Job,
            job: Some(job.id.clone()),
            step: step.map(|step| step as i64),
        })
    }
}

fn told_of_serving(check: &ServedCheck) -> NewEvent {
    let ServedCheck { tokens, max_abs_logit_difference: off, top1_agreement } = check;
    let differ =
        if *off == 0.0 { "are equal".into() } else { format!("differ by at most {off:.1e}") };
    let message = format!(
        "Served against trained: logits of {tokens} tokens {differ}, the likeliest token is the \
         same at {:.1} %",
        100.0 * top1_agreement
    );
    NewEvent { data: Some(json!(check)), ..NewEvent::info(message) }
}

fn validation(snapshot: &TrainSnapshot) -> Option<Validation> {
    let mean_token_accuracy = snapshot.valid_mean_token_accuracy?;
    Some(Validation { loss: snapshot.valid_loss?, mean_token_accuracy })
}
