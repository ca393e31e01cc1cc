//! Uploaded and produced files: the rows; the bytes lie in `artifacts`.

use std::time::Duration;

use sqlx::any::AnyRow;
use sqlx::{Any, FromRow, Row, Transaction};

use super::dialect::Dialect;
use super::idempotency::{self, Created, IdempotencyKey};
use super::page::{Listed, Page, Timestamp};
use super::{Store, StoreError, StoreResult};
use crate::domain::FileId;

/// A file as the API knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct File {
    pub id: FileId,
    pub tenant: String,
    /// `fine-tune`, `fine-tune-results`, `batch`, …
    pub purpose: String,
    /// As the client called it; never a path on this machine.
    pub filename: String,
    pub bytes: u64,
    /// Hex; names the content in `artifacts`.
    pub sha256: String,
    /// `uploaded`, `processed` or `error`.
    pub status: String,
    pub status_details: Option<String>,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
}

/// A file whose bytes are already safe.
#[derive(Clone, Debug)]
pub struct NewFile {
    pub id: FileId,
    pub tenant: String,
    pub purpose: String,
    pub filename: String,
    pub bytes: u64,
    pub sha256: String,
    pub status: String,
    pub status_details: Option<String>,
    pub expires_after: Option<Duration>,
}

impl Store {
    /// Records a file; with a key already used for the same body, answers with the first one.
    ///
    /// # Errors
    /// [`StoreError::IdempotencyMismatch`] if the key was used with another body.
    pub async fn insert_file(
        &self,
        new: &NewFile,
        key: Option<&IdempotencyKey>,
    ) -> StoreResult<Created<File>> {
        super::check_text("the file name", &new.filename)?;
        let mut tx = self.begin().await?;
        if let Some(id) = idempotency::replay(self.dialect, &mut tx, key, new.id.as_str()).await? {
            drop(tx);
            return Ok(Created::Replayed(self.file(&new.tenant, &id.into()).await?));
        }
        let file = insert(self.dialect, &mut tx, new).await?;
        tx.commit().await?;
        Ok(Created::New(file))
    }

    /// The file of that id, if it is this tenant's and has not expired.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn file(&self, tenant: &str, id: &FileId) -> StoreResult<File> {
        let query = self.dialect.sql(
            "select * from files
             where tenant = $1 and id = $2 and (expires_at is null or expires_at > {now})",
        );
        sqlx::query_as(query)
            .bind(tenant)
            .bind(id.as_str())
            .fetch_optional(&self.reader)
            .await?
            .ok_or_else(|| not_found(id))
    }

    /// A page of the tenant's files, of one purpose or of all.
    pub async fn files(
        &self,
        tenant: &str,
        purpose: Option<&str>,
        page: &Page,
    ) -> StoreResult<Listed<File>> {
        let after = self.cursor("files", page).await?;
        let query = self.dialect.sql(&page.keyset(
            "select * from files
             where tenant = $4 and (expires_at is null or expires_at > {now})
               and ($5 = '' or purpose = $5)",
        ));
        let rows = sqlx::query_as(query)
            .bind(after.at)
            .bind(after.id)
            .bind(page.fetch_limit())
            .bind(tenant)
            .bind(purpose.unwrap_or_default())
            .fetch_all(&self.reader)
            .await?;
        Ok(Listed::from_one_too_many(rows, page.limit))
    }

    /// Forgets a file and says what it was. Its bytes go when no other row names them:
    /// see [`Store::content_in_use`].
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn delete_file(&self, tenant: &str, id: &FileId) -> StoreResult<File> {
        sqlx::query_as(self.dialect.sql(
            "delete from files
             where tenant = $1 and id = $2
             returning *",
        ))
        .bind(tenant)
        .bind(id.as_str())
        .fetch_optional(&self.writer)
        .await?
        .ok_or_else(|| not_found(id))
    }

    /// Forgets every file whose time has passed.
    pub async fn delete_expired_files(&self) -> StoreResult<Vec<File>> {
        let query = self.dialect.sql(
            "delete from files
             where expires_at <= {now}
             returning *",
        );
        Ok(sqlx::query_as(query).fetch_all(&self.writer).await?)
    }

    /// Whether any file still has this content.
    pub async fn content_in_use(&self, sha256: &str) -> StoreResult<bool> {
        let row = sqlx::query("select 1 from files where sha256 = $1 limit 1")
            .bind(sha256)
            .fetch_optional(&self.reader)
            .await?;
        Ok(row.is_some())
    }
}

/// Inserts within a transaction.
pub(super) async fn insert(
    dialect: Dialect,
    tx: &mut Transaction<'static, Any>,
    new: &NewFile,
) -> StoreResult<File> {
    let insert = dialect.sql(
        "insert into files (id, tenant, purpose, filename, bytes, sha256, status,
             status_details, created_at, expires_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, {now}, {now} + $9)
         returning *",
    );
    Ok(sqlx::query_as(insert)
        .bind(new.id.as_str())
        .bind(&*new.tenant)
        .bind(&*new.purpose)
        .bind(&*new.filename)
        .bind(new.bytes as i64)
        .bind(&*new.sha256)
        .bind(&*new.status)
        .bind(new.status_details.clone())
        .bind(new.expires_after.map(super::micros))
        .fetch_one(&mut **tx)
        .await?)
}

fn not_found(id: &FileId) -> StoreError {
    StoreError::NotFound { kind: "file", id: id.to_string() }
}

impl<'r> FromRow<'r, AnyRow> for File {
    fn from_row(row: &'r AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get::<String, _>("id")?.into(),
            tenant: row.try_get("tenant")?,
            purpose: row.try_get("purpose")?,
            filename: row.try_get("filename")?,
            bytes: row.try_get::<i64, _>("bytes")? as u64,
            sha256: row.try_get("sha256")?,
            status: row.try_get("status")?,
            status_details: row.try_get("status_details")?,
            created_at: Timestamp(row.try_get("created_at")?),
            expires_at: row.try_get::<Option<i64>, _>("expires_at")?.map(Timestamp),
        })
    }
}
