//! Adapters by name: immutable generations, each a folder in PEFT layout.

use sqlx::any::AnyRow;
use sqlx::{Any, FromRow, Row, Transaction};

use super::dialect::Dialect;
use super::job::undecodable;
use super::page::{Listed, Page, Timestamp};
use super::{Store, StoreError, StoreResult};
use crate::domain::{AdapterId, JobId};

/// Where an adapter came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdapterSource {
    /// Trained here.
    Job,
    /// Sent by a client.
    Upload,
    /// A folder the operator named.
    Folder,
}

/// What to do if a live adapter has the name already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfTaken {
    Refuse,
    /// The new one becomes the next generation; the old one lives on in whoever uses it.
    Replace,
}

/// An adapter whose folder is already safe.
#[derive(Clone, Debug)]
pub struct NewAdapter {
    pub id: AdapterId,
    /// What requests call it; a checkpoint's ends in `:ckpt-step-N`.
    pub name: String,
    pub base: String,
    /// Of the base it was trained on; `None` if it does not say.
    pub base_fingerprint: Option<String>,
    /// A key of `artifacts`, or an absolute folder the operator named.
    pub location: String,
    /// Hex SHA-256 of the folder's manifest.
    pub sha256: String,
    pub r: usize,
    pub size_bytes: u64,
    pub source: AdapterSource,
    pub job: Option<JobId>,
    /// The optimiser step, for a checkpoint's adapter.
    pub step: Option<i64>,
}

/// One generation of an adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    pub id: AdapterId,
    pub name: String,
    /// From 1, for each name.
    pub generation: i64,
    pub base: String,
    pub base_fingerprint: Option<String>,
    pub location: String,
    pub sha256: String,
    pub r: usize,
    pub size_bytes: u64,
    pub source: AdapterSource,
    pub job: Option<JobId>,
    pub step: Option<i64>,
    pub created_at: Timestamp,
}

impl AdapterSource {
    const ALL: [Self; 3] = [Self::Job, Self::Upload, Self::Folder];

    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Job => "job",
            Self::Upload => "upload",
            Self::Folder => "folder",
        }
    }
}

impl Store {
    /// Gives an adapter its name. One that is there already with the same content stays as it is.
    ///
    /// # Errors
    /// [`StoreError::NameTaken`] under [`IfTaken::Refuse`].
    pub async fn insert_adapter(
        &self,
        new: &NewAdapter,
        if_taken: IfTaken,
    ) -> StoreResult<Adapter> {
        super::check_text("the adapter name", &new.name)?;
        let mut tx = self.begin().await?;
        let adapter = insert(self.dialect, &mut tx, new, if_taken).await?;
        self.commit(tx).await?;
        Ok(adapter)
    }

    /// The live adapter of that name, or `None`.
    pub async fn adapter(&self, name: &str) -> StoreResult<Option<Adapter>> {
        Ok(sqlx::query_as("select * from adapters where name = $1 and deleted_at is null")
            .bind(name)
            .fetch_optional(&self.reader)
            .await?)
    }

    /// The adapter of that id, deleted or not.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn adapter_by_id(&self, id: &AdapterId) -> StoreResult<Adapter> {
        sqlx::query_as("select * from adapters where id = $1")
            .bind(id.as_str())
            .fetch_optional(&self.reader)
            .await?
            .ok_or_else(|| StoreError::NotFound { kind: "adapter", id: id.to_string() })
    }

    /// A page of the live adapters, checkpoints' included.
    ///
    /// # Errors
    /// [`StoreError::UnknownCursor`] if `page.after` is no adapter's id.
    pub async fn adapters(&self, page: &Page) -> StoreResult<Listed<Adapter>> {
        let after = self.cursor("adapters", page).await?;
        let query = self.dialect.sql(&page.keyset(
            "select * from adapters
             where deleted_at is null",
        ));
        let rows = sqlx::query_as(query)
            .bind(after.at)
            .bind(after.id)
            .bind(page.fetch_limit())
            .fetch_all(&self.reader)
            .await?;
        Ok(Listed::from_one_too_many(rows, page.limit))
    }

    /// Takes the name away from its live adapter and returns what it was. Requests that pinned it
    /// go on; its folder goes when no live row names it: see [`Store::location_in_use`].
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn delete_adapter(&self, name: &str) -> StoreResult<Adapter> {
        let mut tx = self.begin().await?;
        let adapter = retire(self.dialect, &mut tx, name).await?;
        self.commit(tx).await?;
        adapter.ok_or_else(|| StoreError::NotFound { kind: "model", id: name.to_owned() })
    }

    /// Whether a live adapter's folder is at this location.
    pub async fn location_in_use(&self, location: &str) -> StoreResult<bool> {
        let query = "select 1 from adapters where location = $1 and deleted_at is null limit 1";
        let row = sqlx::query(query).bind(location).fetch_optional(&self.reader).await?;
        Ok(row.is_some())
    }
}

/// Inserts within a transaction, as [`Store::insert_adapter`].
pub(super) async fn insert(
    dialect: Dialect,
    tx: &mut Transaction<'static, Any>,
    new: &NewAdapter,
    if_taken: IfTaken,
) -> StoreResult<Adapter> {
    let query = "select * from adapters where name = $1 and deleted_at is null";
    let live: Option<Adapter> =
        sqlx::query_as(query).bind(&*new.name).fetch_optional(&mut **tx).await?;
    if let Some(live) = live {
        if live.sha256 == new.sha256 && live.base == new.base && live.location == new.location {
            return Ok(live);
        }
        if if_taken == IfTaken::Refuse {
            return Err(StoreError::NameTaken(new.name.clone()));
        }
        retire(dialect, tx, &new.name).await?;
    }
    insert_row(dialect, tx, new).await
}

async fn insert_row(
    dialect: Dialect,
    tx: &mut Transaction<'static, Any>,
    new: &NewAdapter,
) -> StoreResult<Adapter> {
    let insert = dialect.sql(
        "insert into adapters (id, name, generation, base, base_fingerprint, location, sha256, r,
             size_bytes, source, job_id, step, created_at)
         values ($1, $2,
             (select coalesce(max(generation), 0) + 1 from adapters where name = $2),
             $3, $4, $5, $6, $7, $8, $9, $10, $11, {now})
         returning *",
    );
    sqlx::query_as(insert)
        .bind(new.id.as_str())
        .bind(&*new.name)
        .bind(&*new.base)
        .bind(new.base_fingerprint.clone())
        .bind(&*new.location)
        .bind(&*new.sha256)
        .bind(new.r as i64)
        .bind(new.size_bytes as i64)
        .bind(new.source.as_str())
        .bind(new.job.as_ref().map(|job| job.as_str().to_owned()))
        .bind(new.step)
        .fetch_one(&mut **tx)
        .await
        .map_err(|error| match error.as_database_error() {
            Some(cause) if cause.is_unique_violation() => StoreError::NameTaken(new.name.clone()),
            _ => error.into(),
        })
}

async fn retire(
    dialect: Dialect,
    tx: &mut Transaction<'static, Any>,
    name: &str,
) -> StoreResult<Option<Adapter>> {
    let update = dialect.sql(
        "update adapters
         set deleted_at = {now}
         where name = $1 and deleted_at is null
         returning *",
    );
    Ok(sqlx::query_as(update).bind(name).fetch_optional(&mut **tx).await?)
}

impl<'r> FromRow<'r, AnyRow> for Adapter {
    fn from_row(row: &'r AnyRow) -> Result<Self, sqlx::Error> {
        let source: &str = row.try_get("source")?;
        Ok(Self {
            id: row.try_get::<String, _>("id")?.into(),
            name: row.try_get("name")?,
            generation: row.try_get("generation")?,
            base: row.try_get("base")?,
            base_fingerprint: row.try_get("base_fingerprint")?,
            location: row.try_get("location")?,
            sha256: row.try_get("sha256")?,
            r: row.try_get::<i64, _>("r")? as usize,
            size_bytes: row.try_get::<i64, _>("size_bytes")? as u64,
            source: AdapterSource::ALL
                .into_iter()
                .find(|known| known.as_str() == source)
                .ok_or_else(|| undecodable("source", source))?,
            job: row.try_get::<Option<String>, _>("job_id")?.map(JobId::from),
            step: row.try_get("step")?,
            created_at: Timestamp(row.try_get("created_at")?),
        })
    }
}
