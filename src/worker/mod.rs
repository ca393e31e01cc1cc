//! The device thread: one OS thread owns the KV cache, the adapters and the active training run,
//! which it lends a thread of its own where cores can be shared; both read the same weights.
//! Everybody else holds a [`WorkerHandle`] and sends [`Command`]s.
//!
//! # Inside
//! ```text
//! run        the loop: receive, release, one step of serving, units of training
//! lane       one base model with its cache, adapters and scheduler; one step of it
//! scheduler  waiting, ready, running: admission, preemption
//! plan       who computes what in a step; `draft` guesses tokens, `pace` knows what rows cost
//! queue      waiting requests in turns, by tenant and adapter
//! kv         KV blocks: `blocks` counts references, `prefix` finds them again by their tokens
//! pictures   pictures not yet seen, and what was seen, by content
//! resident   adapters on the device, by content, pinned while in use
//! sequence   a request and the sequences that answer it
//! batch      a step as one flat ragged batch
//! answer     logits to events
//! panics     when to give up
//! trainer    where training happens: on a thread beside, or between steps
//! training   runs of training, one at a time; `ration` says how much of it a step allows
//! survey     what there is for a run: room, and pace
//! ```
//! What runs together never shows in what is answered: the numbers of a row depend on that row
//! alone, tokens are drawn by seed and index, and what gave way is computed again to the bit.

mod answer;
mod batch;
mod blocks;
mod border;
mod command;
mod draft;
mod handle;
mod kv;
mod lane;
mod pace;
mod panics;
mod pictures;
mod plan;
mod prefix;
mod queue;
mod ration;
mod resident;
mod run;
mod scheduler;
mod sequence;
mod start;
mod stats;
mod survey;
#[cfg(test)]
mod tests;
mod trainer;
mod training;

pub use crate::train::{TrainEvent, TrainRequest, TrainSnapshot};
pub use command::{Command, GenerationEvent, TrainControl, WorkerError};
pub use handle::{GenerationEvents, TrainEvents, WorkerHandle};
pub use start::{BaseSource, StartError, Worker, WorkerSettings, start};
pub use stats::WorkerStats;
