//! The life of a fine-tune: submit, claim, follow, finish.

mod follow;
mod heartbeat;
mod insist;
mod metrics;
mod prepare;
mod record;
mod runner;
mod saves;

pub use heartbeat::LeaseTiming;
pub use prepare::{Prepare, Prepared, Unprepared};
pub use runner::Runner;
