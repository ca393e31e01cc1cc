//! `tandem files`: what was uploaded to train on, and what jobs left behind.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use reqwest::Method;
use reqwest::multipart::Form;
use serde::Deserialize;
use serde_json::Value;

use super::http::file_part;
use super::table::Table;
use super::units::{ago, size};
use super::{Client, ClientError, ClientResult, Page, ServerOptions, answer, view};

const FILES: [&str; 2] = ["v1", "files"];

/// What `tandem files` takes.
#[derive(Args, Clone, Debug)]
pub struct FilesOptions {
    #[command(subcommand)]
    command: FilesCommand,
    #[command(flatten)]
    server: ServerOptions,
}

#[derive(Clone, Debug, Subcommand)]
enum FilesCommand {
    /// Send a file to the server, which checks it line by line.
    Upload {
        /// File to send; training data ends in .jsonl.
        path: PathBuf,
        /// What it is for.
        #[arg(long, default_value = "fine-tune")]
        purpose: String,
    },
    /// List files, newest first.
    List {
        /// How many, at most 10000.
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: usize,
    },
    /// Show what is known of a file.
    Show { id: String },
    /// Delete a file; a job that still needs it will fail.
    Delete { id: String },
    /// Write the bytes of a file to standard output, or to a file.
    Content {
        id: String,
        /// File to write to.
        #[arg(long, short, value_name = "PATH")]
        output: Option<PathBuf>,
    },
}

#[derive(Debug, Deserialize)]
struct File {
    id: String,
    bytes: u64,
    created_at: i64,
    filename: String,
    purpose: String,
    status: String,
}

/// Does what was asked for.
///
/// # Errors
/// [`ClientError`].
pub async fn run(options: FilesOptions) -> ClientResult<()> {
    let (client, json) = (options.server.client()?, options.server.json);
    match options.command {
        FilesCommand::Upload { path, purpose } => {
            let value = upload(&client, &path, &purpose).await?;
            answer(json, &value, |file: File| {
                format!("{} holds {} ({})\n", file.id, file.filename, size(file.bytes))
            })
        }
        FilesCommand::List { limit } => {
            let value = client.get(&FILES, &[("limit", &limit.to_string())]).await?;
            answer(json, &value, table)
        }
        FilesCommand::Show { id } => {
            let value = client.get(&[&FILES[..], &[&id]].concat(), &[]).await?;
            answer(json, &value, card)
        }
        FilesCommand::Delete { id } => {
            let value = client.delete(&[&FILES[..], &[&id]].concat()).await?;
            answer(json, &value, |_: Value| format!("{id} is deleted\n"))
        }
        FilesCommand::Content { id, output } => content(&client, &id, output.as_deref()).await,
    }
}

/// Sends a file, read while it is sent, and gives its object.
///
/// # Errors
/// [`ClientError::BadLines`] with every bad line; [`ClientError::Read`].
pub async fn upload(client: &Client, path: &Path, purpose: &str) -> ClientResult<Value> {
    let form = Form::new().text("purpose", purpose.to_owned());
    client.post_form(&FILES, form.part("file", file_part(path).await?)).await
}

/// Files of this machine that were sent for one purpose.
#[derive(Default)]
pub(super) struct Sent(Vec<String>);

impl Sent {
    /// The id of a file on the server; a file of this machine is sent there first.
    pub async fn file_id(&mut self, client: &Client, file: &str) -> ClientResult<String> {
        if file.starts_with("file-") && !Path::new(file).exists() {
            return Ok(file.to_owned());
        }
        let File { id, .. } = view(&upload(client, Path::new(file), "fine-tune").await?)?;
        self.0.push(id.clone());
        Ok(id)
    }

    /// Deletes them again, as far as the server lets us: the command has its own outcome to tell.
    pub async fn take_back(self, client: &Client) {
        for id in self.0 {
            let _ = client.delete(&[&FILES[..], &[&id]].concat()).await;
        }
    }
}

fn table(page: Page<File>) -> String {
    if page.data.is_empty() {
        return "no files yet; `tandem files upload FILE.jsonl` sends one\n".to_owned();
    }
    let mut table = Table::new(&["ID", "NAME", "SIZE", "PURPOSE", "CREATED"]);
    for File { id, filename, bytes, purpose, created_at, .. } in page.data {
        table.row([id, filename, size(bytes), purpose, ago(created_at)]);
    }
    let more = if page.has_more { "there are more; raise --limit\n" } else { "" };
    format!("{table}{more}")
}

fn card(file: File) -> String {
    let mut table = Table::pairs();
    table.pair("name", Some(file.filename));
    table.pair("size", Some(size(file.bytes)));
    table.pair("purpose", Some(file.purpose));
    table.pair("status", Some(file.status));
    table.pair("created", Some(ago(file.created_at)));
    format!("{}\n{table}", file.id)
}

async fn content(client: &Client, id: &str, output: Option<&Path>) -> ClientResult<()> {
    let request = client.request(Method::GET, &[&FILES[..], &[id, "content"]].concat(), &[]);
    let mut response = client.open(request).await?;
    let mut out: Box<dyn Write> = match output {
        None => Box::new(io::stdout()),
        Some(path) => {
            Box::new(std::fs::File::create(path).map_err(|error| unwritten(path, error))?)
        }
    };
    let unwritten = |error| unwritten(output.unwrap_or(Path::new("standard output")), error);
    while let Some(bytes) = response.chunk().await.map_err(|error| client.broken(&error))? {
        out.write_all(&bytes).map_err(unwritten)?;
    }
    out.flush().map_err(unwritten)
}

fn unwritten(path: &Path, source: io::Error) -> ClientError {
    ClientError::Write { path: path.to_owned(), source }
}
