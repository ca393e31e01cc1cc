//! A job as the API tells of it, and how people see it.

use serde::Deserialize;
use serde_json::Value;

use super::table::Table;
use super::units::{ago, now, number, span};

/// What the command line shows of a job. Times are in Unix seconds.
#[derive(Debug, Deserialize)]
pub struct Job {
    pub id: String,
    pub status: String,
    pub model: String,
    pub fine_tuned_model: Option<String>,
    pub created_at: i64,
    pub started_at: Option<i64>,
    pub finished_at: Option<i64>,
    pub estimated_finish: Option<i64>,
    pub step: u64,
    pub total_steps: Option<u64>,
    pub trained_tokens: Option<u64>,
    pub training_file: String,
    pub validation_file: Option<String>,
    pub seed: u64,
    pub hyperparameters: Value,
    pub lora: Value,
    pub error: Option<JobError>,
}

/// Why a job failed.
#[derive(Debug, Deserialize)]
pub struct JobError {
    pub message: String,
}

/// A model as it was after a step.
#[derive(Debug, Deserialize)]
pub struct Checkpoint {
    pub fine_tuned_model_checkpoint: String,
    pub step_number: u64,
    pub metrics: Value,
}

impl Job {
    /// Steps done, of how many.
    fn steps(&self) -> String {
        match self.total_steps {
            Some(total) => format!("{}/{total}", self.step),
            None => "-".to_owned(),
        }
    }

    /// How long it has been at work, waits between attempts included.
    pub fn worked(&self) -> Option<String> {
        let started = self.started_at?;
        let until = self.finished_at.unwrap_or_else(now);
        Some(span(u64::try_from(until - started).unwrap_or(0)))
    }

    /// Everything, one name and value per line.
    pub fn card(&self, checkpoints: &[Checkpoint]) -> String {
        let mut table = Table::pairs();
        table.pair("status", Some(&self.status));
        table.pair("error", self.error.as_ref().map(|error| &error.message));
        table.pair("model", Some(&self.model));
        table.pair("result", self.fine_tuned_model.as_ref());
        table.pair("steps", Some(self.steps()));
        table.pair("trained tokens", self.trained_tokens.map(number));
        table.pair("created", Some(ago(self.created_at)));
        table.pair("at work for", self.worked());
        let left = self.estimated_finish.map(|time| u64::try_from(time - now()).unwrap_or(0));
        table.pair("ready in about", left.map(span));
        table.pair("training file", Some(&self.training_file));
        table.pair("validation file", self.validation_file.as_ref());
        table.pair("seed", Some(self.seed.to_string()));
        table.pair("hyperparameters", Some(fields(&self.hyperparameters)));
        table.pair("lora", Some(fields(&self.lora)));
        for checkpoint in checkpoints {
            let loss = checkpoint.metrics["train_loss"].as_f64();
            let loss = loss.map_or(String::new(), |loss| format!(", loss {loss:.3}"));
            let Checkpoint { fine_tuned_model_checkpoint: name, step_number, .. } = checkpoint;
            table.pair("checkpoint", Some(format!("{name} (step {step_number}{loss})")));
        }
        format!("{}\n{table}", self.id)
    }
}

/// The fields of an object on one line; those without a value are left out.
pub(super) fn fields(object: &Value) -> String {
    let Value::Object(fields) = object else { return object.to_string() };
    let told = fields.iter().filter(|(_, value)| {
        !value.is_null() && value.as_object().is_none_or(|inner| !inner.is_empty())
    });
    let told = told.map(|(name, value)| match value {
        Value::String(text) => format!("{name}={text}"),
        value => format!("{name}={value}"),
    });
    told.collect::<Vec<_>>().join(", ")
}

/// Jobs, one per line.
pub fn table(jobs: &[Job]) -> Table {
    let mut table = Table::new(&["ID", "STATUS", "STEPS", "CREATED", "MODEL", "RESULT"]);
    for job in jobs {
        table.row([
            job.id.clone(),
            job.status.clone(),
            job.steps(),
            ago(job.created_at),
            job.model.clone(),
            job.fine_tuned_model.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    table
}
