//! What callers may do with jobs: create, look at, list, cancel, pause, resume, follow.

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::fields::InvalidRequest;
use super::preflight::Preflight;
use super::request::JobRequest;
use super::spec::JobSpec;
use crate::catalog::{Catalog, CatalogError, ServedBase};
use crate::domain::{AdapterId, FileId, JobId};
use crate::store::{
    Checkpoint, Created, IdempotencyKey, Job, JobEvent, Listed, MetadataFilter, NewJob, Page,
    Store, StoreError,
};
use crate::worker::WorkerHandle;

/// The route that idempotency keys of job requests belong to.
const CREATE_ROUTE: &str = "POST /v1/fine_tuning/jobs";

/// Why a request about jobs could not be answered.
#[derive(Debug, thiserror::Error)]
pub enum JobsError {
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What every operation here answers with.
pub type JobsResult<T> = Result<T, JobsError>;

/// Fine-tuning as the API sees it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Jobs {
    catalog: Catalog,
    worker: WorkerHandle,
}

/// A request, and all that it names looked up.
struct Settled {
    base: ServedBase,
    spec: JobSpec,
}

impl Jobs {
    /// Jobs on the files and models of `catalog`, to be trained by `worker`.
    pub fn new(catalog: Catalog, worker: WorkerHandle) -> Self {
        Self { catalog, worker }
    }

    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Queues a job; with an idempotency key used before for the same body, answers with that job.
    ///
    /// # Errors
    /// [`JobsError::Invalid`] naming the parameter; [`StoreError::IdempotencyMismatch`].
    pub async fn create(
        &self,
        tenant: &str,
        body: Map<String, Value>,
        key: Option<String>,
    ) -> JobsResult<Created<Job>> {
        let key = key.map(|key| idempotency_key(tenant, key, &body));
        let request = JobRequest::parse(body)?;
        let Settled { base, spec } = self.settle(tenant, &request).await?;
        let new = NewJob {
            id: JobId::generate(),
            tenant: tenant.to_owned(),
            base: base.info.name.to_string(),
            base_fingerprint: base.info.fingerprint.clone(),
            spec: spec.to_value(),
            metadata: request.metadata,
            training_file: request.training_file,
            validation_file: request.validation_file,
            priority: request.priority,
        };
        Ok(self.store().create_job(&new, key.as_ref()).await?)
    }

    /// Checks a request and its files, and says what would be trained; starts nothing.
    ///
    /// # Errors
    /// As [`Jobs::create`]; bad lines are part of the answer.
    pub async fn preflight(&self, tenant: &str, body: Map<String, Value>) -> JobsResult<Preflight> {
        let request = JobRequest::parse(body)?;
        let Settled { base, spec } = self.settle(tenant, &request).await?;
        Preflight::of(&self.catalog, &self.worker, tenant, &base, &spec, &request).await
    }

    /// The tenant's job of that id.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], as with all that follow.
    pub async fn job(&self, tenant: &str, id: &JobId) -> JobsResult<Job> {
        Ok(self.store().job(tenant, id).await?)
    }

    /// A page of the tenant's jobs.
    ///
    /// # Errors
    /// [`StoreError::UnknownCursor`].
    pub async fn list(
        &self,
        tenant: &str,
        filter: &MetadataFilter,
        page: &Page,
    ) -> JobsResult<Listed<Job>> {
        Ok(self.store().jobs(tenant, filter, page).await?)
    }

    /// Ends a job for good.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if it has ended.
    pub async fn cancel(&self, tenant: &str, id: &JobId) -> JobsResult<Job> {
        Ok(self.store().cancel_job(tenant, id).await?)
    }

    /// Stops a job after its step, to be resumed.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if it is paused or has ended.
    pub async fn pause(&self, tenant: &str, id: &JobId) -> JobsResult<Job> {
        Ok(self.store().pause_job(tenant, id).await?)
    }

    /// Queues a paused job again.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if it is not paused.
    pub async fn resume(&self, tenant: &str, id: &JobId) -> JobsResult<Job> {
        Ok(self.store().resume_job(tenant, id).await?)
    }

    /// A page of a job's events.
    ///
    /// # Errors
    /// [`StoreError::UnknownCursor`].
    pub async fn events(
        &self,
        tenant: &str,
        id: &JobId,
        page: &Page,
    ) -> JobsResult<Listed<JobEvent>> {
        self.job(tenant, id).await?;
        Ok(self.store().events(id, page).await?)
    }

    /// A page of a job's checkpoints.
    ///
    /// # Errors
    /// [`StoreError::UnknownCursor`].
    pub async fn checkpoints(
        &self,
        tenant: &str,
        id: &JobId,
        page: &Page,
    ) -> JobsResult<Listed<Checkpoint>> {
        self.job(tenant, id).await?;
        Ok(self.store().checkpoints(id, page).await?)
    }

    pub(super) fn store(&self) -> &Store {
        self.catalog.store()
    }

    async fn settle(&self, tenant: &str, request: &JobRequest) -> JobsResult<Settled> {
        let (base, init_adapter) = self.model(request).await?;
        check_quantization(request, &base)?;
        check_length(request, &base)?;
        if init_adapter.is_none() {
            request.lora.resolve(&base.info)?;
        }
        self.check_file(tenant, &request.training_file, "training_file").await?;
        if let Some(file) = &request.validation_file {
            self.check_file(tenant, file, "validation_file").await?;
        }
        let seed = request.seed.unwrap_or_else(random_seed);
        let spec = JobSpec {
            model: request.model.clone(),
            suffix: request.suffix.clone(),
            seed,
            hyperparameters: request.hyperparameters.clone(),
            lora: request.lora.clone(),
            init_adapter,
            settled: None,
        };
        Ok(Settled { base, spec })
    }

    /// The base to train on, and the adapter to go on from: `model` may name either.
    async fn model(&self, request: &JobRequest) -> JobsResult<(ServedBase, Option<AdapterId>)> {
        let (name, param) = match (&request.init_adapter, self.catalog.base(&request.model)) {
            (None, Some(base)) => return Ok((base.clone(), None)),
            (Some(adapter), _) => (adapter, "lora.init_adapter"),
            (None, None) => (&request.model, "model"),
        };
        let row = match self.catalog.adapter_row(name).await {
            Err(CatalogError::UnknownModel(name)) if param != "model" => {
                let reason = format!("`{param}`: the adapter `{name}` does not exist");
                return Err(InvalidRequest::value(param, reason).into());
            }
            row => row?,
        };
        if request.init_adapter.is_some() && row.base != request.model && row.name != request.model
        {
            let reason = format!("the adapter `{name}` belongs to the base model `{}`", row.base);
            return Err(InvalidRequest::value(param, reason).into());
        }
        if !request.lora.leaves_shape_open() {
            let reason = "the shape of the adapter is that of the adapter it goes on from; \
                          leave out everything in `lora` but `dropout` and `init_adapter`";
            return Err(InvalidRequest::value("lora", reason).into());
        }
        let base = self.catalog.base(&row.base).cloned();
        let base = base.ok_or_else(|| CatalogError::BaseNotServed {
            name: row.name.clone(),
            base: row.base.clone(),
        })?;
        self.catalog.load(&row).await?;
        Ok((base, Some(row.id)))
    }

    async fn check_file(&self, tenant: &str, id: &FileId, param: &str) -> JobsResult<()> {
        let file = match self.catalog.file(tenant, id).await {
            Err(CatalogError::Store(StoreError::NotFound { .. })) => {
                let id: String = id.as_str().chars().take(100).collect();
                let reason = format!("invalid `{param}`: the file `{id}` does not exist");
                return Err(InvalidRequest::value(param, reason).into());
            }
            file => file?,
        };
        if file.purpose == "fine-tune" {
            return Ok(());
        }
        let reason = format!(
            "invalid `{param}`: the file `{id}` has the purpose `{}`; upload it with `fine-tune`",
            file.purpose
        );
        Err(InvalidRequest::value(param, reason).into())
    }
}

fn check_quantization(request: &JobRequest, base: &ServedBase) -> Result<(), InvalidRequest> {
    let resident = &base.info.dtype;
    // Quantised scales are a way of holding the same format.
    let plain = resident.trim_end_matches("-dq");
    match &request.quantization {
        Some(asked) if asked != resident && asked != plain => {
            let reason = format!(
                "the base model is resident as `{resident}` and a job trains on it as it is; start \
                 the server with `--model SOURCE,quantize={asked}` to train on `{asked}`"
            );
            Err(InvalidRequest::value("quantization", reason))
        }
        _ => Ok(()),
    }
}

fn check_length(request: &JobRequest, base: &ServedBase) -> Result<(), InvalidRequest> {
    let context = base.info.context_length;
    match request.hyperparameters.max_seq_length {
        Some(length) if length > context => {
            let reason =
                format!("`max_seq_length` is {length}; the model's context holds {context}");
            let param = "method.supervised.hyperparameters.max_seq_length";
            Err(InvalidRequest::value(param, reason))
        }
        _ => Ok(()),
    }
}

/// The key with the hash of what was asked, whatever the order of its fields.
fn idempotency_key(tenant: &str, key: String, body: &Map<String, Value>) -> IdempotencyKey {
    let mut body = Value::Object(body.clone());
    body.sort_all_objects();
    IdempotencyKey {
        tenant: tenant.to_owned(),
        route: CREATE_ROUTE.to_owned(),
        key,
        body_sha256: hex::encode(Sha256::digest(body.to_string())),
    }
}

/// 31 bits that nobody chose: OpenAI's range for a seed.
fn random_seed() -> u64 {
    u64::from(uuid::Uuid::now_v7().as_u128() as u32 >> 1)
}
