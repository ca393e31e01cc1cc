//! What a training run is told, and what it reports.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::StoredPicture;

/// The label of a token that bears no loss.
pub const IGNORE_INDEX: i32 = -100;

/// One training example: token ids, and beside each its label.
///
/// `labels[i]` belongs to `ids[i]`, as in Hugging Face: position `i` learns to predict
/// `labels[i + 1]`, and [`IGNORE_INDEX`] marks tokens nobody learns to predict.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Example {
    pub ids: Vec<u32>,
    pub labels: Vec<i32>,
    /// In order; each stands at a run of image tokens, which bear no loss.
    pub pictures: Vec<ExamplePicture>,
}

/// A picture of an example.
#[derive(Clone, Debug)]
pub struct ExamplePicture {
    /// Its tokens in the example.
    pub tokens: Range<usize>,
    pub picture: Arc<dyn StoredPicture>,
}

impl PartialEq for ExamplePicture {
    fn eq(&self, other: &Self) -> bool {
        self.tokens == other.tokens && self.picture.digest() == other.picture.digest()
    }
}

impl Example {
    /// An example of text alone.
    pub fn new(ids: Vec<u32>, labels: Vec<i32>) -> Self {
        Self { ids, labels, pictures: Vec::new() }
    }

    /// How many of its first tokens are kept where at most `max` are: a picture that does not fit
    /// whole is left out whole, with all that follows.
    pub fn kept(&self, max: usize) -> usize {
        let cut = self.ids.len().min(self.labels.len()).min(max);
        let halved = self.pictures.iter().find(|picture| picture.tokens.end > cut);
        halved.map_or(cut, |picture| picture.tokens.start.min(cut))
    }

    /// Its beginning, of at most `max` tokens.
    pub fn beginning(&self, max: usize) -> Self {
        let kept = self.kept(max);
        let whole = self.pictures.iter().filter(|picture| picture.tokens.end <= kept);
        Self {
            ids: self.ids[..kept].to_vec(),
            labels: self.labels[..kept].to_vec(),
            pictures: whole.cloned().collect(),
        }
    }

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

/// Which optimiser, and where and how it keeps its state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OptimizerKind {
    /// AdamW with moments in `f32`. Loshchilov & Hutter 2019.
    #[default]
    #[serde(rename = "adamw")]
    AdamW,
    /// Moments in 8 bits, blockwise. Dettmers et al. 2022.
    #[serde(rename = "adamw_8bit")]
    AdamW8Bit,
    /// As `AdamW`, its state in a file beyond a budget of memory. Dettmers et al. 2023, section 3.
    #[serde(rename = "paged_adamw")]
    PagedAdamW,
    #[serde(rename = "paged_adamw_8bit")]
    PagedAdamW8Bit,
}

/// What a token's loss weighs in the gradient of an accumulation window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossNormalization {
    /// `1 /` labels of the whole window, however they fall on its micro-batches.
    #[default]
    Window,
    /// The mean of the micro-batches' means, as older trainers have it: labels of a micro-batch with
    /// few of them weigh more.
    MicroBatch,
}

impl LossNormalization {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl OptimizerKind {
    /// Every kind with the name it has in requests.
    pub const ALL: [(&str, Self); 4] = [
        ("adamw", Self::AdamW),
        ("adamw_8bit", Self::AdamW8Bit),
        ("paged_adamw", Self::PagedAdamW),
        ("paged_adamw_8bit", Self::PagedAdamW8Bit),
    ];

    pub fn is_paged(self) -> bool {
        matches!(self, Self::PagedAdamW | Self::PagedAdamW8Bit)
    }

    pub fn is_8bit(self) -> bool {
        matches!(self, Self::AdamW8Bit | Self::PagedAdamW8Bit)
    }
}

/// Ends a run whose validation loss has stopped falling.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EarlyStopping {
    /// Validations in a row without a better loss.
    pub patience: usize,
    /// A loss is better if it is lower by more than this.
    pub min_delta: f64,
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
    #[serde(default, skip_serializing_if = "LossNormalization::is_default")]
    pub loss_normalization: LossNormalization,
    /// Several examples per row, without seeing each other.
    pub packing: bool,
    pub shuffle: bool,
    /// Noise on embeddings while training (Jain et al. 2023); 0 is off.
    pub neftune_alpha: f64,
    /// Validate every so many steps; `None` at the end of each epoch.
    pub eval_steps: Option<usize>,
    /// Checkpoint every so many steps; `None` at the end of each epoch.
    pub checkpoint_steps: Option<usize>,
    #[serde(default)]
    pub optimizer: OptimizerKind,
    /// Of a paged optimizer: bytes of its state that may stay in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimizer_memory_bytes: Option<u64>,
    /// The rate of every `B` over that of `A`. Hayou et al. 2024, "LoRA+".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loraplus_lr_ratio: Option<f64>,
    /// The rate of modules trained whole over that of the matrices beside them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modules_to_save_lr_ratio: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early_stopping: Option<EarlyStopping>,
    /// The result is the adapter of the lowest validation loss, not the last one.
    #[serde(default)]
    pub load_best_model_at_end: bool,
}

impl Default for Hyperparameters {
    /// One plain epoch, one example per step, at the customary rate.
    fn default() -> Self {
        Self {
            n_epochs: 1,
            batch_size: 1,
            micro_batch_size: 1,
            gradient_accumulation_steps: 1,
            learning_rate: 2e-4,
            learning_rate_multiplier: 1.0,
            lr_scheduler: LrScheduler::Constant,
            warmup_steps: 0,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            max_steps: None,
            max_seq_length: 2048,
            loss_normalization: LossNormalization::Window,
            packing: false,
            shuffle: true,
            neftune_alpha: 0.0,
            eval_steps: None,
            checkpoint_steps: None,
            optimizer: OptimizerKind::AdamW,
            optimizer_memory_bytes: None,
            loraplus_lr_ratio: None,
            modules_to_save_lr_ratio: None,
            early_stopping: None,
            load_best_model_at_end: false,
        }
    }
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
    /// The same for `alpha`.
    #[serde(default)]
    pub alphas: Vec<f64>,
    pub use_rslora: bool,
    /// Weights decomposed in magnitude and direction. Liu et al. 2024, "DoRA".
    #[serde(default)]
    pub use_dora: bool,
    /// Modules trained whole beside the matrices; full names.
    #[serde(default)]
    pub modules_to_save: Vec<String>,
}

impl Default for LoraSpec {
    /// Rank 16, scaling 2, on no module yet.
    fn default() -> Self {
        Self {
            r: 16,
            alpha: 32.0,
            dropout: 0.0,
            modules: Vec::new(),
            ranks: Vec::new(),
            alphas: Vec::new(),
            use_rslora: false,
            use_dora: false,
            modules_to_save: Vec::new(),
        }
    }
}

/// What a run may take of the device.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    pub max_batch_tokens: usize,
    pub max_sequences: usize,
}

/// What the device has for a run, as it was looked at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Survey {
    /// Bytes the process takes now, where that is known.
    pub resident_bytes: Option<usize>,
    /// Bytes it may still take, where that is known.
    pub available_bytes: Option<usize>,
    /// Bytes of activations a run may keep; `None`: half of what is available.
    pub kept_bytes: Option<usize>,
    /// Bytes of what a run saw of pictures that it may keep.
    pub picture_bytes: usize,
    /// Operations per second of a trial forward through one layer, if one was asked for; a
    /// multiply-add counts as two.
    pub forward_rate: Option<f64>,
}

/// How far an adapter as it is served gives the logits it gave in training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServedCheck {
    /// Tokens compared: of validation examples where there are any.
    pub tokens: usize,
    pub max_abs_logit_difference: f64,
    /// Share of the tokens whose likeliest successor is the same.
    pub top1_agreement: f64,
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
