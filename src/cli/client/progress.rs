//! How far a run is, out of its events: step, loss, speed, and the time that is left.

use std::collections::VecDeque;

use serde::Deserialize;
use serde_json::Value;

use super::units::{curve, number, span};

/// Steps that the speed is measured over.
const WINDOW: usize = 50;
const CURVE_WIDTH: usize = 24;

/// An event of a job.
#[derive(Clone, Debug, Deserialize)]
pub struct Event {
    pub created_at: i64,
    pub level: String,
    pub message: String,
    pub data: Option<Value>,
    pub r#type: String,
}

/// The numbers of a step.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Metrics {
    pub step: u64,
    pub total_steps: u64,
    pub train_loss: f64,
    pub valid_loss: Option<f64>,
    pub tokens_per_second: f64,
}

impl Event {
    /// The numbers, where the event is that of a step.
    pub fn metrics(&self) -> Option<Metrics> {
        match self.r#type.as_str() {
            "metrics" => Metrics::deserialize(self.data.as_ref()?).ok(),
            _ => None,
        }
    }

    /// The sentence, with its level where it matters.
    pub fn line(&self) -> String {
        match self.level.as_str() {
            "warn" => format!("warning: {}", self.message),
            "error" => format!("error: {}", self.message),
            _ => self.message.clone(),
        }
    }
}

/// A run so far.
#[derive(Debug, Default)]
pub struct Progress {
    pub last: Option<Metrics>,
    valid_loss: Option<f64>,
    losses: Vec<f64>,
    /// Step and Unix seconds of the latest steps.
    recent: VecDeque<(u64, i64)>,
}

impl Progress {
    /// Takes a step in. After a restart steps come again; then the later ones count.
    pub fn add(&mut self, at: i64, metrics: Metrics) {
        let known = usize::try_from(metrics.step.saturating_sub(1)).unwrap_or(usize::MAX);
        if known < self.losses.len() {
            self.losses.truncate(known);
            self.recent.clear();
        }
        self.losses.push(metrics.train_loss);
        self.valid_loss = metrics.valid_loss.or(self.valid_loss);
        self.recent.push_back((metrics.step, at));
        if self.recent.len() > WINDOW {
            self.recent.pop_front();
        }
        self.last = Some(metrics);
    }

    /// Something else than a step happened, perhaps a pause: the speed is measured anew.
    pub fn interrupted(&mut self) {
        self.recent.clear();
    }

    /// Seconds until the last step, at the speed of the latest ones; their times are in whole
    /// seconds, so two are needed that differ.
    fn seconds_left(&self) -> Option<u64> {
        let (&(first, from), &(last, to)) = (self.recent.front()?, self.recent.back()?);
        let left = self.last?.total_steps.saturating_sub(last);
        let passed = u64::try_from(to - from).ok().filter(|&passed| passed > 0)?;
        Some((left as f64 * passed as f64 / (last - first).max(1) as f64).ceil() as u64)
    }

    /// The numbers beside the bar.
    pub fn line(&self) -> String {
        let Some(last) = self.last else { return "waiting to begin".to_owned() };
        let mut line = format!("loss {:.3}", last.train_loss);
        if let Some(loss) = self.valid_loss {
            line += &format!(" (validation {loss:.3})");
        }
        line += &format!("  {} tokens/s", number(last.tokens_per_second.max(0.0).round() as u64));
        if let Some(left) = self.seconds_left().filter(|_| last.step < last.total_steps) {
            line += &format!("  {} left", span(left));
        }
        line
    }

    /// From the first loss to the last, and the curve between; `None` before the first step.
    pub fn loss_curve(&self) -> Option<String> {
        let (first, last) = (self.losses.first()?, self.losses.last()?);
        let mut text = format!("loss {first:.3} {} {last:.3}", curve(&self.losses, CURVE_WIDTH));
        if let Some(loss) = self.valid_loss {
            text += &format!(", validation {loss:.3}");
        }
        Some(text)
    }

    /// Whether a log should tell this step: about twenty lines for the whole run, those with a
    /// validation, and the last.
    pub fn is_worth_a_line(&self) -> bool {
        self.last.is_some_and(|Metrics { step, total_steps, valid_loss, .. }| {
            let every = (total_steps / 20).max(1);
            step == 1 || step % every == 0 || step == total_steps || valid_loss.is_some()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64, train_loss: f64) -> Metrics {
        Metrics { step, total_steps: 10, train_loss, valid_loss: None, tokens_per_second: 1234.4 }
    }

    #[test]
    fn the_time_left_follows_from_the_latest_steps() {
        let mut progress = Progress::default();
        assert_eq!(progress.line(), "waiting to begin");
        progress.add(100, step(1, 3.0));
        assert_eq!(progress.line(), "loss 3.000  1,234 tokens/s");
        progress.add(102, step(2, 2.5));
        progress.add(104, Metrics { valid_loss: Some(2.75), ..step(3, 2.0) });
        assert_eq!(progress.line(), "loss 2.000 (validation 2.750)  1,234 tokens/s  14 s left");
    }

    #[test]
    fn steps_done_again_after_a_restart_count_once() {
        let mut progress = Progress::default();
        for (at, metrics) in [(1, step(1, 4.0)), (2, step(2, 9.0)), (50, step(2, 2.0))] {
            progress.add(at, metrics);
        }
        assert_eq!(progress.loss_curve().as_deref(), Some("loss 4.000 █▁ 2.000"));
        assert_eq!(progress.line(), "loss 2.000  1,234 tokens/s");
    }
}
