//! What a training run is given, and what it says: plain data, in memory.

use std::path::PathBuf;
use std::sync::Arc;

use crate::domain::{
    AdapterWeights, Example, Hyperparameters, LoraSpec, ServedCheck, TrainMetrics,
};

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
    /// Where a paged optimiser may keep its file.
    pub scratch: PathBuf,
}

/// The complete state of a run after an optimiser step.
#[derive(Clone, Debug)]
pub struct TrainSnapshot {
    pub step: usize,
    /// What [`TrainRequest::resume`] reads: weights, moments, step, cursor (safetensors bytes).
    pub state: Arc<Vec<u8>>,
    /// The adapter as it stands, servable.
    pub adapter: Arc<AdapterWeights>,
    /// At the end of a run that asks for it: the adapter of the best validation, where that is
    /// another.
    pub best: Option<Arc<AdapterWeights>>,
    /// At the end: the result as it is served against the training graph.
    pub served: Option<ServedCheck>,
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
    /// Something a person may want to know.
    Told {
        step: usize,
        message: String,
    },
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
