//! The door to the device thread: cheap to clone, never blocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{mpsc, oneshot};

use super::{Command, GenerationEvent, TrainControl, WorkerError, WorkerStats};
use crate::domain::{BaseInfo, GenerationRequest, Survey};
use crate::train::{TrainEvent, TrainRequest};

/// Sends commands to the device thread.
#[derive(Clone, Debug)]
pub struct WorkerHandle {
    commands: mpsc::Sender<Command>,
    bases: Arc<Vec<Arc<BaseInfo>>>,
    stats: Arc<WorkerStats>,
}

/// The events of one request. Dropping it cancels the request.
#[derive(Debug)]
pub struct GenerationEvents {
    events: mpsc::Receiver<GenerationEvent>,
    stops: Arc<[AtomicBool]>,
}

/// The events of one run, and the lever to pause or cancel it. Dropping it cancels the run.
#[derive(Debug)]
pub struct TrainEvents {
    events: mpsc::Receiver<TrainEvent>,
    control: Arc<TrainControl>,
}

impl WorkerHandle {
    /// A handle for a device thread that reads the other end of `commands`.
    pub fn new(
        commands: mpsc::Sender<Command>,
        bases: Vec<Arc<BaseInfo>>,
        stats: Arc<WorkerStats>,
    ) -> Self {
        Self { commands, bases: Arc::new(bases), stats }
    }

    /// The resident base models, in the order they were given.
    pub fn bases(&self) -> &[Arc<BaseInfo>] {
        &self.bases
    }

    /// The base of that name.
    pub fn base(&self, name: &str) -> Option<&Arc<BaseInfo>> {
        self.bases.iter().find(|base| &*base.name == name)
    }

    pub fn stats(&self) -> &Arc<WorkerStats> {
        &self.stats
    }

    /// Queues a generation and returns the channel its tokens will arrive on.
    ///
    /// The channel holds the longest answer, so a slow reader delays nobody.
    ///
    /// # Errors
    /// [`WorkerError::Overloaded`] if the queue is full, [`WorkerError::Stopped`] after shutdown,
    /// [`WorkerError::UnknownBase`] if no such model is loaded.
    pub fn generate(&self, request: GenerationRequest) -> Result<GenerationEvents, WorkerError> {
        let base = self
            .base(&request.base)
            .ok_or_else(|| WorkerError::UnknownBase(request.base.to_string()))?;
        let longest = request.sampling.max_tokens.min(base.context_length);
        // Every token and the end of each choice, the prompt, a failure.
        let (sender, events) = mpsc::channel(request.choices * (longest + 1) + 2);
        let stops: Arc<[AtomicBool]> =
            (0..request.choices).map(|_| AtomicBool::new(false)).collect();
        let tokens = request.cost();
        self.stats.enter(tokens)?;
        let (request, stop_flags) = (Box::new(request), Arc::clone(&stops));
        let command = Command::Generate { request, stops: stop_flags, events: sender };
        self.send(command).inspect_err(|_| self.stats.leave(tokens))?;
        Ok(GenerationEvents { events, stops })
    }

    /// Queues a training run. Runs are served one at a time, in order.
    ///
    /// # Errors
    /// [`WorkerError::Overloaded`] if the queue is full, [`WorkerError::Stopped`] after shutdown.
    pub fn train(&self, run: TrainRequest) -> Result<TrainEvents, WorkerError> {
        let (sender, events) = mpsc::channel(1024);
        let control = Arc::new(TrainControl::default());
        let command =
            Command::Train { run: Box::new(run), control: Arc::clone(&control), events: sender };
        self.send(command)?;
        Ok(TrainEvents { events, control })
    }

    /// What there is for a training run on `base`, its pace by a `trial`; `None` if the device thread
    /// does not say.
    pub async fn survey(&self, base: &str, trial: bool) -> Option<Survey> {
        let (done, answer) = oneshot::channel();
        self.send(Command::Survey { base: base.to_owned(), trial, done }).ok()?;
        answer.await.ok()
    }

    fn send(&self, command: Command) -> Result<(), WorkerError> {
        self.commands.try_send(command).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => self.stats.overloaded(),
            mpsc::error::TrySendError::Closed(_) => WorkerError::Stopped,
        })
    }
}

impl GenerationEvents {
    /// The next event; `None` if the device thread went away before the end.
    pub async fn next(&mut self) -> Option<GenerationEvent> {
        self.events.recv().await
    }

    /// Ends one choice at the next step, as if a stop token had come: a stop string was found.
    pub fn stop(&self, choice: usize) {
        self.stops[choice].store(true, Ordering::Relaxed);
    }
}

impl TrainEvents {
    /// The next event; `None` if the device thread went away.
    pub async fn next(&mut self) -> Option<TrainEvent> {
        self.events.recv().await
    }

    /// The lever to pause or cancel the run.
    pub fn control(&self) -> &Arc<TrainControl> {
        &self.control
    }
}
