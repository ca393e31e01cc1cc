//! Training: one run as a value that advances by small units.

mod protocol;
pub mod rng;

pub use protocol::{TrainEvent, TrainRequest, TrainSnapshot};
