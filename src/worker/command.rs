//! What the device thread can be asked to do. Each command brings its own way back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use tokio::sync::{mpsc, oneshot};

use crate::domain::{FinishReason, GenerationRequest, PromptToken, SampledToken, Survey};
use crate::train::{TrainEvent, TrainRequest};

/// One message to the device thread.
#[derive(Debug)]
pub enum Command {
    /// Continue a prompt. Dropping the receiver cancels it at the next step; raising `stops[i]`
    /// ends choice `i` alone (a stop string was found above).
    Generate {
        request: Box<GenerationRequest>,
        stops: Arc<[AtomicBool]>,
        events: mpsc::Sender<GenerationEvent>,
    },
    /// Train an adapter beside the requests. Dropping the receiver cancels the run.
    Train { run: Box<TrainRequest>, control: Arc<TrainControl>, events: mpsc::Sender<TrainEvent> },
    /// Look at what there is for a training run on this base model; with a `trial`, also at how fast
    /// one of its layers is.
    Survey { base: String, trial: bool, done: oneshot::Sender<Survey> },
    /// Look at the stop flag: the thread may be asleep on this channel.
    Stop,
}

/// What a request hears.
#[derive(Clone, Debug)]
pub enum GenerationEvent {
    /// The prompt was read. `cached_tokens` of it came from the prefix cache; `prompt` is filled
    /// if prompt log-probabilities were asked for.
    Prefilled { cached_tokens: usize, prompt: Vec<PromptToken> },
    /// One more token of choice `choice`.
    Token { choice: usize, token: SampledToken },
    /// Choice `choice` ended. The request is over when every choice has.
    Finished { choice: usize, reason: FinishReason },
    /// The request failed as a whole; nothing follows.
    Failed(WorkerError),
}

/// Pause and cancel, set from above, read by the device thread between two units of training.
#[derive(Debug, Default)]
pub struct TrainControl(AtomicU8);

impl TrainControl {
    /// Asks the run to write a checkpoint after the step in progress, end with
    /// [`TrainEvent::Paused`] and free its memory.
    pub fn pause(&self) {
        self.0.fetch_max(1, Ordering::SeqCst);
    }

    /// Asks the run to end with [`TrainEvent::Cancelled`] at once.
    pub fn cancel(&self) {
        self.0.store(2, Ordering::SeqCst);
    }

    pub fn pause_requested(&self) -> bool {
        self.0.load(Ordering::SeqCst) == 1
    }

    pub fn cancel_requested(&self) -> bool {
        self.0.load(Ordering::SeqCst) == 2
    }
}

/// Why the device thread could not do it.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
pub enum WorkerError {
    #[error(
        "the server is busy: {waiting} requests are waiting; try again in {retry_after_secs} s"
    )]
    Overloaded { waiting: usize, retry_after_secs: u64 },
    #[error("the server is shutting down")]
    Stopped,
    #[error("the base model `{0}` is not loaded")]
    UnknownBase(String),
    #[error(
        "the request needs {needed_tokens} tokens of cache and the server holds {capacity_tokens}; \
         shorten the prompt or `max_tokens`"
    )]
    TooLarge { needed_tokens: usize, capacity_tokens: usize },
    #[error(
        "the request shows {pictures} pictures and the server holds {limit} at a time; show fewer"
    )]
    TooManyPictures { pictures: usize, limit: usize },
    #[error("the adapter does not fit this base model: {0}")]
    Adapter(String),
    #[error("the computation failed: {0}")]
    Device(String),
}
