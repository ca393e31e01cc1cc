//! All SQL: what the server remembers, in Postgres or in an embedded SQLite.
//!
//! One [`Store`] serves both; the queries are written once, and the few differences between the
//! databases are named in `dialect.rs`. `jobs.rs` and `controls.rs` are a job as the API sees it;
//! `claims.rs` and `outcomes.rs` are the same row as the worker that holds its lease sees it.

mod adapters;
mod changes;
mod checkpoints;
mod claims;
mod connect;
mod controls;
mod dialect;
mod error;
mod events;
mod files;
mod idempotency;
mod job;
mod jobs;
mod migrations;
mod outcomes;
mod page;

pub use adapters::{Adapter, AdapterSource, IfTaken, NewAdapter};
pub use checkpoints::{Checkpoint, NewCheckpoint};
pub use claims::{ClaimedJob, Lease, Renewed, Stage};
pub use error::{StoreError, StoreResult};
pub use events::{EventKind, EventLevel, JobEvent, NewEvent};
pub use files::{File, NewFile};
pub use idempotency::{Created, IdempotencyKey};
pub use job::{Job, JobError, Metadata, NewJob};
pub use jobs::MetadataFilter;
pub use outcomes::{Progress, Success};
pub use page::{Listed, Order, Page, Timestamp};

use std::sync::Arc;

use sqlx::AnyPool;

use changes::Changes;
use dialect::Dialect;

/// The database. Cheap to clone; every clone is the same store.
#[derive(Clone, Debug)]
pub struct Store {
    dialect: Dialect,
    /// Where all writes go: a single connection with SQLite, which has one writer at a time anyway.
    writer: AnyPool,
    reader: AnyPool,
    changes: Arc<Changes>,
}

/// A span of time as the database counts it.
fn micros(span: std::time::Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

/// Postgres cannot hold a NUL in text; SQLite could, and then the two would differ.
fn check_text(what: &'static str, text: &str) -> StoreResult<()> {
    if text.contains('\0') { Err(StoreError::Nul(what)) } else { Ok(()) }
}
