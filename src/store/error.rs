//! What can go wrong between the program and its database.

use crate::domain::JobStatus;

/// Every operation of the store answers with this.
pub type StoreResult<T> = Result<T, StoreError>;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The row does not exist, or belongs to another tenant: nobody can tell which.
    #[error("the {kind} `{id}` does not exist")]
    NotFound { kind: &'static str, id: String },
    /// The state machine has no such transition from where the job stands.
    #[error("the job `{id}` is {status} and cannot {action}")]
    Conflict { id: String, status: JobStatus, action: &'static str },
    /// The writer was overtaken: its lease passed on, or the job ended. It must stop, silently.
    #[error("the lease on job `{id}` (epoch {epoch}) is no longer held")]
    LeaseLost { id: String, epoch: i64 },
    #[error("an adapter named `{0}` already exists; delete it first or choose another name")]
    NameTaken(String),
    #[error("the idempotency key `{0}` was used before with a different request body")]
    IdempotencyMismatch(String),
    #[error("`after` names `{0}`, which is not in this list")]
    UnknownCursor(String),
    #[error("{0} must not contain a NUL character")]
    Nul(&'static str),
    #[error(
        "the database address `{0}` is not understood; use sqlite://PATH or \
         postgres://USER@HOST/NAME"
    )]
    Url(String),
    #[error("cannot open the database {place}: {source}")]
    Open { place: String, source: sqlx::Error },
    #[error(
        "the embedded SQLite is {found}; {needed} or newer is needed (earlier ones may lose data)"
    )]
    SqliteTooOld { found: String, needed: &'static str },
    #[error("the database schema could not be brought up to date: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// The database cannot be reached just now; the operation did not happen or is safe to repeat.
    #[error("the database is not available: {0}")]
    Unavailable(sqlx::Error),
    #[error("the database holds a {what} this version cannot read: {reason}")]
    Corrupt { what: &'static str, reason: String },
    #[error("the database refused a statement: {0}")]
    Database(sqlx::Error),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Io(_) => {
                Self::Unavailable(error)
            }
            sqlx::Error::Database(cause) if is_transient(cause.code().as_deref()) => {
                Self::Unavailable(error)
            }
            _ => Self::Database(error),
        }
    }
}

/// Postgres: connection lost, server going down, serialisation, deadlock, lock or statement
/// timeout. SQLite: busy or locked.
fn is_transient(code: Option<&str>) -> bool {
    code.is_some_and(|code| {
        code.starts_with("08")
            || code.starts_with("57")
            || matches!(code, "40001" | "40P01" | "55P03" | "53300" | "5" | "6")
    })
}
