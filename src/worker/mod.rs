//! The device thread: one OS thread owns the model, the KV cache, the adapters and the active
//! training run. Everybody else holds a [`WorkerHandle`] and sends [`Command`]s.

mod command;
mod handle;

pub use crate::train::{TrainEvent, TrainRequest, TrainSnapshot};
pub use command::{Command, GenerationEvent, TrainControl, WorkerError};
pub use handle::{GenerationEvents, TrainEvents, WorkerHandle, WorkerStats};
