//! The life of a fine-tune: submit, claim, follow, finish.

mod events;
mod fields;
mod follow;
mod forecast;
mod heartbeat;
mod hyperparameters;
mod insist;
mod metrics;
mod preflight;
mod preparation;
mod prepare;
mod recipe;
mod record;
mod request;
mod runner;
mod saves;
mod service;
mod spec;

pub use fields::{InvalidKind, InvalidRequest};
pub use forecast::{Forecast, Room};
pub use heartbeat::LeaseTiming;
pub use hyperparameters::{RequestedHyperparameters, shown as shown_hyperparameters};
pub use preflight::Preflight;
pub use preparation::Preparation;
pub use prepare::{Prepare, Prepared, Unprepared};
pub use request::JobRequest;
pub use runner::Runner;
pub use service::{Jobs, JobsError, JobsResult};
pub use spec::{JobSpec, RequestedLora, Settled};
