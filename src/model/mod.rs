//! One decoder for every family, forward and backward, written once over [`crate::backend`].
//!
//! A *family* maps a `config.json` and its checkpoint names to one configuration;
//! [`Model::load`] reads the tensors it names; [`Model::forward`] serves a flat ragged batch whose
//! rows may each wear an adapter; [`MicroBatch`] trains what a [`Trainee`] holds, one small unit per
//! call, so that a decode step never waits long.
//!
//! Shapes as in [`crate::backend`]: `t` rows (tokens), `d` hidden, `v` vocabulary, `r` rank.

mod adapter;
mod batch;
mod build;
mod checkpoint;
mod config;
mod cost;
mod decoder;
mod dora;
mod error;
mod export;
mod families;
mod fields;
mod gguf;
mod gradients;
mod head;
mod layer;
mod linear;
mod load;
mod micro_batch;
mod norm;
mod progress;
mod projector;
mod report;
mod rope;
mod saved;
mod source;
mod tensors;
mod trainee;
mod unit;
mod vision;
mod visit;

pub use adapter::{Adapter, AdapterRows};
pub use batch::TrainBatch;
pub use decoder::{Model, Step};
pub use error::ModelError;
pub use export::{Normalisation, Weights, Written};
pub use gguf::{read_adapter, write_adapter};
pub use micro_batch::{LoraDropout, MicroBatch, MicroBatchOptions};
pub use source::{LoadOptions, ModelSource};
pub use trainee::{Parameter, Trainee};
pub use unit::PassUnit;
pub use vision::{PictureRows, PictureRun, SeenPicture};
