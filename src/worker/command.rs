//! What the device thread can be asked to do. Each command brings its own way back.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use tokio::sync::mpsc;

use crate::domain::{
    AdapterWeights, Example, FinishReason, GenerationRequest, Hyperparameters, LoraSpec,
    PromptToken, SampledToken, TrainMetrics,
};

/// One message to the device thread.
#[derive(Debug)]
pub enum Command {
    /// Continue a prompt. Dropping the receiver cancels it at the next step; raising `stops[i]`
    /// ends choice `i` alone (a stop string was found above).
    Generate {
        request: GenerationRequest,
        stops: Arc<[AtomicBool]>,
        events: mpsc::Sender<GenerationEvent>,
    },
    /// Train an adapter beside the requests. Dropping the receiver cancels the run.
    Train { run: Box<TrainRequest>, control: Arc<TrainControl>, events: mpsc::Sender<TrainEvent> },
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

/// Everything a training run needs, in memory.
#[derive(Debug)]
pub struct TrainRequest {
    /// Names the run in logs.
    pub job: String,
    pub base: Arc<str>,
    pub lora: LoraSpec,
    pub hyperparameters: Hyperparameters,
    pub seed: u64,
    pub examples: Arc<Vec<Example>>,
    pub validation: Arc<Vec<Example>>,
    /// Start from this adapter's weights instead of fresh ones.
    pub init_adapter: Option<Arc<AdapterWeights>>,
    /// Go on from this checkpoint file, verified by its hash.
    pub resume: Option<PathBuf>,
}

/// The complete state of a run after an optimiser step.
#[derive(Clone, Debug)]
pub struct TrainSnapshot {
    pub step: usize,
    /// What [`TrainRequest::resume`] reads: weights, moments, step, cursor (safetensors bytes).
    pub state: Arc<Vec<u8>>,
    /// The adapter as it stands, servable.
    pub adapter: Arc<AdapterWeights>,
    pub metrics: Option<TrainMetrics>,
    pub valid_loss: Option<f64>,
    pub valid_mean_token_accuracy: Option<f64>,
}

/// What the owner of a run hears, in order.
#[derive(Clone, Debug)]
pub enum TrainEvent {
    /// Set up; `step` is 0, or the step of the checkpoint it goes on from.
    Started {
        step: usize,
        total_steps: usize,
        trainable_parameters: usize,
    },
    Step(TrainMetrics),
    Evaluated {
        step: usize,
        loss: f64,
        mean_token_accuracy: f64,
        tokens: usize,
    },
    Checkpoint(TrainSnapshot),
    /// Something a person should know that does not end the run.
    Warning {
        step: usize,
        message: String,
    },
    /// The run is over; the adapter is final.
    Finished(TrainSnapshot),
    Paused(TrainSnapshot),
    Cancelled,
    Failed {
        step: usize,
        message: String,
    },
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
    #[error("the adapter does not fit this base model: {0}")]
    Adapter(String),
    #[error("the computation failed: {0}")]
    Device(String),
}
