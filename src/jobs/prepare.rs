//! What the runner leaves to others: the meaning of a job's spec, its files and its adapter.

use std::sync::Arc;

use futures::future::BoxFuture;
use serde_json::Value;

use crate::domain::{AdapterWeights, Example, Hyperparameters, LoraSpec};
use crate::store::{Job, JobError, NewEvent};

/// Turns a job's row into a run, and the run's adapter into files.
pub trait Prepare: Send + Sync + 'static {
    /// Reads and checks the job's files, and settles everything its spec left open. The same job
    /// always gives the same run: after a crash it goes on as if nothing had happened.
    fn prepare<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Prepared, Unprepared>>;

    /// The files of an adapter folder, for the run's end (`step` is `None`) or for a checkpoint.
    fn adapter_files(
        &self,
        job: &Job,
        run: &Prepared,
        adapter: &AdapterWeights,
        step: Option<usize>,
    ) -> Vec<(String, Vec<u8>)>;
}

/// A job that can be trained.
#[derive(Clone, Debug)]
pub struct Prepared {
    pub lora: LoraSpec,
    pub hyperparameters: Hyperparameters,
    pub seed: u64,
    pub examples: Arc<Vec<Example>>,
    pub validation: Arc<Vec<Example>>,
    pub init_adapter: Option<Arc<AdapterWeights>>,
    /// What a token costs, a multiply-add counting as two; `None` where that is not known.
    pub operations_per_token: Option<f64>,
    /// The job's spec with nothing left open, for the row.
    pub spec: Value,
    /// What the finished model is called: `ft:<base>:<org>:<suffix>:<id>`.
    pub model_name: String,
    /// What a person should know of the files.
    pub notes: Vec<NewEvent>,
}

/// Why a job cannot be trained.
#[derive(Clone, Debug)]
pub enum Unprepared {
    /// Neither now nor later: `error` ends the job, `events` tell the details.
    Never { error: JobError, events: Vec<NewEvent> },
    /// Something that may pass: the job is tried again.
    NotNow(JobError),
}
