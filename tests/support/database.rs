//! A store of one's own, on each database.

use std::collections::BTreeMap;
use std::ops::Deref;

use anyhow::Result;
use serde_json::json;
use tandem::domain::{AdapterId, FileId, JobId};
use tandem::store::{AdapterSource, NewAdapter, NewFile, NewJob, Store};

use super::postgres;

pub type TestResult = Result<()>;

pub const TENANT: &str = "default";
pub const BASE: &str = "demo";

/// An empty database, and what must live as long as it does.
pub struct TestStore {
    store: Store,
    pub url: String,
    _folder: tempfile::TempDir,
}

impl TestStore {
    /// One store on SQLite and one on Postgres, both fresh.
    pub async fn on_each_database() -> Result<Vec<Self>> {
        Ok(vec![Self::on_sqlite().await?, Self::on_postgres().await?])
    }

    pub async fn on_sqlite() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let url = format!("sqlite://{}", folder.path().join("a store #1?.db").display());
        Self::open(url, folder).await
    }

    pub async fn on_postgres() -> Result<Self> {
        Self::open(postgres::fresh_database().await?, tempfile::tempdir()?).await
    }

    async fn open(url: String, folder: tempfile::TempDir) -> Result<Self> {
        Ok(Self { store: Store::open(&url).await?, url, _folder: folder })
    }

    /// Submits a plain job and brings it as far as the queue.
    pub async fn queued_job(&self) -> Result<JobId> {
        let job = self.create_job(&a_job(), None).await?.into_inner();
        let minute = std::time::Duration::from_secs(60);
        let claimed =
            self.claim_job("validator", minute, tandem::store::Stage::Validate, &[BASE]).await?;
        self.finish_validation(&claimed.expect("a job to validate").lease, &[]).await?;
        Ok(job.id)
    }
}

impl Deref for TestStore {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

pub fn a_job() -> NewJob {
    NewJob {
        id: JobId::generate(),
        tenant: TENANT.into(),
        base: BASE.into(),
        base_fingerprint: "f".repeat(64),
        spec: json!({ "model": BASE, "seed": 7 }),
        metadata: None,
        training_file: FileId::generate(),
        validation_file: None,
        priority: 0,
    }
}

pub fn a_job_with(pairs: &[(&str, &str)]) -> NewJob {
    let pairs = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    NewJob { metadata: Some(pairs.collect::<BTreeMap<_, _>>()), ..a_job() }
}

pub fn a_file(purpose: &str) -> NewFile {
    NewFile {
        id: FileId::generate(),
        tenant: TENANT.into(),
        purpose: purpose.into(),
        filename: "pirate.jsonl".into(),
        bytes: 11,
        sha256: "0".repeat(64),
        status: "processed".into(),
        status_details: None,
        expires_after: None,
    }
}

pub fn an_adapter(name: &str, sha256: &str) -> NewAdapter {
    NewAdapter {
        id: AdapterId::generate(),
        name: name.into(),
        base: BASE.into(),
        base_fingerprint: None,
        location: format!("adapters/{sha256}"),
        sha256: sha256.into(),
        r: 8,
        size_bytes: 4096,
        source: AdapterSource::Upload,
        job: None,
        step: None,
    }
}
