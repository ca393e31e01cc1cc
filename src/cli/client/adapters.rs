//! `tandem adapters`: what requests can name beside the base models.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use reqwest::multipart::Form;
use serde::Deserialize;
use serde_json::Value;

use super::http::file_part;
use super::table::Table;
use super::units::{ago, size};
use super::{Client, ClientResult, Page, ServerOptions, answer};

const ADAPTERS: [&str; 2] = ["v1", "adapters"];
/// The files of a PEFT folder that an adapter consists of; the last one only ours have.
const NEEDED: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];
const PROVENANCE: &str = "tandem.json";

/// What `tandem adapters` takes.
#[derive(Args, Clone, Debug)]
pub struct AdaptersOptions {
    #[command(subcommand)]
    command: AdaptersCommand,
    #[command(flatten)]
    server: ServerOptions,
}

#[derive(Clone, Debug, Subcommand)]
enum AdaptersCommand {
    /// List adapters, newest first, checkpoints included.
    List {
        /// How many, at most 1000.
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: usize,
    },
    /// Show where an adapter came from.
    Show { name: String },
    /// Send a PEFT LoRA folder to the server, to be named as `model` at once.
    Add {
        /// What requests will call it.
        name: String,
        /// Folder with `adapter_config.json` and `adapter_model.safetensors`.
        folder: PathBuf,
        /// The base model it belongs to [default: the one it fits].
        #[arg(long, value_name = "NAME")]
        base_model: Option<String>,
        /// Take the place of an adapter of that name.
        #[arg(long)]
        replace: bool,
    },
    /// Take an adapter's name away; requests that use it go on.
    Delete { name: String },
}

#[derive(Debug, Deserialize)]
struct Adapter {
    name: String,
    generation: u64,
    base_model: String,
    sha256: String,
    r: u64,
    bytes: u64,
    source: String,
    fine_tuning_job_id: Option<String>,
    step: Option<u64>,
    created_at: i64,
    #[serde(default)]
    notes: Vec<String>,
}

/// Does what was asked for.
///
/// # Errors
/// [`super::ClientError`].
pub async fn run(options: AdaptersOptions) -> ClientResult<()> {
    let (client, json) = (options.server.client()?, options.server.json);
    match options.command {
        AdaptersCommand::List { limit } => {
            let value = client.get(&ADAPTERS, &[("limit", &limit.to_string())]).await?;
            answer(json, &value, table)
        }
        AdaptersCommand::Show { name } => {
            let value = client.get(&[&ADAPTERS[..], &[&name]].concat(), &[]).await?;
            answer(json, &value, card)
        }
        AdaptersCommand::Add { name, folder, base_model, replace } => {
            let value = add(&client, name, &folder, base_model, replace).await?;
            answer(json, &value, added)
        }
        AdaptersCommand::Delete { name } => {
            let value = client.delete(&[&ADAPTERS[..], &[&name]].concat()).await?;
            answer(json, &value, |_: Value| format!("{name} is deleted\n"))
        }
    }
}

async fn add(
    client: &Client,
    name: String,
    folder: &Path,
    base: Option<String>,
    replace: bool,
) -> ClientResult<Value> {
    let mut form = Form::new().text("name", name).text("replace", replace.to_string());
    if let Some(base) = base {
        form = form.text("base_model", base);
    }
    for file in NEEDED {
        form = form.part(file, file_part(&folder.join(file)).await?);
    }
    let provenance = folder.join(PROVENANCE);
    if provenance.is_file() {
        form = form.part(PROVENANCE, file_part(&provenance).await?);
    }
    client.post_form(&ADAPTERS, form).await
}

fn added(adapter: Adapter) -> String {
    let Adapter { name, base_model, r, notes, .. } = adapter;
    let notes: String = notes.iter().map(|note| format!("  note: {note}\n")).collect();
    format!("{name} (rank {r}, on `{base_model}`) can be named as `model`\n{notes}")
}

fn table(page: Page<Adapter>) -> String {
    if page.data.is_empty() {
        return "no adapters yet; jobs make them, and `tandem adapters add` sends one\n".to_owned();
    }
    let mut table = Table::new(&["NAME", "BASE", "RANK", "SIZE", "SOURCE", "CREATED"]);
    for Adapter { name, base_model, r, bytes, source, created_at, .. } in page.data {
        table.row([name, base_model, r.to_string(), size(bytes), source, ago(created_at)]);
    }
    let more = if page.has_more { "there are more; raise --limit\n" } else { "" };
    format!("{table}{more}")
}

fn card(adapter: Adapter) -> String {
    let mut table = Table::pairs();
    table.pair("base model", Some(adapter.base_model));
    table.pair("rank", Some(adapter.r.to_string()));
    table.pair("size", Some(size(adapter.bytes)));
    table.pair("source", Some(adapter.source));
    table.pair("job", adapter.fine_tuning_job_id);
    table.pair("step", adapter.step.map(|step| step.to_string()));
    table.pair("generation", Some(adapter.generation.to_string()));
    table.pair("created", Some(ago(adapter.created_at)));
    table.pair("sha256", Some(adapter.sha256));
    format!("{}\n{table}", adapter.name)
}
