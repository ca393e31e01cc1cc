//! `tandem train`: one job without a server; or the demo model, from nothing.

use std::path::{Path, PathBuf};

use clap::Args;

use super::client::settings::JobSettings;
use super::client::{self, ClientError};
use super::{Failure, local, scratch};

/// What `tandem train` takes.
#[derive(Args, Clone, Debug)]
pub struct TrainOptions {
    /// JSONL file to train on.
    #[arg(value_name = "DATA", required_unless_present = "from_scratch")]
    data: Option<String>,
    /// Base model: `[NAME=]SOURCE` as for `tandem serve` [default: the demo model].
    #[arg(long, value_name = "[NAME=]SOURCE")]
    model: Option<String>,
    /// JSONL file to validate on.
    #[arg(long, value_name = "FILE")]
    validation: Option<String>,
    #[command(flatten)]
    settings: JobSettings,
    /// Folder to write the result to, which must not hold anything yet [default: `adapter`; with
    /// `--from-scratch` `demo-model`].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Compute threads [default: what affinity and the cgroup quota allow].
    #[arg(long, env = "TANDEM_THREADS", value_name = "N")]
    threads: Option<usize>,
    /// Train the embedded demo model anew: corpus, tokenizer and weights follow from the seed.
    #[arg(
        long,
        conflicts_with_all = [
            "data", "model", "validation", "recipe", "suffix", "epochs", "batch_size", "learning_rate",
            "max_steps", "rank", "set",
        ]
    )]
    from_scratch: bool,
    /// With `--from-scratch`: optimiser steps of about 2,048 tokens.
    #[arg(long, value_name = "N", requires = "from_scratch")]
    steps: Option<usize>,
}

/// Trains, shows how far it is, and says what came of it.
///
/// # Errors
/// A sentence and an exit code: 1 if the run failed, 2 or 78 for a model that cannot be used.
pub(super) fn run(options: TrainOptions) -> Result<(), Failure> {
    let TrainOptions { data, settings, out, threads, steps, .. } = &options;
    match data {
        None => scratch::run(
            out.clone().unwrap_or_else(|| "demo-model".into()),
            settings.seed,
            *steps,
            *threads,
        ),
        Some(data) => local::block_on(train(&options, data)),
    }
}

async fn train(options: &TrainOptions, data: &str) -> Result<(), Failure> {
    let TrainOptions { model, validation, settings, threads, .. } = options;
    let out = options.out.clone().unwrap_or_else(|| "adapter".into());
    refuse_occupied(&out)?;
    local::with_server(model.as_deref(), *threads, async |app, client| {
        let validation = validation.as_deref();
        let job = client::jobs::submit(client, None, data, validation, settings).await?;
        let id = job["id"].as_str().unwrap_or_default();
        let job = client::watch::watch(client, id, false).await?;
        let name = job.fine_tuned_model.unwrap_or_default();
        let exported = app.export_adapter(&name, &out).await;
        exported.map_err(|error| Failure::new(error.exit_code(), error))
    })
    .await?;
    println!("{} holds the adapter; serve it with: {}", out.display(), serve(options, &out));
    Ok(())
}

/// The command that serves the result beside its base.
fn serve(options: &TrainOptions, out: &Path) -> String {
    let base = options.model.as_ref().map_or(String::new(), |model| format!(" --model {model}"));
    format!("tandem serve{base} --adapter NAME={}", out.display())
}

fn refuse_occupied(out: &Path) -> Result<(), Failure> {
    let mut entries = match std::fs::read_dir(out) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(ClientError::Read { path: out.to_owned(), source }.into()),
    };
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(Failure::new(
            2,
            format!("`--out {}` is not empty; name another folder", out.display()),
        )),
    }
}
