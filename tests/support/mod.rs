//! What the themes share.

pub mod app;
pub mod database;
pub mod device;
pub mod emulator;
pub mod postgres;
pub mod workshop;
