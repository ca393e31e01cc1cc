//! Load from outside: a fixed number of requests in flight against any OpenAI-style server.
//!
//! Prompts are lists of token ids, so their length is exact. What is measured is what a client
//! sees: a token counts when its text arrives.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures::StreamExt;
use indicatif::ProgressBar;
use serde::Serialize;
use serde_json::{Value, json};

use super::BenchError;

/// Ids a prompt is drawn from: ordinary tokens in every vocabulary.
const IDS: std::ops::Range<u64> = 10..500;

/// What to send.
#[derive(Clone, Debug)]
pub struct Load {
    /// `http://host:port`, with or without `/v1`.
    pub url: String,
    /// Request `i` names model `i mod len`.
    pub models: Vec<String>,
    pub api_key: Option<String>,
    pub concurrency: usize,
    pub requests: usize,
    pub prompt_tokens: usize,
    pub max_tokens: usize,
    pub seed: u64,
}

/// What came back.
#[derive(Debug, Serialize)]
pub struct LoadReport {
    pub requests: usize,
    pub failed: usize,
    pub first_error: Option<String>,
    pub seconds: f64,
    pub output_tokens: usize,
    pub output_tokens_per_second: f64,
    /// Milliseconds from sending to the first text.
    pub first_token_ms: Spread,
    /// Milliseconds between two texts of one answer.
    pub inter_token_ms: Spread,
    pub request_ms: Spread,
}

/// Percentiles, by nearest rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

/// What one request did, in seconds after it was sent.
#[derive(Debug, Default)]
struct Answer {
    arrivals: Vec<f64>,
    /// As the server counts them.
    tokens: Option<usize>,
    end: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let rank = (share * values.len() as f64).ceil() as usize;
            values.get(rank.max(1) - 1).map_or(0.0, |seconds| seconds * 1e3)
        };
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1.0) }
    }
}

/// Sends `load.requests` requests, `load.concurrency` at a time.
///
/// # Errors
/// If the server is not there, or no request succeeded.
pub async fn run(load: Load, progress: &ProgressBar) -> Result<LoadReport, BenchError> {
    let client = reqwest::Client::new();
    let load = Arc::new(load);
    reach(&client, &load).await?;
    let (next, results) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
    let began = Instant::now();
    let clients = (0..load.concurrency.max(1)).map(|_| {
        let (client, load, progress) = (client.clone(), Arc::clone(&load), progress.clone());
        let (next, results) = (Arc::clone(&next), Arc::clone(&results));
        tokio::spawn(async move {
            loop {
                let index = next.fetch_add(1, Relaxed);
                if index >= load.requests {
                    return;
                }
                let answer = ask(&client, &load, index).await;
                let mut results = results.lock().expect("no client panics while it holds this");
                results.push(answer);
                progress.set_message(format!("{} of {} answers", results.len(), load.requests));
            }
        })
    });
    futures::future::join_all(clients).await;
    let seconds = began.elapsed().as_secs_f64();
    let results = std::mem::take(&mut *results.lock().expect("every client has ended"));
    summarise(results, seconds)
}

async fn reach(client: &reqwest::Client, load: &Load) -> Result<(), BenchError> {
    let request = client.get(format!("{}/models", root(&load.url)));
    let sent = authorized(request, load).send().await;
    sent.map(drop).map_err(|source| BenchError::Unreachable { url: load.url.clone(), source })
}

fn root(url: &str) -> String {
    let url = url.trim_end_matches('/');
    if url.ends_with("/v1") { url.to_owned() } else { format!("{url}/v1") }
}

fn authorized(request: reqwest::RequestBuilder, load: &Load) -> reqwest::RequestBuilder {
    match &load.api_key {
        Some(key) => request.bearer_auth(key),
        None => request,
    }
}

fn body(load: &Load, index: usize) -> Value {
    let mut state = load.seed.wrapping_add(index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let prompt: Vec<u64> = (0..load.prompt_tokens)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            IDS.start + (state >> 33) % (IDS.end - IDS.start)
        })
        .collect();
    json!({
        "model": load.models[index % load.models.len()],
        "prompt": prompt,
        "max_tokens": load.max_tokens,
        "temperature": 0,
        "ignore_eos": true,
        "stream": true,
        "stream_options": {"include_usage": true},
    })
}

async fn ask(client: &reqwest::Client, load: &Load, index: usize) -> Result<Answer, String> {
    let request = client.post(format!("{}/completions", root(&load.url)));
    let request = authorized(request, load).json(&body(load, index));
    let began = Instant::now();
    let response = request.send().await.map_err(|error| error.to_string())?;
    if !response.status().is_success() {
        let status = response.status();
        return Err(format!("{status}: {}", response.text().await.unwrap_or_default()));
    }
    let (mut answer, mut lines) = (Answer::default(), Vec::new());
    let mut chunks = response.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        lines.extend_from_slice(&chunk.map_err(|error| error.to_string())?);
        let now = began.elapsed().as_secs_f64();
        while let Some(end) = lines.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = lines.drain(..=end).collect();
            answer.read(&line, now)?;
        }
    }
    answer.end = began.elapsed().as_secs_f64();
    match answer.arrivals.is_empty() {
        true => Err("no text arrived".to_owned()),
        false => Ok(answer),
    }
}

impl Answer {
    /// Takes in one line of the stream.
    fn read(&mut self, line: &[u8], now: f64) -> Result<(), String> {
        let Some(data) = line.strip_prefix(b"data:") else { return Ok(()) };
        let Ok(event) = serde_json::from_slice::<Value>(data) else { return Ok(()) }; // [DONE]
        if let Some(error) = event.get("error").filter(|error| !error.is_null()) {
            return Err(error.to_string());
        }
        if let Some(tokens) = event["usage"]["completion_tokens"].as_u64() {
            self.tokens = Some(tokens as usize);
        }
        if event["choices"][0]["text"].as_str().is_some_and(|text| !text.is_empty()) {
            self.arrivals.push(now);
        }
        Ok(())
    }
}

fn summarise(results: Vec<Result<Answer, String>>, seconds: f64) -> Result<LoadReport, BenchError> {
    let requests = results.len();
    let (answers, errors): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    let answers: Vec<Answer> = answers.into_iter().flatten().collect();
    let first_error = errors.into_iter().find_map(Result::err);
    if answers.is_empty() {
        return Err(BenchError::AllFailed { first: first_error.unwrap_or_default() });
    }
    let output_tokens = answers.iter().map(|a| a.tokens.unwrap_or(a.arrivals.len())).sum();
    let gaps = answers.iter().flat_map(|a| a.arrivals.windows(2).map(|pair| pair[1] - pair[0]));
    Ok(LoadReport {
        requests,
        failed: requests - answers.len(),
        first_error,
        seconds,
        output_tokens,
        output_tokens_per_second: output_tokens as f64 / seconds,
        inter_token_ms: Spread::of(gaps.collect()),
        first_token_ms: Spread::of(answers.iter().map(|a| a.arrivals[0]).collect()),
        request_ms: Spread::of(answers.iter().map(|a| a.end).collect()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let spread = Spread::of((1..=100).map(|i| f64::from(i) / 1e3).collect());
        assert_eq!((spread.p50, spread.p90, spread.p99, spread.max), (50.0, 90.0, 99.0, 100.0));
        assert_eq!(Spread::of(Vec::new()), Spread::default());
    }

    #[test]
    fn a_stream_is_read_line_by_line() {
        let mut answer = Answer::default();
        for line in [
            "data: {\"choices\":[{\"text\":\"a\"}]}\n",
            ": a comment\n",
            "data: {\"choices\":[{\"text\":\"\"}]}\n",
            "data: {\"choices\":[],\"usage\":{\"completion_tokens\":3}}\n",
            "data: [DONE]\n",
        ] {
            answer.read(line.as_bytes(), 0.5).expect("no error is in it");
        }
        assert_eq!((answer.arrivals.as_slice(), answer.tokens), ([0.5].as_slice(), Some(3)));
        let failed = answer.read(b"data: {\"error\":{\"message\":\"no\"}}\n", 1.0);
        assert!(failed.is_err());
    }
}
