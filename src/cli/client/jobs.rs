//! `tandem jobs`: submit fine-tunes, look at them, follow and steer them.

use clap::{Args, Subcommand};
use serde_json::Value;

use super::files::Sent;
use super::job::{self, Checkpoint, Job};
use super::settings::JobSettings;
use super::watch::watch;
use super::{Client, ClientError, ClientResult, Page, ServerOptions, answer, say, view};

const JOBS: [&str; 3] = ["v1", "fine_tuning", "jobs"];

/// What `tandem jobs` takes.
#[derive(Args, Clone, Debug)]
pub struct JobsOptions {
    #[command(subcommand)]
    command: JobsCommand,
    #[command(flatten)]
    server: ServerOptions,
}

#[derive(Clone, Debug, Subcommand)]
enum JobsCommand {
    /// Queue a fine-tune on a file.
    Create(Box<CreateOptions>),
    /// List jobs, newest first.
    List {
        /// How many, at most 1000.
        #[arg(long, value_name = "N", default_value_t = 20)]
        limit: usize,
    },
    /// Show a job, its settings and its checkpoints.
    Show { id: String },
    /// Follow a job with a live bar until it ends; the exit code tells how.
    Watch { id: String },
    /// End a job for good; its checkpoints stay.
    Cancel { id: String },
    /// Stop a job after its step, to be resumed.
    Pause { id: String },
    /// Queue a paused job again, from its last checkpoint.
    Resume { id: String },
}

#[derive(Args, Clone, Debug)]
struct CreateOptions {
    /// JSONL file to train on, or the id of one that was uploaded.
    #[arg(value_name = "FILE")]
    data: String,
    /// Base model, or an adapter to go on from [default: the server's first base model].
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// JSONL file to validate on, or the id of one that was uploaded.
    #[arg(long, value_name = "FILE")]
    validation: Option<String>,
    #[command(flatten)]
    settings: JobSettings,
    /// Follow the job at once.
    #[arg(long)]
    watch: bool,
}

/// Does what was asked for.
///
/// # Errors
/// [`ClientError`]; for `watch` also a bad outcome of the job.
pub async fn run(options: JobsOptions) -> ClientResult<()> {
    let (client, json) = (options.server.client()?, options.server.json);
    match options.command {
        JobsCommand::Create(options) => create(&client, &options, json).await,
        JobsCommand::List { limit } => list(&client, limit, json).await,
        JobsCommand::Show { id } => show(&client, &id, json).await,
        JobsCommand::Watch { id } => watch_until_stopped(&client, &id, json).await,
        JobsCommand::Cancel { id } => steer(&client, &id, "cancel", json).await,
        JobsCommand::Pause { id } => steer(&client, &id, "pause", json).await,
        JobsCommand::Resume { id } => steer(&client, &id, "resume", json).await,
    }
}

/// Queues a job on local or uploaded files and gives its object. A file that was sent for a job
/// that cannot be is taken away again.
///
/// # Errors
/// [`ClientError::BadLines`] with every bad line; as all requests.
pub async fn submit(
    client: &Client,
    model: Option<&str>,
    data: &str,
    validation: Option<&str>,
    settings: &JobSettings,
) -> ClientResult<Value> {
    settings.body("", "", None)?; // what cannot be asked for is not worth an upload
    let model = match model {
        Some(model) => model.to_owned(),
        None => client.first_model().await?,
    };
    let mut sent = Sent::default();
    let queued = async {
        let training = sent.file_id(client, data).await?;
        let validation = match validation {
            Some(file) => Some(sent.file_id(client, file).await?),
            None => None,
        };
        let body = settings.body(&model, &training, validation.as_deref())?;
        client.post(&JOBS, Some(&body)).await
    };
    let queued = queued.await;
    if queued.is_err() {
        sent.take_back(client).await;
    }
    queued
}

async fn create(client: &Client, options: &CreateOptions, json: bool) -> ClientResult<()> {
    let CreateOptions { data, model, validation, settings, watch } = options;
    let value = submit(client, model.as_deref(), data, validation.as_deref(), settings).await?;
    let Job { id, model, .. } = view(&value)?;
    match (json, watch) {
        (true, false) => say(format!("{value:#}\n")),
        (true, true) => watch_until_stopped(client, &id, json).await,
        (false, true) => {
            say(format!("{id} trains on `{model}`\n"))?;
            watch_until_stopped(client, &id, json).await
        }
        (false, false) => say(format!(
            "{id} is queued to train on `{model}`; follow it with: tandem jobs watch {id}\n"
        )),
    }
}

/// Watching can be stopped and the job goes on.
async fn watch_until_stopped(client: &Client, id: &str, json: bool) -> ClientResult<()> {
    let job = tokio::select! {
        watched = watch(client, id, json) => watched?,
        Ok(()) = tokio::signal::ctrl_c() => return Err(ClientError::Outcome(format!(
            "stopped watching; the job goes on: `tandem jobs watch {id}` follows it, \
             `tandem jobs cancel {id}` ends it"
        ))),
    };
    match (json, job.fine_tuned_model) {
        (false, Some(name)) => say(format!("ask the result with: tandem chat --model {name}\n")),
        _ => Ok(()),
    }
}

async fn list(client: &Client, limit: usize, json: bool) -> ClientResult<()> {
    let value = client.get(&JOBS, &[("limit", &limit.to_string())]).await?;
    answer(json, &value, |page: Page<Job>| match (page.data.is_empty(), page.has_more) {
        (true, _) => "no jobs yet; `tandem jobs create FILE.jsonl` makes one\n".to_owned(),
        (false, false) => job::table(&page.data).to_string(),
        (false, true) => format!("{}there are more; raise --limit\n", job::table(&page.data)),
    })
}

async fn show(client: &Client, id: &str, json: bool) -> ClientResult<()> {
    let value = client.get(&of(id, &[]), &[]).await?;
    let checkpoints = client.get(&of(id, &["checkpoints"]), &[("limit", "1000")]).await?;
    let Page::<Checkpoint> { data, .. } = view(&checkpoints)?;
    answer(json, &value, |job: Job| job.card(&data))
}

async fn steer(client: &Client, id: &str, action: &str, json: bool) -> ClientResult<()> {
    let value = client.post(&of(id, &[action]), None).await?;
    answer(json, &value, |job: Job| format!("{} is {}\n", job.id, job.status))
}

/// The path of a job, or of what lies below it.
pub(super) fn of<'a>(id: &'a str, below: &[&'a str]) -> Vec<&'a str> {
    [&JOBS, &[id][..], below].concat()
}
