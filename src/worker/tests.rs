//! The device loop, driven turn by turn without its thread.

mod beside;
mod drafts;
mod faults;
mod faulty;
mod harness;
mod pictures;
mod serving;
mod training;
