//! Training: one run as a value that advances by small units.
//!
//! [`Run`] fine-tunes an adapter beside the requests the device serves; its pieces ([`Plan`],
//! [`Optimizer`], [`Window`], [`schedule`]) also train a model in full.

mod adapter;
mod best;
pub mod data;
mod error;
pub mod evaluate;
mod guards;
pub mod optimizer;
mod paging;
mod protocol;
pub mod rng;
mod run;
pub mod schedule;
mod served;
mod sight;
mod snapshot;
mod watch;
mod window;

pub use data::Plan;
pub use error::TrainError;
pub use evaluate::Evaluation;
pub use optimizer::{Decay, Optimizer};
pub use protocol::{TrainEvent, TrainRequest, TrainSnapshot};
pub use run::{Run, Unit};
pub use window::Window;

#[cfg(test)]
mod tests {
    use crate::domain::{
        BaseInfo, Hyperparameters, LoraSpec, LrScheduler, ModuleShape, TrainingCost,
    };

    /// Small numbers for the unit tests of the pieces.
    pub fn hyperparameters() -> Hyperparameters {
        Hyperparameters {
            n_epochs: 1,
            batch_size: 1,
            micro_batch_size: 1,
            gradient_accumulation_steps: 1,
            learning_rate: 1e-2,
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
            shuffle: true,
            neftune_alpha: 0.0,
            eval_steps: None,
            checkpoint_steps: None,
            ..Hyperparameters::default()
        }
    }

    /// A base of two modules of 8 inputs.
    pub fn base_info() -> BaseInfo {
        let module = |name: &str| ModuleShape {
            name: name.to_owned(),
            in_features: 8,
            out_features: 12,
            layer: Some(0),
        };
        BaseInfo {
            name: "tiny".into(),
            family: "llama".into(),
            context_length: 64,
            vocab_size: 10,
            hidden_size: 8,
            num_layers: 1,
            parameters: 192,
            dtype: "f32".into(),
            size_bytes: 768,
            fingerprint: "00".into(),
            modules: vec![module("q"), module("v")],
            saveable: Vec::new(),
            default_targets: vec!["q".into()],
            vision: None,
            training: TrainingCost::default(),
        }
    }

    /// Rank 4, scaling 2, on both modules of [`base_info`].
    pub fn lora() -> LoraSpec {
        LoraSpec {
            r: 4,
            alpha: 8.0,
            dropout: 0.0,
            modules: vec!["q".into(), "v".into()],
            ranks: Vec::new(),
            use_rslora: false,
            ..LoraSpec::default()
        }
    }
}
