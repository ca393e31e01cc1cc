//! `tandem jobs watch`: a job's events as they come, with a live bar, until it ends.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use tokio::time::{Instant, sleep};

use super::job::Job;
use super::jobs::of;
use super::progress::{Event, Progress};
use super::sse::{SseEvent, SseStream};
use super::{Client, ClientError, ClientResult, say, view};

/// How long a server that was there may be away, as for a restart.
const PATIENCE: Duration = Duration::from_secs(120);
const RETRY: Duration = Duration::from_secs(1);

/// Follows a job to its end, tells how it ended, and gives it back if it succeeded.
///
/// # Errors
/// [`ClientError::Outcome`] if the job failed or was cancelled; those of requests.
pub async fn watch(client: &Client, id: &str, json: bool) -> ClientResult<Job> {
    let mut screen = Screen::new(json);
    let followed = follow(client, id, &mut screen).await;
    screen.bar.finish_and_clear();
    followed?;
    let value = client.get(&of(id, &[]), &[]).await?;
    let job: Job = view(&value)?;
    match (job.status.as_str(), json) {
        ("succeeded", false) => say(success(&job, &screen.progress))?,
        (_, true) => say(format!("{value}\n"))?,
        _ => {}
    }
    succeeded(job)
}

/// Reads the stream to its end; where it breaks off, goes on behind the last event it saw.
async fn follow(client: &Client, id: &str, screen: &mut Screen) -> ClientResult<()> {
    let mut seen: Option<String> = None;
    let mut heard: Option<Instant> = None;
    loop {
        let broken = match read(client, id, &mut seen, &mut heard, screen).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        // A server that never answered will not be waited for.
        if !broken.may_pass() || heard.is_none_or(|heard| heard.elapsed() > PATIENCE) {
            return Err(broken);
        }
        screen.bar.set_message("the server is away; trying again");
        sleep(RETRY).await;
    }
}

/// One connection: `Ok` at the end of the job's events.
async fn read(
    client: &Client,
    id: &str,
    seen: &mut Option<String>,
    heard: &mut Option<Instant>,
    screen: &mut Screen,
) -> ClientResult<()> {
    let mut request = client.request(Method::GET, &of(id, &["events"]), &[("stream", "true")]);
    if let Some(seen) = &seen {
        request = request.header("last-event-id", seen);
    }
    let mut stream = SseStream::new(client, client.open(request).await?);
    loop {
        *heard = Some(Instant::now());
        let broken =
            |reason: &str| ClientError::Broken { url: client.address(), reason: reason.to_owned() };
        match stream.next().await? {
            None => return Err(broken("the stream ended before the job did")),
            Some(event) if event.data == "[DONE]" => return Ok(()),
            Some(SseEvent { id: Some(number), data }) => {
                screen.show(&data)?;
                *seen = Some(number);
            }
            // The server could not read an event; it stands in the list for the next try.
            Some(SseEvent { id: None, .. }) => return Err(broken("the server could not go on")),
        }
    }
}

/// What is on the screen: a bar at a terminal, lines in a log, JSON for scripts.
struct Screen {
    json: bool,
    bar: ProgressBar,
    progress: Progress,
}

impl Screen {
    fn new(json: bool) -> Self {
        let bar = if json { ProgressBar::hidden() } else { ProgressBar::no_length() };
        bar.set_message("waiting to begin");
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(250));
        Self { json, bar, progress: Progress::default() }
    }

    fn show(&mut self, data: &str) -> ClientResult<()> {
        if self.json {
            return say(format!("{data}\n"));
        }
        let event: Event = serde_json::from_str(data)
            .map_err(|error| ClientError::Unreadable(error.to_string()))?;
        match event.metrics() {
            None => {
                self.progress.interrupted();
                self.line(&event.line())
            }
            Some(metrics) => {
                self.progress.add(event.created_at, metrics);
                self.step(metrics.step, metrics.total_steps)
            }
        }
    }

    fn step(&mut self, step: u64, total: u64) -> ClientResult<()> {
        let numbers = self.progress.line();
        if self.bar.is_hidden() {
            return match self.progress.is_worth_a_line() {
                true => say(format!("step {step}/{total}  {numbers}\n")),
                false => Ok(()),
            };
        }
        if self.bar.length() != Some(total) {
            self.bar.set_length(total);
            if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}") {
                self.bar.set_style(style);
            }
        }
        self.bar.set_position(step);
        self.bar.set_message(numbers);
        Ok(())
    }

    fn line(&self, line: &str) -> ClientResult<()> {
        self.bar.suspend(|| say(format!("{line}\n")))
    }
}

fn success(job: &Job, progress: &Progress) -> String {
    let curve = progress.loss_curve().map_or(String::new(), |text| format!("{text}\n"));
    format!("{curve}{} succeeded{}, {} steps\n", job.id, took(job), job.step)
}

fn took(job: &Job) -> String {
    job.worked().map_or(String::new(), |span| format!(" after {span}"))
}

/// The job, unless it came to nothing.
fn succeeded(job: Job) -> ClientResult<Job> {
    let outcome = match (job.status.as_str(), &job.error) {
        ("succeeded", _) => return Ok(job),
        ("failed", Some(error)) => format!("{} failed{}: {}", job.id, took(&job), error.message),
        (status, _) => format!("{} is {status}", job.id),
    };
    Err(ClientError::Outcome(outcome))
}
