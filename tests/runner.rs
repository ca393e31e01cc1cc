//! A job's whole life through the runner, with a device that trains by arithmetic.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::BoxFuture;
use tandem::artifacts::Artifacts;
use tandem::domain::{
    AdapterWeights, Example, Hyperparameters, JobId, JobStatus, LoraSpec, LrScheduler,
};
use tandem::jobs::{LeaseTiming, Prepare, Prepared, Runner, Unprepared};
use tandem::store::{EventKind, Job, JobError, NewEvent, NewJob, Page, Stage};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::database::{BASE, TENANT, TestResult, TestStore, a_job};
use crate::support::device::{Gate, STEPS, device};

/// Understands specs whose `seed` is all that counts; a null seed is a bad file.
struct PlainPrepare;

impl Prepare for PlainPrepare {
    fn prepare<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Prepared, Unprepared>> {
        Box::pin(async move {
            let Some(seed) = job.spec["seed"].as_u64() else {
                let error = JobError {
                    code: "invalid_training_file".into(),
                    message: "line 3 is not JSON".into(),
                    param: Some("training_file".into()),
                };
                let events = vec![NewEvent::info("line 3: not JSON")];
                return Err(Unprepared::Never { error, events });
            };
            Ok(prepared(job, seed))
        })
    }

    fn adapter_files(
        &self,
        _job: &Job,
        _run: &Prepared,
        adapter: &AdapterWeights,
        _step: Option<usize>,
    ) -> Vec<(String, Vec<u8>)> {
        let weight = adapter.sites[0].a[0].to_bits().to_le_bytes();
        vec![("adapter_model.safetensors".into(), weight.to_vec())]
    }
}

fn prepared(job: &Job, seed: u64) -> Prepared {
    let example = Example::new(vec![1, 2], vec![-100, 2]);
    Prepared {
        operations_per_token: None,
        lora: LoraSpec {
            r: 1,
            alpha: 1.0,
            dropout: 0.0,
            modules: Vec::new(),
            ranks: Vec::new(),
            use_rslora: false,
            ..LoraSpec::default()
        },
        hyperparameters: hyperparameters(),
        seed,
        examples: Arc::new(vec![example]),
        validation: Arc::default(),
        init_adapter: None,
        spec: job.spec.clone(),
        model_name: format!("ft:demo::pirate:{}", job.id),
        notes: vec![NewEvent::info("1 example")],
    }
}

fn hyperparameters() -> Hyperparameters {
    Hyperparameters {
        n_epochs: 1,
        batch_size: 1,
        micro_batch_size: 1,
        gradient_accumulation_steps: 1,
        learning_rate: 1e-4,
        learning_rate_multiplier: 1.0,
        lr_scheduler: LrScheduler::Constant,
        warmup_steps: 0,
        weight_decay: 0.0,
        adam_beta1: 0.9,
        adam_beta2: 0.999,
        adam_epsilon: 1e-8,
        max_grad_norm: 1.0,
        max_steps: None,
        max_seq_length: 64,
        packing: false,
        shuffle: false,
        neftune_alpha: 0.0,
        eval_steps: None,
        checkpoint_steps: None,
        ..Hyperparameters::default()
    }
}

/// A server's worth of parts on one store, started and stopped at will.
struct Server {
    store: TestStore,
    folder: tempfile::TempDir,
}

/// A running runner; dropping it is a crash.
struct Running {
    task: JoinHandle<()>,
    stop: CancellationToken,
}

impl Server {
    async fn on_each_database() -> Result<Vec<Self>> {
        let stores = TestStore::on_each_database().await?.into_iter();
        stores.map(|store| Ok(Self { store, folder: tempfile::tempdir()? })).collect()
    }

    fn artifacts(&self) -> PathBuf {
        self.folder.path().join("artifacts")
    }

    async fn start(&self, gate: &Arc<Gate>) -> Result<Running> {
        let location = self.artifacts().display().to_string();
        let runner = Runner {
            store: self.store.clone(),
            artifacts: Artifacts::open(&location)?,
            worker: device(gate.clone()),
            prepare: Arc::new(PlainPrepare),
            server_id: "this server".into(),
            timing: LeaseTiming::default(),
        };
        let stop = CancellationToken::new();
        Ok(Running { task: tokio::spawn(runner.run(stop.clone())), stop })
    }

    async fn submit(&self) -> Result<JobId> {
        Ok(self.store.create_job(&a_job(), None).await?.into_inner().id)
    }

    async fn until(&self, job: &JobId, status: JobStatus) -> Result<Job> {
        let waiting = async {
            let mut changes = self.store.changes();
            loop {
                let job = self.store.job(TENANT, job).await?;
                if job.status == status {
                    return Ok(job);
                }
                if job.status.is_final() {
                    anyhow::bail!("the job is {}: {:?}", job.status, job.error);
                }
                changes.changed().await?;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), waiting).await.context("a job hangs")?
    }

    /// Waits until the checkpoint at `step` is recorded: the device runs ahead of the disk.
    async fn checkpointed(&self, job: &JobId, step: i64) -> Result<()> {
        let mut changes = self.store.changes();
        while self.store.resumable_checkpoints(job).await?.first().is_none_or(|c| c.step < step) {
            changes.changed().await?;
        }
        Ok(())
    }

    async fn messages(&self, job: &JobId) -> Result<Vec<String>> {
        let events = self.store.events_after(job, 0, 1000).await?;
        let numbers: Vec<i64> = events.iter().map(|event| event.seq).collect();
        assert_eq!(numbers, (1..=events.len() as i64).collect::<Vec<_>>());
        Ok(events.into_iter().map(|event| event.message).collect())
    }

    async fn weights(&self, name: &str) -> Result<Vec<u8>> {
        let adapter = self.store.adapter(name).await?.context("an adapter")?;
        let path = self.artifacts().join(adapter.location).join("adapter_model.safetensors");
        Ok(fs::read(path)?)
    }

    async fn trained_weights(&self, job: &Job) -> Result<Vec<u8>> {
        self.weights(job.fine_tuned_model.as_deref().context("a model")?).await
    }
}

impl Running {
    async fn drain(self) -> Result<()> {
        self.stop.cancel();
        Ok(self.task.await?)
    }

    async fn crash(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// What an undisturbed run of the same job gives.
async fn undisturbed() -> Result<Vec<u8>> {
    let server = Server { store: TestStore::on_sqlite().await?, folder: tempfile::tempdir()? };
    let running = server.start(&Arc::default()).await?;
    let job = server.submit().await?;
    let job = server.until(&job, JobStatus::Succeeded).await?;
    running.drain().await?;
    server.trained_weights(&job).await
}

#[tokio::test]
async fn a_job_is_validated_trained_and_published() -> TestResult {
    for server in Server::on_each_database().await? {
        let running = server.start(&Arc::default()).await?;
        let id = server.submit().await?;
        let job = server.until(&id, JobStatus::Succeeded).await?;
        let model = job.fine_tuned_model.clone().context("a model")?;
        assert_eq!((job.step, job.trained_tokens, job.attempt), (10, Some(110), 1));
        assert!(job.started_at.is_some() && job.finished_at.is_some());
        let messages = server.messages(&id).await?;
        let file = &job.training_file;
        let expected = [
            format!("Created fine-tuning job: {id}"),
            format!("Validating training file: {file}"),
            "1 example".into(),
            "Files validated, moving job to queued state".into(),
            "Fine-tuning job started".into(),
            "Step 1/10: training loss=4.00".into(),
            "Step 2/10: training loss=2.00".into(),
            format!("Checkpoint created at step 2 with Snapshot ID: {model}:ckpt-step-2"),
        ];
        assert_eq!(messages[..8], expected);
        let last = [
            "Step 10/10: training loss=0.40, validation loss=3.50".into(),
            format!("Checkpoint created at step 10 with Snapshot ID: {model}:ckpt-step-10"),
            format!("New fine-tuned model created: {model}"),
            "The job has successfully completed".to_owned(),
        ];
        assert_eq!(messages[messages.len() - 4..], last);
        let events = server.store.events_after(&id, 0, 1000).await?;
        let metrics = events.iter().filter(|event| event.kind == EventKind::Metrics).count();
        assert_eq!(metrics, STEPS);
        let checkpoints = server.store.checkpoints(&id, &Page::newest(10)).await?.rows;
        assert_eq!(checkpoints.iter().map(|c| c.step).collect::<Vec<_>>(), [10, 8, 6, 4, 2]);
        assert_eq!(checkpoints[1].metrics["step"], 8);
        server.weights(&format!("{model}:ckpt-step-2")).await?;
        running.drain().await?;
        assert!(!server.artifacts().join("checkpoints").join(id.as_str()).exists());
    }
    Ok(())
}

#[tokio::test]
async fn the_result_file_holds_every_step_once() -> TestResult {
    for server in Server::on_each_database().await? {
        let gate = Gate::holding_after(5);
        let running = server.start(&gate).await?;
        let id = server.submit().await?;
        gate.reached().await;
        running.crash().await;
        let running = server.start(&Arc::default()).await?;
        let job = server.until(&id, JobStatus::Succeeded).await?;
        running.drain().await?;
        let file = server.store.file(TENANT, &job.result_file.context("a result file")?).await?;
        assert_eq!((&*file.purpose, &*file.filename), ("fine-tune-results", "step_metrics.csv"));
        let location = server.artifacts().display().to_string();
        let csv = fs::read_to_string(Artifacts::open(&location)?.path(&file.sha256)?)?;
        let lines: Vec<&str> = csv.lines().collect();
        let names = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy";
        assert_eq!((lines.len(), lines[0], lines[1]), (STEPS + 1, names, "1,4.0,0.5,,"));
        assert_eq!(lines[10], "10,0.4,0.5,3.5,0.25");
    }
    Ok(())
}

#[tokio::test]
async fn a_killed_server_goes_on_from_the_checkpoint_to_the_same_weights() -> TestResult {
    let expected = undisturbed().await?;
    for server in Server::on_each_database().await? {
        let gate = Gate::holding_after(7);
        let running = server.start(&gate).await?;
        let id = server.submit().await?;
        gate.reached().await;
        server.checkpointed(&id, 6).await?;
        running.crash().await;
        assert_eq!(server.store.job(TENANT, &id).await?.status, JobStatus::Running);
        let running = server.start(&Arc::default()).await?;
        let job = server.until(&id, JobStatus::Succeeded).await?;
        running.drain().await?;
        let resumed = "Fine-tuning job resumed from the checkpoint at step 6".to_owned();
        assert!(server.messages(&id).await?.contains(&resumed));
        assert_eq!(server.trained_weights(&job).await?, expected);
    }
    Ok(())
}

#[tokio::test]
async fn a_damaged_checkpoint_has_another_behind_it() -> TestResult {
    let expected = undisturbed().await?;
    for server in Server::on_each_database().await? {
        let gate = Gate::holding_after(7);
        let running = server.start(&gate).await?;
        let id = server.submit().await?;
        gate.reached().await;
        server.checkpointed(&id, 6).await?;
        running.crash().await;
        let newest = server.store.resumable_checkpoints(&id).await?.remove(0);
        assert_eq!(newest.step, 6);
        let state = server.artifacts().join(newest.state.context("a state")?);
        fs::write(state.join("state.safetensors"), b"[6, 12345]")?;
        let running = server.start(&Arc::default()).await?;
        let job = server.until(&id, JobStatus::Succeeded).await?;
        running.drain().await?;
        let messages = server.messages(&id).await?;
        let told = "The checkpoint at step 6 is damaged; an earlier one is used".to_owned();
        assert!(messages.contains(&told));
        let resumed = "Fine-tuning job resumed from the checkpoint at step 4".to_owned();
        assert!(messages.contains(&resumed));
        assert_eq!(server.trained_weights(&job).await?, expected);
    }
    Ok(())
}

#[tokio::test]
async fn a_stopping_server_keeps_every_step_and_charges_no_attempt() -> TestResult {
    let expected = undisturbed().await?;
    for server in Server::on_each_database().await? {
        let gate = Gate::holding_after(5);
        let running = server.start(&gate).await?;
        let id = server.submit().await?;
        gate.reached().await;
        running.drain().await?;
        let job = server.store.job(TENANT, &id).await?;
        assert_eq!((job.status, job.attempt, job.step), (JobStatus::Queued, 0, 5));
        let running = server.start(&Arc::default()).await?;
        let job = server.until(&id, JobStatus::Succeeded).await?;
        running.drain().await?;
        let resumed = "Fine-tuning job resumed from the checkpoint at step 5".to_owned();
        assert!(server.messages(&id).await?.contains(&resumed));
        assert_eq!(server.trained_weights(&job).await?, expected);
    }
    Ok(())
}

#[tokio::test]
async fn a_paused_job_resumes_where_it_stopped() -> TestResult {
    let expected = undisturbed().await?;
    for server in Server::on_each_database().await? {
        let gate = Gate::holding_after(3);
        let running = server.start(&gate).await?;
        let id = server.submit().await?;
        gate.reached().await;
        server.store.pause_job(TENANT, &id).await?;
        let mut changes = server.store.changes();
        while server.store.job(TENANT, &id).await?.lease_owner.is_some() {
            changes.changed().await?;
        }
        let paused = server.store.job(TENANT, &id).await?;
        assert_eq!((paused.status, paused.step), (JobStatus::Paused, 3));
        server.store.resume_job(TENANT, &id).await?;
        let job = server.until(&id, JobStatus::Succeeded).await?;
        running.drain().await?;
        assert_eq!(server.trained_weights(&job).await?, expected);
    }
    Ok(())
}

#[tokio::test]
async fn a_cancelled_job_stops_the_device_and_leaves_no_adapter() -> TestResult {
    for server in Server::on_each_database().await? {
        let gate = Gate::holding_after(3);
        let running = server.start(&gate).await?;
        let id = server.submit().await?;
        gate.reached().await;
        server.store.cancel_job(TENANT, &id).await?;
        gate.cancelled().await;
        gate.open();
        let next = server.submit().await?;
        server.until(&next, JobStatus::Succeeded).await?;
        running.drain().await?;
        let job = server.store.job(TENANT, &id).await?;
        assert_eq!((job.status, job.fine_tuned_model), (JobStatus::Cancelled, None));
        assert!(server.store.adapter(&format!("ft:demo::pirate:{id}")).await?.is_none());
    }
    Ok(())
}

#[tokio::test]
async fn a_bad_file_fails_its_job_while_another_trains() -> TestResult {
    for server in Server::on_each_database().await? {
        let gate = Gate::holding_after(3);
        let running = server.start(&gate).await?;
        let good = server.submit().await?;
        gate.reached().await;
        let bad = NewJob { spec: serde_json::json!({ "seed": null }), ..a_job() };
        let bad = server.store.create_job(&bad, None).await?.into_inner().id;
        let failed = server.until(&bad, JobStatus::Failed).await?;
        let error = failed.error.context("a reason")?;
        assert_eq!(error.code, "invalid_training_file");
        assert_eq!(error.param.as_deref(), Some("training_file"));
        let messages = server.messages(&bad).await?;
        assert_eq!(messages[2..], ["line 3: not JSON", "line 3 is not JSON"]);
        assert_eq!(server.store.job(TENANT, &good).await?.status, JobStatus::Running);
        gate.open();
        server.until(&good, JobStatus::Succeeded).await?;
        running.drain().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_run_that_another_server_took_over_writes_nothing_more() -> TestResult {
    for server in Server::on_each_database().await? {
        let gate = Gate::holding_after(3);
        let running = server.start(&gate).await?;
        let id = server.submit().await?;
        gate.reached().await;
        let other = loop {
            // A renewal may come between the two.
            server.store.expire_leases_of("this server").await?;
            let (stage, minute) = (Stage::Train, Duration::from_secs(60));
            let claimed = server.store.claim_job("another server", minute, stage, &[BASE]).await?;
            if let Some(claimed) = claimed {
                break claimed;
            }
        };
        gate.cancelled().await;
        running.drain().await?;
        let job = server.store.job(TENANT, &id).await?;
        assert_eq!((job.status, job.lease_epoch), (JobStatus::Running, other.lease.epoch));
        assert_eq!(job.lease_owner.as_deref(), Some("another server"));
    }
    Ok(())
}
