//! `tandem check`: what a job on a file would do; with or without a running server.

use clap::Args;

use super::client::settings::JobSettings;
use super::client::{Client, preflight};
use super::{Failure, local};

/// What `tandem check` takes.
#[derive(Args, Clone, Debug)]
pub struct CheckOptions {
    /// JSONL file to check; with `--url` also the id of one that was uploaded.
    #[arg(value_name = "DATA")]
    data: String,
    /// Model to train: `[NAME=]SOURCE` as for `tandem serve`; with `--url` a name on the server
    /// [default: the demo model; with `--url` the server's first base model].
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    #[command(flatten)]
    settings: JobSettings,
    /// Ask the server at this address instead of loading the model here.
    #[arg(long, env = "TANDEM_URL", value_name = "URL")]
    url: Option<String>,
    /// Key that the server asks for.
    #[arg(long, env = "TANDEM_API_KEY", value_name = "KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Print the report as JSON, for scripts.
    #[arg(long)]
    json: bool,
}

/// Checks the file and prints what was found.
///
/// # Errors
/// Exit code 1 if a job would fail, with every bad line.
pub(super) fn run(options: CheckOptions) -> Result<(), Failure> {
    let CheckOptions { data, model, settings, url, api_key, json } = options;
    local::block_on(async {
        let Some(url) = url else {
            return local::with_server(model.as_deref(), None, async |_, client| {
                Ok(preflight::check(client, None, &data, &settings, json).await?)
            })
            .await;
        };
        let client = Client::new(&url, api_key.as_deref())?;
        Ok(preflight::check(&client, model.as_deref(), &data, &settings, json).await?)
    })
}
