//! The body of a job request, for the API document. It is read by `jobs`, field by field.

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::ToSchema;

/// A job to create.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the body; `jobs::JobRequest` reads it")]
pub struct CreateFineTuningJob {
    /// A base model, or an adapter to go on from.
    pub(super) model: String,
    /// A file of purpose `fine-tune`: messages, prompt/completion, Alpaca, ShareGPT, text or ids.
    pub(super) training_file: String,
    pub(super) validation_file: Option<String>,
    /// A well-known fine-tune, whose settings fill what the request leaves open: `alpaca`,
    /// `guanaco-qlora`, `mpt-instruct` or `mpt-storywriter`.
    pub(super) recipe: Option<String>,
    /// 1 to 64 of letters, digits, `.`, `_`, `-`: a part of the result's name.
    pub(super) suffix: Option<String>,
    /// 0 to 2147483647.
    pub(super) seed: Option<u32>,
    pub(super) method: Option<MethodRequest>,
    /// Deprecated place of `method.supervised.hyperparameters`.
    pub(super) hyperparameters: Option<SupervisedHyperparameters>,
    pub(super) lora: Option<LoraRequest>,
    /// `null`: as the base is resident. Any other value must be how it is resident.
    pub(super) quantization: Option<String>,
    /// Up to 16 pairs of strings.
    pub(super) metadata: Option<BTreeMap<String, String>>,
    /// -1000 to 1000; higher goes first.
    pub(super) priority: Option<i64>,
    /// Check everything, answer with the pre-flight report and start nothing.
    pub(super) dry_run: Option<bool>,
}

/// How to train.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the body")]
pub struct MethodRequest {
    /// `supervised`.
    r#type: String,
    supervised: Option<SupervisedRequest>,
}

/// Supervised fine-tuning.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the body")]
pub struct SupervisedRequest {
    hyperparameters: Option<SupervisedHyperparameters>,
}

/// Each a value or "auto"; steps are optimiser steps.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the body")]
pub struct SupervisedHyperparameters {
    /// 1 to 50.
    #[schema(value_type = Option<Value>)]
    n_epochs: Option<Value>,
    /// 1 to 256 examples per step.
    #[schema(value_type = Option<Value>)]
    batch_size: Option<Value>,
    /// Above 0; scales the usual rate.
    #[schema(value_type = Option<Value>)]
    learning_rate_multiplier: Option<Value>,
    /// Above 0, at most 1; instead of the multiplier.
    learning_rate: Option<f64>,
    /// `constant`, `linear` or `cosine`.
    lr_scheduler: Option<String>,
    warmup_steps: Option<u64>,
    /// Of all steps, 0 to 1; instead of `warmup_steps`.
    warmup_ratio: Option<f64>,
    weight_decay: Option<f64>,
    adam_beta1: Option<f64>,
    adam_beta2: Option<f64>,
    adam_epsilon: Option<f64>,
    /// `adamw`, `adamw_8bit`, `paged_adamw` or `paged_adamw_8bit`.
    optimizer: Option<String>,
    /// Of a paged optimizer: bytes of its state that stay in memory; 64 MiB if absent.
    optimizer_memory_bytes: Option<u64>,
    /// LoRA+: the rate of `B` over that of `A`.
    loraplus_lr_ratio: Option<f64>,
    /// The rate of what `modules_to_save` names over that of the LoRA matrices.
    modules_to_save_lr_ratio: Option<f64>,
    /// 0 is off.
    max_grad_norm: Option<f64>,
    micro_batch_size: Option<u64>,
    gradient_accumulation_steps: Option<u64>,
    max_steps: Option<u64>,
    /// Tokens; longer examples are cut.
    max_seq_length: Option<u64>,
    /// What a token's loss is divided by: labels of the whole accumulation `window`, the default, or
    /// of its `micro_batch`, and the means averaged.
    loss_normalization: Option<String>,
    packing: Option<bool>,
    shuffle: Option<bool>,
    /// `completion` or `all`.
    train_on: Option<String>,
    neftune_alpha: Option<f64>,
    eval_steps: Option<u64>,
    checkpoint_steps: Option<u64>,
    early_stopping: Option<EarlyStoppingRequest>,
    /// The result is the adapter of the lowest validation loss; needs a `validation_file`.
    load_best_model_at_end: Option<bool>,
}

/// Ends a run whose validation loss has stopped falling; needs a `validation_file`.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the body")]
pub struct EarlyStoppingRequest {
    /// Validations in a row without a better loss; 3 if absent.
    patience: Option<u64>,
    /// A loss is better if it is lower by more than this; 0 if absent.
    min_delta: Option<f64>,
}

/// The adapter to train.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the body")]
pub struct LoraRequest {
    /// 1 to 256; 16 if absent.
    r: Option<u64>,
    /// `2 r` if absent.
    alpha: Option<f64>,
    dropout: Option<f64>,
    /// A list of module names, a pattern for whole names, or `all-linear`, the default.
    #[schema(value_type = Option<Value>)]
    target_modules: Option<Value>,
    /// Patterns on module names and the rank there.
    rank_pattern: Option<BTreeMap<String, u64>>,
    /// Patterns on module names and the alpha there.
    alpha_pattern: Option<BTreeMap<String, f64>>,
    use_rslora: Option<bool>,
    /// Weights decomposed in magnitude and direction.
    use_dora: Option<bool>,
    /// `embed_tokens` or `lm_head`, or both: trained whole beside the matrices.
    modules_to_save: Option<Vec<String>>,
    /// The name of an adapter to go on from.
    init_adapter: Option<String>,
}
