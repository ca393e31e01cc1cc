//! The HTTP face: routes, wire types, extractors, errors, streams.
//!
//! A handler decodes, hands over and encodes: ranges are settled where a body becomes a request,
//! meaning lives in `engine` and `jobs`, and [`ApiError`] decides once what an error is on the wire.

pub mod adapters;
pub mod auth;
pub mod chat;
pub mod completions;
pub mod docs;
pub mod error;
pub mod files;
pub mod fine_tuning;
pub mod health;
pub mod json;
pub mod lifecycle;
pub mod metrics;
pub mod models;
pub mod router;
pub mod server;
pub mod sse;
pub mod tokenize;

mod dashboard;
mod guesses;
mod jobs;
mod lists;
mod middleware;
mod options;
mod refused;
mod stall;
mod usage;
mod wording;

pub use auth::{Caller, Keys};
pub use error::ApiError;
pub use guesses::Guesses;
pub use json::{ApiJson, ApiPath, ApiQuery};
pub use lifecycle::Lifecycle;
pub use metrics::Metrics;
pub use router::{openapi, router};
pub use server::{ServerOptions, serve};

use crate::engine::Engine;

/// What every handler may reach. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AppState {
    pub engine: Engine,
    /// Who may call; empty lets everybody in and is for loopback only.
    pub keys: Keys,
    /// Wrong keys of late.
    pub guesses: Guesses,
    pub metrics: Metrics,
    pub lifecycle: Lifecycle,
}
