//! What a job on a file would do, found out without starting it.

use std::fmt::Write;
use std::io::{self, IsTerminal};

use serde::Deserialize;
use serde_json::Value;

use super::error::{Finding, listed};
use super::files::Sent;
use super::job::fields;
use super::settings::JobSettings;
use super::table::Table;
use super::units::{number, size, span};
use super::{Client, ClientError, ClientResult, say, view};

const PREFLIGHT: [&str; 3] = ["v1", "fine_tuning", "preflight"];
const BAR_WIDTH: u64 = 30;
const SHOWN_SAMPLES: usize = 2;

#[derive(Deserialize)]
struct Preflight {
    ok: bool,
    base_model: String,
    training: Report,
    hyperparameters: Option<Value>,
    total_steps: Option<u64>,
    trainable_parameters: Option<u64>,
    forecast: Option<Forecast>,
}

#[derive(Deserialize)]
struct Forecast {
    peak_memory_bytes: Option<u64>,
    memory_bytes: u64,
    available_bytes: Option<u64>,
    largest_micro_batch: Option<u64>,
    seconds: f64,
}

#[derive(Deserialize)]
struct Report {
    format: Option<String>,
    lines: u64,
    examples: u64,
    tokens: u64,
    trained_tokens: u64,
    longest_tokens: u64,
    histogram: Vec<Bucket>,
    error_count: u64,
    errors: Vec<Finding>,
    warning_count: u64,
    warnings: Vec<Finding>,
    samples: Vec<Sample>,
}

#[derive(Deserialize)]
struct Bucket {
    up_to: u64,
    examples: u64,
}

#[derive(Deserialize)]
struct Sample {
    line: u64,
    pieces: Vec<Piece>,
}

#[derive(Deserialize)]
struct Piece {
    text: String,
    trained: bool,
}

/// Has the server check a file of this machine, or one it has, and prints what it found. A file
/// that was sent for this only is taken away again.
///
/// # Errors
/// [`ClientError::BadLines`] or [`ClientError::Outcome`] if a job would not start.
pub async fn check(
    client: &Client,
    model: Option<&str>,
    data: &str,
    settings: &JobSettings,
    json: bool,
) -> ClientResult<()> {
    settings.body("", "", None)?;
    let model = match model {
        Some(model) => model.to_owned(),
        None => client.first_model().await?,
    };
    let mut sent = Sent::default();
    let id = sent.file_id(client, data).await?;
    let body = settings.body(&model, &id, None)?;
    let checked = client.post(&PREFLIGHT, Some(&body)).await;
    sent.take_back(client).await;
    let value = checked?;
    let preflight: Preflight = view(&value)?;
    say(if json { format!("{value:#}\n") } else { shown(data, &preflight) })?;
    match preflight.ok {
        true => Ok(()),
        false => Err(ClientError::Outcome(format!("a job on {data} would fail"))),
    }
}

fn shown(data: &str, preflight: &Preflight) -> String {
    let report = &preflight.training;
    let mut table = Table::pairs();
    table.pair("format", Some(report.format.as_deref().unwrap_or("unknown")));
    table.pair("lines", Some(number(report.lines)));
    table.pair("examples", Some(number(report.examples)));
    let longest = number(report.longest_tokens);
    table.pair(
        "tokens",
        Some(format!(
            "{}, {} of them trained; the longest example has {longest}",
            number(report.tokens),
            number(report.trained_tokens)
        )),
    );
    table.pair("steps", preflight.total_steps.map(number));
    table.pair("trained weights", preflight.trainable_parameters.map(number));
    if let Some(forecast) = &preflight.forecast {
        table.pair("memory", Some(memory(forecast)));
        table.pair("largest micro-batch", forecast.largest_micro_batch.map(number));
        table.pair("time", Some(format!("about {}", span(forecast.seconds.ceil() as u64))));
    }
    table.pair("hyperparameters", preflight.hyperparameters.as_ref().map(fields));
    let verdict = if preflight.ok { "is sound" } else { "cannot be trained on" };
    let mut text = format!("{data} {verdict}, for the model `{}`\n{table}", preflight.base_model);
    lengths(&mut text, &report.histogram);
    samples(&mut text, &report.samples);
    for (what, findings, count) in [
        ("warning", &report.warnings, report.warning_count),
        ("error", &report.errors, report.error_count),
    ] {
        if count > 0 {
            // Writing to a string cannot fail.
            let _ = write!(text, "\n{}\n", listed(what, findings, count));
        }
    }
    text
}

fn memory(forecast: &Forecast) -> String {
    let mut told = size(forecast.memory_bytes);
    if let Some(bytes) = forecast.available_bytes {
        let relation = if forecast.memory_bytes > bytes { ", more than the" } else { " of" };
        told.push_str(&format!("{relation} {} available", size(bytes)));
    }
    if let Some(bytes) = forecast.peak_memory_bytes {
        told.push_str(&format!("; {} in all at its peak", size(bytes)));
    }
    told
}

fn lengths(text: &mut String, histogram: &[Bucket]) {
    let most = histogram.iter().map(|bucket| bucket.examples).max().unwrap_or(0);
    if most > 0 {
        text.push_str("\nLengths in tokens, and how many examples have them\n");
    }
    for Bucket { up_to, examples } in histogram {
        let bar = "█".repeat((examples * BAR_WIDTH).div_ceil(most.max(1)) as usize);
        let _ = writeln!(text, "  up to {up_to:>6}  {bar} {examples}");
    }
}

/// What the model sees of the first examples; marked is what it learns to say.
fn samples(text: &mut String, samples: &[Sample]) {
    let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let (on, off) = if colour { ("\x1b[32m", "\x1b[0m") } else { ("⟦", "⟧") };
    if !samples.is_empty() {
        let _ = write!(text, "\nThe first examples; what is learnt is {on}marked{off}\n");
    }
    for Sample { line, pieces } in samples.iter().take(SHOWN_SAMPLES) {
        let _ = write!(text, "  line {line}: ");
        for Piece { text: piece, trained } in pieces {
            let piece = piece.escape_debug().to_string().replace("\\'", "'").replace("\\\"", "\"");
            match trained {
                true => text.push_str(&format!("{on}{piece}{off}")),
                false => text.push_str(&piece),
            }
        }
        text.push('\n');
    }
}
