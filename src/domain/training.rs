//! What a training run is told, and what it reports.

use serde::{Deserialize, Serialize};

/// The label of a token that bears no loss.
pub const IGNORE_INDEX: i32 = -100;

/// One training example: token ids, and beside each its label.
///
/// `labels[i]` belongs to `ids[i]`, as in Hugging Face: position `i` learns to predict
/// `labels[i + 1]`, and [`IGNORE_INDEX`] marks tokens nobody learns to predict.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    pub ids: Vec<u32>,
    pub labels: Vec<i32>,
}

impl Example {
    /// Labels that bear loss: those after the first token.
    pub fn trained_tokens(&self) -> usize {
        self.labels.iter().skip(1).filter(|&&label| label != IGNORE_INDEX).count()
    }
}

/// How the learning rate moves after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrScheduler {
    Constant,
    Linear,
    Cosine,
}

/// Every hyperparameter of a supervised run, all resolved; units are optimiser steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hyperparameters {
    pub n_epochs: usize,
    /// Examples per optimiser step: `micro_batch_size × gradient_accumulation_steps`.
    pub batch_size: usize,
    pub micro_batch_size: usize,
    pub gradient_accumulation_steps: usize,
    /// The peak rate.
    pub learning_rate: f64,
    pub learning_rate_multiplier: f64,
    pub lr_scheduler: LrScheduler,
    pub warmup_steps: usize,
    pub weight_decay: f64,
    pub adam_beta1: f64,
    pub adam_beta2: f64,
    pub adam_epsilon: f64,
    /// Global L2 norm above which gradients are scaled down; 0 is off.
    pub max_grad_norm: f64,
    /// Stops earlier than the epochs would, or goes on longer.
    pub max_steps: Option<usize>,
    /// Longer examples are cut.
    pub max_seq_length: usize,
    /// Several examples per row, without seeing each other.
    pub packing: bool,
    pub shuffle: bool,
    /// Noise on embeddings while training (Jain et al. 2023); 0 is off.
    pub neftune_alpha: f64,
    /// Validate every so many steps; `None` at the end of each epoch.
    pub eval_steps: Option<usize>,
    /// Checkpoint every so many steps; `None` at the end of each epoch.
    pub checkpoint_steps: Option<usize>,
}

/// The adapter a run trains. Hu et al. 2021, "LoRA", section 4.1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraSpec {
    pub r: usize,
    pub alpha: f64,
    pub dropout: f64,
    /// Full module names, resolved against the base model.
    pub modules: Vec<String>,
    /// Per resolved module, where it differs from `r` (same order as `modules`; empty: none does).
    #[serde(default)]
    pub ranks: Vec<usize>,
    pub use_rslora: bool,
}

/// What a run may take of the device.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    pub max_batch_tokens: usize,
    pub max_sequences: usize,
}

/// One optimiser step's report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainMetrics {
    /// Counted from 1.
    pub step: usize,
    pub total_steps: usize,
    /// Mean negative log-likelihood per trained token over the accumulation window.
    pub train_loss: f64,
    pub train_mean_token_accuracy: f64,
    pub learning_rate: f64,
    /// Before clipping.
    pub grad_norm: f64,
    pub tokens_per_second: f64,
    /// Tokens that bore loss, since the start.
    pub trained_tokens: u64,
}
