//! Jobs as the API sees them: submit, look up, list.

use sqlx::any::AnyRow;
use sqlx::{Any, FromRow, Transaction};

use super::idempotency::{self, Created, IdempotencyKey};
use super::job::{Job, Metadata, NewJob};
use super::page::{Listed, Page};
use super::{NewEvent, Store, StoreError, StoreResult, events};
use crate::domain::JobId;

/// Which jobs a list shows.
#[derive(Clone, Debug, Default)]
pub enum MetadataFilter {
    #[default]
    All,
    /// Those with none.
    Without,
    /// Those that carry every one of these pairs.
    Pairs(Vec<(String, String)>),
}

impl Store {
    /// Submits a job, with its first event, as `validating_files`. A key that was already used for
    /// the same body answers with the first request's job.
    ///
    /// # Errors
    /// [`StoreError::IdempotencyMismatch`] if the key was used with another body.
    pub async fn create_job(
        &self,
        new: &NewJob,
        key: Option<&IdempotencyKey>,
    ) -> StoreResult<Created<Job>> {
        check_metadata(new.metadata.as_ref())?;
        let mut tx = self.begin().await?;
        if let Some(id) = idempotency::replay(self.dialect, &mut tx, key, new.id.as_str()).await? {
            drop(tx);
            return Ok(Created::Replayed(self.job(&new.tenant, &id.into()).await?));
        }
        let job = self.insert_job(&mut tx, new).await?;
        insert_metadata(&mut tx, &new.id, new.metadata.as_ref()).await?;
        let first = NewEvent::info(format!("Created fine-tuning job: {}", new.id));
        events::append(self.dialect, &mut tx, &new.id, 1, &[first]).await?;
        self.commit(tx).await?;
        Ok(Created::New(job))
    }

    async fn insert_job(
        &self,
        tx: &mut Transaction<'static, Any>,
        new: &NewJob,
    ) -> StoreResult<Job> {
        let insert = self.dialect.sql(
            "insert into jobs (id, tenant, base, base_fingerprint, spec, metadata, training_file,
                 validation_file, status, priority, run_at, event_seq, created_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, 'validating_files', $9, {now}, 1, {now})
             returning *",
        );
        let metadata = new.metadata.as_ref().map(|pairs| serde_json::json!(pairs).to_string());
        Ok(sqlx::query_as(insert)
            .bind(new.id.as_str())
            .bind(&*new.tenant)
            .bind(&*new.base)
            .bind(&*new.base_fingerprint)
            .bind(new.spec.to_string())
            .bind(metadata)
            .bind(new.training_file.as_str())
            .bind(new.validation_file.as_ref().map(|file| file.as_str().to_owned()))
            .bind(new.priority)
            .fetch_one(&mut **tx)
            .await?)
    }

    /// The job of that id, if it is this tenant's.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn job(&self, tenant: &str, id: &JobId) -> StoreResult<Job> {
        sqlx::query_as("select * from jobs where tenant = $1 and id = $2")
            .bind(tenant)
            .bind(id.as_str())
            .fetch_optional(&self.reader)
            .await?
            .ok_or_else(|| not_found(id))
    }

    /// A page of the tenant's jobs.
    ///
    /// # Errors
    /// [`StoreError::UnknownCursor`] if `page.after` is no job.
    pub async fn jobs(
        &self,
        tenant: &str,
        filter: &MetadataFilter,
        page: &Page,
    ) -> StoreResult<Listed<Job>> {
        let after = self.cursor("jobs", page).await?;
        let (clause, values) = filter.clause(5);
        let query = self.dialect.sql(&page.keyset(&format!(
            "select * from jobs
             where tenant = $4{clause}"
        )));
        let mut query =
            sqlx::query(query).bind(after.at).bind(after.id).bind(page.fetch_limit()).bind(tenant);
        for value in values {
            query = query.bind(value.to_owned());
        }
        let rows: Vec<AnyRow> = query.fetch_all(&self.reader).await?;
        let jobs = rows.iter().map(Job::from_row).collect::<Result<Vec<_>, _>>()?;
        Ok(Listed::from_one_too_many(jobs, page.limit))
    }
}

impl MetadataFilter {
    /// The condition, its parameters numbered from `first`, and their values.
    fn clause(&self, first: usize) -> (String, Vec<&str>) {
        match self {
            Self::All => (String::new(), Vec::new()),
            Self::Without => ("\n               and metadata is null".into(), Vec::new()),
            Self::Pairs(pairs) => {
                let clause = (first..).step_by(2).take(pairs.len()).map(|n| {
                    format!(
                        "
               and exists (
                   select 1 from job_metadata
                   where job_id = jobs.id and name = ${n} and value = ${})",
                        n + 1
                    )
                });
                let values = pairs.iter().flat_map(|(name, value)| [&**name, &**value]);
                (clause.collect(), values.collect())
            }
        }
    }
}

pub(super) fn not_found(id: &JobId) -> StoreError {
    StoreError::NotFound { kind: "fine-tuning job", id: id.to_string() }
}

fn check_metadata(metadata: Option<&Metadata>) -> StoreResult<()> {
    for (name, value) in metadata.into_iter().flatten() {
        super::check_text("metadata", name)?;
        super::check_text("metadata", value)?;
    }
    Ok(())
}

async fn insert_metadata(
    tx: &mut Transaction<'static, Any>,
    id: &JobId,
    metadata: Option<&Metadata>,
) -> StoreResult<()> {
    for (name, value) in metadata.into_iter().flatten() {
        sqlx::query("insert into job_metadata (job_id, name, value) values ($1, $2, $3)")
            .bind(id.as_str())
            .bind(&**name)
            .bind(&**value)
            .execute(&mut **tx)
            .await?;
    }
    Ok(())
}
