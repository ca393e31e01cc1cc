//! The promise that a repeated request makes nothing twice.
//!
//! Semantics of the IETF draft "The Idempotency-Key HTTP Header Field": same key and same body
//! answer with the first resource; same key and another body are refused.

use std::time::Duration;

use sqlx::{Any, Row, Transaction};

use super::dialect::Dialect;
use super::{StoreError, StoreResult};

/// How long a key is remembered.
const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// A client's name for one request, and what the request said.
#[derive(Clone, Debug)]
pub struct IdempotencyKey {
    pub tenant: String,
    /// The route the key was sent to, for example `POST /v1/fine_tuning/jobs`.
    pub route: String,
    pub key: String,
    /// Hex SHA-256 of the request body.
    pub body_sha256: String,
}

/// A resource, made now or by an earlier request with the same key.
#[derive(Clone, Debug, PartialEq)]
pub enum Created<T> {
    New(T),
    Replayed(T),
}

impl<T> Created<T> {
    pub fn into_inner(self) -> T {
        match self {
            Self::New(value) | Self::Replayed(value) => value,
        }
    }

    pub fn is_replay(&self) -> bool {
        matches!(self, Self::Replayed(_))
    }
}

/// Claims the key for `resource`, or names the resource that an earlier request made.
///
/// Two requests at once: the second waits for the first transaction to end, and then sees it.
pub(super) async fn replay(
    dialect: Dialect,
    tx: &mut Transaction<'static, Any>,
    key: Option<&IdempotencyKey>,
    resource: &str,
) -> StoreResult<Option<String>> {
    let Some(key) = key else { return Ok(None) };
    super::check_text("the idempotency key", &key.key)?;
    sqlx::query(dialect.sql("delete from idempotency_keys where expires_at <= {now}"))
        .execute(&mut **tx)
        .await?;
    if claim(dialect, tx, key, resource).await? {
        return Ok(None);
    }
    let row = sqlx::query(
        "select resource_id, body_sha256 from idempotency_keys
         where tenant = $1 and route = $2 and idempotency_key = $3",
    )
    .bind(&*key.tenant)
    .bind(&*key.route)
    .bind(&*key.key)
    .fetch_one(&mut **tx)
    .await?;
    if row.try_get::<String, _>("body_sha256")? != key.body_sha256 {
        return Err(StoreError::IdempotencyMismatch(key.key.clone()));
    }
    Ok(Some(row.try_get("resource_id")?))
}

async fn claim(
    dialect: Dialect,
    tx: &mut Transaction<'static, Any>,
    key: &IdempotencyKey,
    resource: &str,
) -> StoreResult<bool> {
    let insert = dialect.sql(
        "insert into idempotency_keys (tenant, route, idempotency_key, body_sha256, resource_id,
             created_at, expires_at)
         values ($1, $2, $3, $4, $5, {now}, {now} + $6)
         on conflict (tenant, route, idempotency_key) do nothing",
    );
    let done = sqlx::query(insert)
        .bind(&*key.tenant)
        .bind(&*key.route)
        .bind(&*key.key)
        .bind(&*key.body_sha256)
        .bind(resource)
        .bind(super::micros(LIFETIME))
        .execute(&mut **tx)
        .await?;
    Ok(done.rows_affected() == 1)
}
