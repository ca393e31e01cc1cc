//! The clients of a running server. They speak its HTTP API and know nothing else of it.
//!
//! `http` sends requests and turns refusals into sentences, `sse` reads streams, `table` and `units`
//! say things for people; every other file is one command.

use clap::Args;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::future::Future;
use std::io::{self, Write};

use super::Failure;

pub mod adapters;
pub mod chat;
pub mod complete;
mod error;
pub mod files;
mod generate;
mod http;
mod job;
pub mod jobs;
pub mod preflight;
mod progress;
pub mod settings;
mod sse;
mod table;
mod units;
pub mod watch;

pub use error::{ClientError, ClientResult};
pub use http::Client;

/// Where the server is, and how to answer.
#[derive(Args, Clone, Debug)]
pub struct ServerOptions {
    /// Address of the server.
    #[arg(
        long,
        global = true,
        env = "TANDEM_URL",
        value_name = "URL",
        default_value = "http://127.0.0.1:8080"
    )]
    pub url: String,
    /// Key that the server asks for.
    #[arg(long, global = true, env = "TANDEM_API_KEY", value_name = "KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Print the server's answer as JSON, for scripts.
    #[arg(long, global = true)]
    pub json: bool,
}

impl ServerOptions {
    /// The client these options ask for.
    ///
    /// # Errors
    /// If the address cannot be one.
    pub fn client(&self) -> ClientResult<Client> {
        Client::new(&self.url, self.api_key.as_deref())
    }
}

/// Runs a command's future to its end on this thread.
///
/// # Errors
/// Whatever the command failed with, as a sentence and an exit code.
pub fn block_on(work: impl Future<Output = ClientResult<()>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(1, format!("cannot start the runtime: {error}")))?;
    runtime.block_on(work).map_err(Failure::from)
}

/// Writes a piece of output at once.
fn say(text: impl AsRef<str>) -> ClientResult<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_ref().as_bytes()).and_then(|()| out.flush()).map_err(ClientError::Output)
}

/// Writes an answer as the server gave it, or what people read of it.
fn answer<T: DeserializeOwned>(
    json: bool,
    value: &Value,
    shown: impl FnOnce(T) -> String,
) -> ClientResult<()> {
    match json {
        true => say(format!("{value:#}\n")),
        false => say(shown(view(value)?)),
    }
}

/// The parts of an answer that a command needs.
fn view<T: DeserializeOwned>(value: &Value) -> ClientResult<T> {
    T::deserialize(value).map_err(|error| ClientError::Unreadable(error.to_string()))
}

/// One page of a list.
#[derive(serde::Deserialize)]
struct Page<T> {
    data: Vec<T>,
    #[serde(default)]
    has_more: bool,
}
