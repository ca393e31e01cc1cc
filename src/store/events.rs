//! The events of a job: a numbered list without gaps.

use serde_json::Value;
use sqlx::any::AnyRow;
use sqlx::{Any, FromRow, Row, Transaction};

use super::dialect::Dialect;
use super::job::{json, undecodable};
use super::page::{Listed, Order, Page, Timestamp};
use super::{Store, StoreError, StoreResult};
use crate::domain::{EventId, JobId};

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventLevel {
    Info,
    Warn,
    Error,
}

/// What an event carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A sentence.
    Message,
    /// Numbers of a step, in `data`.
    Metrics,
}

/// Something that happened to a job.
#[derive(Clone, Debug, PartialEq)]
pub struct NewEvent {
    pub level: EventLevel,
    pub kind: EventKind,
    pub message: String,
    pub data: Option<Value>,
}

/// The same, with its place in the list.
#[derive(Clone, Debug, PartialEq)]
pub struct JobEvent {
    pub id: EventId,
    pub job: JobId,
    /// From 1, without gaps.
    pub seq: i64,
    pub created_at: Timestamp,
    pub level: EventLevel,
    pub kind: EventKind,
    pub message: String,
    pub data: Option<Value>,
}

impl NewEvent {
    /// A plain sentence.
    pub fn info(message: impl Into<String>) -> Self {
        Self::message(EventLevel::Info, message)
    }

    /// A sentence of some weight.
    pub fn message(level: EventLevel, message: impl Into<String>) -> Self {
        Self { level, kind: EventKind::Message, message: message.into(), data: None }
    }

    /// The numbers of a step, with the sentence that sums them up.
    pub fn metrics(message: impl Into<String>, data: Value) -> Self {
        Self {
            level: EventLevel::Info,
            kind: EventKind::Metrics,
            message: message.into(),
            data: Some(data),
        }
    }
}

impl EventLevel {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

impl EventKind {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Metrics => "metrics",
        }
    }
}

impl Store {
    /// Up to `limit` events behind number `seq` (0 for all), oldest first: what a stream sends.
    pub async fn events_after(
        &self,
        job: &JobId,
        seq: i64,
        limit: usize,
    ) -> StoreResult<Vec<JobEvent>> {
        Ok(sqlx::query_as(
            "select * from job_events
             where job_id = $1 and seq > $2
             order by seq
             limit $3",
        )
        .bind(job.as_str())
        .bind(seq)
        .bind(limit as i64)
        .fetch_all(&self.reader)
        .await?)
    }

    /// A page of the job's events; `page.after` is an event's id.
    ///
    /// # Errors
    /// [`StoreError::UnknownCursor`] if `page.after` is no event of this job.
    pub async fn events(&self, job: &JobId, page: &Page) -> StoreResult<Listed<JobEvent>> {
        let (than, direction, start) = match page.order {
            Order::Ascending => (">", "asc", i64::MIN),
            Order::Descending => ("<", "desc", i64::MAX),
        };
        let from = match &page.after {
            None => start,
            Some(id) => self.event_seq(job, id).await?,
        };
        let query = self.dialect.sql(&format!(
            "select * from job_events
             where job_id = $1 and seq {than} $2
             order by seq {direction}
             limit $3"
        ));
        let rows = sqlx::query_as(query)
            .bind(job.as_str())
            .bind(from)
            .bind(page.fetch_limit())
            .fetch_all(&self.reader)
            .await?;
        Ok(Listed::from_one_too_many(rows, page.limit))
    }

    async fn event_seq(&self, job: &JobId, id: &str) -> StoreResult<i64> {
        let row = sqlx::query("select seq from job_events where job_id = $1 and id = $2")
            .bind(job.as_str())
            .bind(id)
            .fetch_optional(&self.reader)
            .await?;
        let row = row.ok_or_else(|| StoreError::UnknownCursor(id.to_owned()))?;
        Ok(row.try_get("seq")?)
    }
}

/// Writes events whose numbers end with `last_seq`, which the job's row has already counted.
pub(super) async fn append(
    dialect: Dialect,
    tx: &mut Transaction<'static, Any>,
    job: &JobId,
    last_seq: i64,
    events: &[NewEvent],
) -> StoreResult<()> {
    let first = last_seq - events.len() as i64 + 1;
    for (seq, event) in (first..).zip(events) {
        let insert = dialect.sql(
            "insert into job_events (job_id, seq, id, created_at, level, type, message, data)
             values ($1, $2, $3, {now}, $4, $5, $6, $7)",
        );
        sqlx::query(insert)
            .bind(job.as_str())
            .bind(seq)
            .bind(EventId::generate().as_str())
            .bind(event.level.as_str())
            .bind(event.kind.as_str())
            .bind(event.message.replace('\0', ""))
            .bind(event.data.as_ref().map(Value::to_string))
            .execute(&mut **tx)
            .await?;
    }
    Ok(())
}

impl<'r> FromRow<'r, AnyRow> for JobEvent {
    fn from_row(row: &'r AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get::<String, _>("id")?.into(),
            job: row.try_get::<String, _>("job_id")?.into(),
            seq: row.try_get("seq")?,
            created_at: Timestamp(row.try_get("created_at")?),
            level: match row.try_get("level")? {
                "info" => EventLevel::Info,
                "warn" => EventLevel::Warn,
                "error" => EventLevel::Error,
                other => return Err(undecodable("level", other)),
            },
            kind: match row.try_get("type")? {
                "message" => EventKind::Message,
                "metrics" => EventKind::Metrics,
                other => return Err(undecodable("type", other)),
            },
            message: row.try_get("message")?,
            data: json(row, "data")?,
        })
    }
}
