//! From a job's row to a run: its files read, its adapter shaped, everything left open settled; and
//! back, from a run's adapter to the files PEFT loads.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::forecast::{Load, room};
use super::preflight::trainable_parameters;
use super::prepare::{Prepare, Prepared, Unprepared};
use super::spec::{JobSpec, Settled};
use crate::catalog::{Catalog, CatalogError, ServedBase, fine_tuned_name};
use crate::domain::{AdapterWeights, BaseInfo, Example, FileId, LoraSpec, SaveableModule};
use crate::peft::{self, Provenance};
use crate::store::{EventKind, EventLevel, Job, JobError, NewEvent, StoreError};
use crate::text::dataset::{self, Dataset, DatasetError, Finding, Limits, Report};
use crate::worker::WorkerHandle;

/// Bad lines that a job's events list; all are counted.
const LISTED_ERRORS: usize = 1000;
/// Bad lines, and warnings, that get a sentence of their own.
const TOLD: usize = 20;

/// Prepares jobs with the files and models of a catalog.
#[derive(Clone, Debug)]
pub struct Preparation {
    catalog: Catalog,
    worker: WorkerHandle,
}

/// The two files of a job, as examples.
#[derive(Debug)]
pub(super) struct Data {
    pub training: Dataset,
    pub validation: Option<Dataset>,
}

/// An adapter to go on from, and the shape it dictates.
type Init = Option<(Arc<AdapterWeights>, LoraSpec)>;

impl Preparation {
    pub fn new(catalog: Catalog, worker: WorkerHandle) -> Self {
        Self { catalog, worker }
    }

    async fn run(&self, job: &Job) -> Result<Prepared, Unprepared> {
        let spec = JobSpec::of(job).map_err(|error| {
            never("invalid_job", format!("The job was written by another version: {error}"), None)
        })?;
        let base = self.base(job)?;
        let data =
            self.data(job, &base, &spec, &job.training_file, job.validation_file.as_ref()).await?;
        let init = self.init_adapter(&spec).await?;
        let settled = match spec.settled.clone() {
            Some(settled) => settled,
            None => settle(&spec, &base.info, &data, init.as_ref().map(|(_, lora)| lora))?,
        };
        let parameters = match &init {
            Some((weights, _)) => weights.parameters(),
            None => trainable_parameters(&settled.lora, &base.info),
        };
        let load = Load {
            base: &base.info,
            hyperparameters: &settled.hyperparameters,
            parameters,
            examples: &data.training.examples,
            validation: data.validation.as_ref().map_or(&[], |data| &data.examples),
        };
        let operations_per_token = self.operations(&load, spec.settled.is_none()).await?;
        let organization = self.catalog.organization();
        let model_name = fine_tuned_name(&job.base, organization, spec.suffix.as_deref(), &job.id);
        Ok(Prepared {
            lora: settled.lora.clone(),
            hyperparameters: settled.hyperparameters.clone(),
            seed: spec.seed,
            operations_per_token,
            notes: notes(&data),
            examples: Arc::new(data.training.examples),
            validation: Arc::new(data.validation.map(|data| data.examples).unwrap_or_default()),
            init_adapter: init.map(|(weights, _)| weights),
            spec: JobSpec { settled: Some(settled), ..spec }.to_value(),
            model_name,
        })
    }

    /// Operations per token, where the device tells what it has; a `new` run that does not fit is
    /// refused. One that has begun did fit.
    async fn operations(&self, load: &Load<'_>, new: bool) -> Result<Option<f64>, Unprepared> {
        let Some((room, operations)) = room(&self.worker, load).await else {
            return Ok(None);
        };
        let busy = self.worker.stats().training.load(Relaxed);
        if room.fits || busy || !new {
            return Ok(Some(operations));
        }
        let message = room.refusal(load.hyperparameters.micro_batch_size);
        Err(never("insufficient_memory", message, None))
    }

    fn base(&self, job: &Job) -> Result<ServedBase, Unprepared> {
        let base = self.catalog.base(&job.base).cloned().ok_or_else(|| {
            let message =
                format!("The base model `{}` is not served here at the moment.", job.base);
            Unprepared::NotNow(error("base_not_served", message, Some("model")))
        })?;
        if base.info.fingerprint == job.base_fingerprint {
            return Ok(base);
        }
        let message = format!(
            "The weights served as `{}` are not those the job was made for; create it again.",
            job.base
        );
        Err(never("base_changed", message, Some("model")))
    }

    /// Reads both files. A bad line in one of them ends the job, and all bad lines are told.
    async fn data(
        &self,
        job: &Job,
        base: &ServedBase,
        spec: &JobSpec,
        training: &FileId,
        validation: Option<&FileId>,
    ) -> Result<Data, Unprepared> {
        let training = self.dataset(&job.tenant, base, spec, training, "training_file").await?;
        let validation = match validation {
            Some(file) => {
                Some(self.dataset(&job.tenant, base, spec, file, "validation_file").await?)
            }
            None => None,
        };
        Ok(Data { training, validation })
    }

    async fn dataset(
        &self,
        tenant: &str,
        base: &ServedBase,
        spec: &JobSpec,
        id: &FileId,
        param: &'static str,
    ) -> Result<Dataset, Unprepared> {
        match load(&self.catalog, tenant, base, spec, id).await {
            Ok(dataset) => Ok(dataset),
            Err(LoadError::Invalid(report)) => Err(bad_lines(&report, param)),
            Err(LoadError::Missing) => {
                let message = format!("The file `{id}` does not exist any more.");
                Err(never(&format!("invalid_{param}"), message, Some(param)))
            }
            Err(LoadError::Damaged) => {
                let message = format!("The stored content of `{id}` is damaged; upload it again.");
                Err(never(&format!("invalid_{param}"), message, Some(param)))
            }
            Err(LoadError::Other(message)) => {
                let message = format!("The file `{id}` could not be read: {message}");
                Err(Unprepared::NotNow(error("storage_error", message, Some(param))))
            }
        }
    }

    async fn init_adapter(&self, spec: &JobSpec) -> Result<Init, Unprepared> {
        let Some(id) = &spec.init_adapter else { return Ok(None) };
        let unusable = |reason: String| {
            let message = format!("The adapter to go on from cannot be used: {reason}");
            never("invalid_init_adapter", message, Some("lora.init_adapter"))
        };
        let row = match self.catalog.store().adapter_by_id(id).await {
            Ok(row) => row,
            Err(StoreError::NotFound { .. }) => return Err(unusable("it is gone".to_owned())),
            Err(reason) => {
                return Err(Unprepared::NotNow(error("storage_error", reason.to_string(), None)));
            }
        };
        let adapter = self.catalog.load(&row).await.map_err(|error| unusable(error.to_string()))?;
        let lora = adapter.lora_spec(spec.lora.dropout.unwrap_or(0.0));
        Ok(Some((adapter.weights.clone(), lora)))
    }
}

impl Prepare for Preparation {
    fn prepare<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Prepared, Unprepared>> {
        Box::pin(self.run(job))
    }

    fn adapter_files(
        &self,
        job: &Job,
        run: &Prepared,
        adapter: &AdapterWeights,
        step: Option<usize>,
    ) -> Vec<(String, Vec<u8>)> {
        let base = self.catalog.base(&job.base).expect("a job in training has its base resident");
        let provenance = Provenance {
            base_model: job.base.clone(),
            fingerprints: base.fingerprints(),
            job: Some(job.id.to_string()),
            step: step.map(|step| step as u64),
        };
        let files = peft::write(adapter, &run.lora, &base.info, &provenance);
        files.entries().into_iter().map(|(name, bytes)| (name.to_owned(), bytes.to_vec())).collect()
    }
}

/// Settles what the spec left open, for this data.
fn settle(
    spec: &JobSpec,
    base: &BaseInfo,
    data: &Data,
    init: Option<&LoraSpec>,
) -> Result<Settled, Unprepared> {
    let lora = match init {
        Some(lora) => lora.clone(),
        None => spec.lora.resolve(base).map_err(|invalid| {
            never("invalid_target_modules", invalid.reason, Some("lora.target_modules"))
        })?,
    };
    let examples = &data.training.examples;
    check_projector(base, &lora, examples)?;
    let longest = examples.iter().map(|example| example.ids.len()).max().unwrap_or(1);
    let hyperparameters = spec.hyperparameters.resolve(base, examples.len(), longest);
    Ok(Settled { hyperparameters, lora })
}

/// A projector learns from pictures alone.
fn check_projector(
    base: &BaseInfo,
    lora: &LoraSpec,
    examples: &[Example],
) -> Result<(), Unprepared> {
    let saved = |projector: &&SaveableModule| lora.modules_to_save.contains(&projector.name);
    let blind = examples.iter().all(|example| example.pictures.is_empty());
    let Some(projector) = base.projector().filter(saved).filter(|_| blind) else { return Ok(()) };
    let message = format!(
        "`modules_to_save` names {}, which learns from pictures, and no line of the training file \
         shows one within `max_seq_length`",
        projector.name
    );
    Err(never("invalid_modules_to_save", message, Some("lora.modules_to_save")))
}

/// Why a file gave no examples.
#[derive(Debug)]
pub(super) enum LoadError {
    Invalid(Box<Report>),
    Missing,
    /// Its bytes are not those that were uploaded.
    Damaged,
    Other(String),
}

/// Reads a file of training data for `base`, its bytes checked against their hash on the way.
pub(super) async fn load(
    catalog: &Catalog,
    tenant: &str,
    base: &ServedBase,
    spec: &JobSpec,
    id: &FileId,
) -> Result<Dataset, LoadError> {
    let file = catalog.file(tenant, id).await.map_err(|error| match error {
        CatalogError::Store(StoreError::NotFound { .. }) => LoadError::Missing,
        other => LoadError::Other(other.to_string()),
    })?;
    let path = catalog.artifacts().path(&file.sha256);
    let path = path.map_err(|error| LoadError::Other(error.to_string()))?;
    let limits = Limits {
        max_seq_length: spec.hyperparameters.max_seq_length(&base.info),
        vocab_size: base.info.vocab_size,
        max_findings: LISTED_ERRORS,
        ..Limits::of(base.pictures.is_some())
    };
    let (train_on, base) = (spec.hyperparameters.train_on(), base.clone());
    let work = move || {
        let open = || File::open(&path).map_err(|error| LoadError::Other(error.to_string()));
        let (file_on_disk, shelf) = (open()?, base.shelf(open()?));
        let seeing = base.seeing(shelf.as_ref());
        let hash = Arc::new(Mutex::new(Sha256::new()));
        let reader = BufReader::new(Hashing { inner: file_on_disk, hash: hash.clone() });
        let loaded = dataset::load(reader, &base.text, &limits, train_on, seeing);
        let hasher = std::mem::take(&mut *hash.lock().unwrap_or_else(PoisonError::into_inner));
        match loaded {
            Ok(_) if hex::encode(hasher.finalize()) != file.sha256 => Err(LoadError::Damaged),
            Ok(dataset) => Ok(dataset),
            Err(DatasetError::Invalid(report)) => Err(LoadError::Invalid(report)),
            Err(DatasetError::Unreadable(error)) => Err(LoadError::Other(error.to_string())),
        }
    };
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(LoadError::Other(error.to_string())))
}

/// Hashes what is read through it.
struct Hashing<R> {
    inner: R,
    hash: Arc<Mutex<Sha256>>,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.lock().unwrap_or_else(PoisonError::into_inner).update(&buffer[..count]);
        Ok(count)
    }
}

/// What a person should know of good files.
fn notes(data: &Data) -> Vec<NewEvent> {
    let mut notes = Vec::new();
    let files = [("training", Some(&data.training)), ("validation", data.validation.as_ref())];
    for (which, dataset) in files {
        let Some(Dataset { report, .. }) = dataset else { continue };
        notes.push(NewEvent::info(summary(which, report)));
        notes.extend(report.warnings.iter().take(TOLD).map(|finding| told(which, finding)));
        let more = report.warning_count.saturating_sub(TOLD as u64);
        if more > 0 {
            let message = format!("{more} more warnings about the {which} file");
            notes.push(NewEvent::message(EventLevel::Warn, message));
        }
    }
    notes.extend(overlap(data));
    notes
}

fn summary(which: &str, report: &Report) -> String {
    let format = report.format.map_or("?", |format| format.as_str());
    format!(
        "The {which} file has {} examples in the format {format}: {} tokens, {} of them trained",
        report.examples, report.tokens, report.trained_tokens
    )
}

fn told(which: &str, finding: &Finding) -> NewEvent {
    NewEvent::message(EventLevel::Warn, format!("In the {which} file: {finding}"))
}

/// A validation that repeats the training tells nothing.
fn overlap(data: &Data) -> Option<NewEvent> {
    let validation: &[Example] = &data.validation.as_ref()?.examples;
    let shared = dataset::overlap(&data.training.examples, validation);
    let message = format!(
        "{shared} of {} validation examples are also in the training file; their loss says little",
        validation.len()
    );
    (shared > 0).then(|| NewEvent::message(EventLevel::Warn, message))
}

/// Ends the job; its events name every bad line.
fn bad_lines(report: &Report, param: &'static str) -> Unprepared {
    let mut events: Vec<NewEvent> = report
        .errors
        .iter()
        .take(TOLD)
        .map(|finding| NewEvent::message(EventLevel::Error, format!("{param}: {finding}")))
        .collect();
    events.push(NewEvent {
        level: EventLevel::Error,
        kind: EventKind::Message,
        message: format!("{param}: {} errors in all; `data.errors` lists them", report.error_count),
        data: Some(json!({"error_count": report.error_count, "errors": report.errors})),
    });
    let code = format!("invalid_{param}");
    Unprepared::Never { error: error(&code, report.summary(), Some(param)), events }
}

fn never(code: &str, message: String, param: Option<&str>) -> Unprepared {
    Unprepared::Never { error: error(code, message, param), events: Vec::new() }
}

fn error(code: &str, message: String, param: Option<&str>) -> JobError {
    JobError { code: code.to_owned(), message, param: param.map(str::to_owned) }
}
