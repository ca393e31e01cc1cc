//! What the themes share.

pub mod database;
pub mod postgres;
