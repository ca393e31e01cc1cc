//! What the themes share.

pub mod database;
pub mod device;
pub mod postgres;
