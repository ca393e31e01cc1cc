//! One claimed job, from its claim to its end or to its being given back.

use std::time::Duration;

use tokio::time::sleep_until;

use super::heartbeat::{Heartbeat, Order};
use super::metrics::Validation;
use super::prepare::{Prepare, Prepared, Unprepared};
use super::record::Recorder;
use super::saves::{SaveError, Saves};
use crate::artifacts::Artifacts;
use crate::store::{ClaimedJob, EventLevel, JobError, NewEvent, Store, StoreError, StoreResult};
use crate::worker::{
    TrainEvent, TrainEvents, TrainRequest, TrainSnapshot, WorkerError, WorkerHandle,
};

/// How long a job waits after a trouble that may pass, for each attempt it has made.
const BACK_OFF: Duration = Duration::from_secs(5);

/// How long to wait for room in the device thread's queue.
const QUEUE_FULL: Duration = Duration::from_millis(500);

/// A job in the hands of this server.
pub(super) struct Follower<'a> {
    pub store: &'a Store,
    pub artifacts: &'a Artifacts,
    pub worker: &'a WorkerHandle,
    pub prepare: &'a dyn Prepare,
    pub claimed: &'a ClaimedJob,
}

/// How a run left the device.
enum Ended {
    Finished(TrainSnapshot),
    Paused(TrainSnapshot),
    Failed(JobError),
    /// Nothing may be written any more.
    Abandoned,
    /// The device thread dropped the run, or the server is going down.
    Gone,
}

impl Follower<'_> {
    /// Checks the job's files and puts it in the queue, or fails it with all that is wrong.
    ///
    /// # Errors
    /// Those of the store: the caller logs them, the lease runs out, somebody tries again.
    pub async fn validate(&self, mut heartbeat: Heartbeat) -> StoreResult<()> {
        let job = &self.claimed.job;
        let mut recorder = self.recorder();
        recorder.event(NewEvent::info(format!("Validating training file: {}", job.training_file)));
        if let Some(file) = &job.validation_file {
            recorder.event(NewEvent::info(format!("Validating validation file: {file}")));
        }
        recorder.flush().await?;
        let Some(prepared) = self.prepared(&mut heartbeat).await? else { return Ok(()) };
        let mut events = prepared.notes;
        events.push(NewEvent::info("Files validated, moving job to queued state"));
        self.store.finish_validation(&self.claimed.lease, &events).await
    }

    /// Trains, from the last checkpoint if there is one, until the job ends or is given back.
    ///
    /// # Errors
    /// As [`Follower::validate`].
    pub async fn train(&self, mut heartbeat: Heartbeat) -> StoreResult<()> {
        let Some(run) = self.prepared(&mut heartbeat).await? else { return Ok(()) };
        let resume = match self.saves().newest_valid().await {
            Ok(resume) => resume,
            Err(error) => return self.could_not_save(error).await,
        };
        let told = NewEvent::info(match &resume {
            Some((step, _)) => {
                format!("Fine-tuning job resumed from the checkpoint at step {step}")
            }
            None if self.claimed.job.started_at.is_some() => {
                "Fine-tuning job started again from the beginning".to_owned()
            }
            None => "Fine-tuning job started".to_owned(),
        });
        self.store.start_training(&self.claimed.lease, &run.spec, &[told]).await?;
        let mut recorder = self.recorder();
        let request = self.request(&run, resume.map(|(_, path)| path));
        let ended = match self.queue(request, &mut heartbeat).await? {
            Some(events) => self.follow(events, &run, &mut recorder, &mut heartbeat).await?,
            None => Ended::Gone,
        };
        self.end(ended, &run, recorder, heartbeat.order()).await
    }

    /// The job's run, or `None` when there is none and the job was dealt with.
    async fn prepared(&self, heartbeat: &mut Heartbeat) -> StoreResult<Option<Prepared>> {
        let prepared = tokio::select! {
            prepared = self.prepare.prepare(&self.claimed.job) => prepared,
            order = heartbeat.graver(Order::GoOn) => {
                if order == Order::LetGo {
                    self.store.release(&self.claimed.lease, &[]).await?;
                }
                return Ok(None);
            }
        };
        match prepared {
            Ok(prepared) => Ok(Some(prepared)),
            Err(Unprepared::NotNow(error)) => self.postpone(&error).await.map(|()| None),
            Err(Unprepared::Never { error, events }) => {
                self.fail(&error, events).await.map(|()| None)
            }
        }
    }

    fn request(&self, run: &Prepared, resume: Option<std::path::PathBuf>) -> TrainRequest {
        TrainRequest {
            job: self.claimed.job.id.to_string(),
            base: self.claimed.job.base.as_str().into(),
            lora: run.lora.clone(),
            hyperparameters: run.hyperparameters.clone(),
            seed: run.seed,
            examples: run.examples.clone(),
            validation: run.validation.clone(),
            init_adapter: run.init_adapter.clone(),
            resume,
            scratch: self.artifacts.scratch(),
        }
    }

    /// Hands the run to the device thread, waiting for room; `None` if it should not start.
    async fn queue(
        &self,
        request: TrainRequest,
        heartbeat: &mut Heartbeat,
    ) -> StoreResult<Option<TrainEvents>> {
        loop {
            if heartbeat.order() > Order::GoOn {
                return Ok(None);
            }
            match self.worker.train(copy(&request)) {
                Ok(events) => return Ok(Some(events)),
                Err(WorkerError::Overloaded { .. }) => tokio::time::sleep(QUEUE_FULL).await,
                Err(_) => return Ok(None),
            }
        }
    }

    async fn follow(
        &self,
        mut events: TrainEvents,
        run: &Prepared,
        recorder: &mut Recorder,
        heartbeat: &mut Heartbeat,
    ) -> StoreResult<Ended> {
        let mut order = Order::GoOn;
        loop {
            tokio::select! {
                graver = heartbeat.graver(order) => {
                    order = graver;
                    match graver {
                        Order::GoOn => {}
                        Order::LetGo => events.control().pause(),
                        Order::Abandon => {
                            events.control().cancel();
                            return Ok(Ended::Abandoned);
                        }
                    }
                }
                () = sleep_until(recorder.due().unwrap_or_else(far_away)),
                    if recorder.due().is_some() => recorder.flush().await?,
                event = events.next() => match event {
                    None => return Ok(Ended::Gone),
                    Some(event) => {
                        if let Some(ended) = self.hear(event, run, recorder).await? {
                            return Ok(ended);
                        }
                    }
                },
            }
        }
    }

    async fn hear(
        &self,
        event: TrainEvent,
        run: &Prepared,
        recorder: &mut Recorder,
    ) -> StoreResult<Option<Ended>> {
        match event {
            TrainEvent::Started { step, total_steps, .. } => recorder.started(step, total_steps),
            TrainEvent::Step(metrics) => {
                if let Some(operations) = run.operations_per_token {
                    let rate = operations * metrics.tokens_per_second;
                    self.worker.stats().note_training_rate(&self.claimed.job.base, rate);
                }
                recorder.step(metrics);
            }
            TrainEvent::Evaluated { step, loss, mean_token_accuracy, .. } => {
                recorder.evaluated(step, Validation { loss, mean_token_accuracy });
            }
            TrainEvent::Told { message, .. } => recorder.event(NewEvent::info(message)),
            TrainEvent::Warning { message, .. } => {
                recorder.event(NewEvent::message(EventLevel::Warn, message));
            }
            TrainEvent::Checkpoint(snapshot) => self.keep(&snapshot, run, recorder).await?,
            TrainEvent::Finished(snapshot) => return Ok(Some(Ended::Finished(snapshot))),
            TrainEvent::Paused(snapshot) => return Ok(Some(Ended::Paused(snapshot))),
            TrainEvent::Cancelled => return Ok(Some(Ended::Gone)),
            TrainEvent::Failed { step, message } => {
                let message = format!("Training failed at step {step}: {message}");
                let code = "training_failed".to_owned();
                return Ok(Some(Ended::Failed(JobError { code, message, param: None })));
            }
        }
        Ok(None)
    }

    /// Keeps a checkpoint on the way. One that the disk does not take costs time after a crash,
    /// not the job.
    async fn keep(
        &self,
        snapshot: &TrainSnapshot,
        run: &Prepared,
        recorder: &mut Recorder,
    ) -> StoreResult<()> {
        recorder.flush().await?;
        match self.saves().checkpoint(run, snapshot, recorder.take_events()).await {
            Ok(()) => Ok(()),
            Err(SaveError::Store(error)) => Err(error),
            Err(SaveError::Artifacts(error)) => {
                tracing::warn!(job.id = %self.claimed.job.id, %error, "a checkpoint is not kept");
                let message = format!("No checkpoint at step {}: {error}", snapshot.step);
                recorder.event(NewEvent::message(EventLevel::Warn, message));
                Ok(())
            }
        }
    }

    async fn end(
        &self,
        ended: Ended,
        run: &Prepared,
        mut recorder: Recorder,
        order: Order,
    ) -> StoreResult<()> {
        if !matches!(ended, Ended::Abandoned) {
            recorder.flush().await?;
        }
        match ended {
            Ended::Finished(snapshot) => self.succeed(&snapshot, run, &recorder).await,
            Ended::Paused(snapshot) => self.give_back(&snapshot, run).await,
            Ended::Failed(error) => self.fail(&error, Vec::new()).await,
            Ended::Gone if order == Order::LetGo => {
                self.store.release(&self.claimed.lease, &[]).await
            }
            Ended::Gone => self.postpone(&device_gone()).await,
            Ended::Abandoned => Ok(()),
        }
    }

    /// The last step is a checkpoint like any other: it is listed, it can be named, and a crash
    /// between here and the end repeats nothing.
    async fn succeed(
        &self,
        snapshot: &TrainSnapshot,
        run: &Prepared,
        recorder: &Recorder,
    ) -> StoreResult<()> {
        let saves = self.saves();
        let saved = match saves.checkpoint(run, snapshot, Vec::new()).await {
            Ok(()) => saves.success(run, snapshot, recorder.trained_tokens()).await,
            Err(error) => Err(error),
        };
        match saved {
            Ok(()) => Ok(()),
            Err(SaveError::Store(StoreError::NameTaken(name))) => {
                let message = format!("Another adapter took the name `{name}` meanwhile.");
                let code = "model_name_taken".to_owned();
                self.fail(&JobError { code, message, param: None }, Vec::new()).await
            }
            Err(error) => self.could_not_save(error).await,
        }
    }

    async fn give_back(&self, snapshot: &TrainSnapshot, run: &Prepared) -> StoreResult<()> {
        if snapshot.step > 0 {
            let kept = self.saves().checkpoint(run, snapshot, Vec::new()).await;
            if let Err(SaveError::Store(error)) = kept {
                return Err(error);
            }
            if let Err(error) = kept {
                tracing::warn!(job.id = %self.claimed.job.id, %error, "a checkpoint is not kept");
            }
        }
        self.store.release(&self.claimed.lease, &[]).await
    }

    async fn could_not_save(&self, error: SaveError) -> StoreResult<()> {
        match error {
            SaveError::Store(error) => Err(error),
            SaveError::Artifacts(error) => {
                let message = format!("The result could not be stored: {error}");
                let code = "storage_error".to_owned();
                self.postpone(&JobError { code, message, param: None }).await
            }
        }
    }

    async fn fail(&self, error: &JobError, mut events: Vec<NewEvent>) -> StoreResult<()> {
        events.push(NewEvent::message(EventLevel::Error, error.message.clone()));
        self.store.fail(&self.claimed.lease, error, &events).await
    }

    async fn postpone(&self, error: &JobError) -> StoreResult<()> {
        let attempts = u32::try_from(self.claimed.job.attempt).unwrap_or(1);
        let told = [NewEvent::message(EventLevel::Warn, error.message.clone())];
        self.store.postpone(&self.claimed.lease, BACK_OFF * attempts, error, &told).await
    }

    fn saves(&self) -> Saves<'_> {
        Saves {
            store: self.store,
            artifacts: self.artifacts,
            prepare: self.prepare,
            claimed: self.claimed,
        }
    }

    fn recorder(&self) -> Recorder {
        Recorder::new(self.store.clone(), self.claimed.lease.clone())
    }
}

fn device_gone() -> JobError {
    JobError {
        code: "device_error".into(),
        message: "The device stopped working on this job.".into(),
        param: None,
    }
}

/// A request for another try; the examples are shared, the rest is small.
fn copy(request: &TrainRequest) -> TrainRequest {
    TrainRequest {
        job: request.job.clone(),
        base: request.base.clone(),
        lora: request.lora.clone(),
        hyperparameters: request.hyperparameters.clone(),
        seed: request.seed,
        examples: request.examples.clone(),
        validation: request.validation.clone(),
        init_adapter: request.init_adapter.clone(),
        resume: request.resume.clone(),
        scratch: request.scratch.clone(),
    }
}

fn far_away() -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_secs(3600)
}
