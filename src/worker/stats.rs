//! What the device thread tells about itself: counters anybody may read without asking it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::WorkerError;

/// Counters the device thread keeps and anybody may read.
#[derive(Debug, Default)]
pub struct WorkerStats {
    /// Requests queued or waiting for cache room.
    pub waiting: AtomicUsize,
    /// How many may wait; 0: as many as the channel holds.
    pub max_waiting: AtomicUsize,
    /// How many tokens they may take together; 0: any number.
    pub max_waiting_tokens: AtomicU64,
    /// Tokens those requests may take, prompt and longest answer.
    pub waiting_tokens: AtomicU64,
    /// Sequences in the running batch.
    pub running: AtomicUsize,
    /// KV blocks in use, of `blocks_total`.
    pub blocks_used: AtomicUsize,
    pub blocks_total: AtomicUsize,
    pub prompt_tokens: AtomicU64,
    pub cached_tokens: AtomicU64,
    pub generated_tokens: AtomicU64,
    /// Tokens guessed, and those of them that were right.
    pub drafted_tokens: AtomicU64,
    pub accepted_tokens: AtomicU64,
    pub steps: AtomicU64,
    /// Sequences put back to wait because older ones needed their blocks.
    pub preemptions: AtomicU64,
    /// Thousandths of a token per second, prompt and answer, over the last steps.
    pub milli_tokens_per_second: AtomicU64,
    /// Device time spent on steps of serving, in microseconds.
    pub serving_micros: AtomicU64,
    /// Whether a run holds memory of the device.
    pub training: AtomicBool,
    /// Optimiser steps.
    pub training_steps: AtomicU64,
    /// Device time spent on units of training, in microseconds.
    pub training_micros: AtomicU64,
    /// The longest unit of training, in microseconds: what it can add to one step at most.
    pub longest_unit_micros: AtomicU64,
    pub adapters_resident: AtomicUsize,
    pub panics: AtomicU64,
    /// Operations per second of training, as its last steps had it, by base model.
    training_rates: Mutex<HashMap<String, f64>>,
}

impl WorkerStats {
    /// Bounds the queue in requests and in tokens.
    pub(super) fn bound_queue(&self, requests: usize, tokens: usize) {
        self.max_waiting.store(requests, Relaxed);
        self.max_waiting_tokens.store(u64::try_from(tokens).unwrap_or(u64::MAX), Relaxed);
    }

    /// Takes a place in the queue for a request of at most `tokens` tokens. Where nobody waits there
    /// is a place for every request.
    ///
    /// # Errors
    /// [`WorkerError::Overloaded`] if every place is taken.
    pub(super) fn enter(&self, tokens: usize) -> Result<(), WorkerError> {
        let max = self.max_waiting.load(Relaxed);
        let one_more = |waiting| (max == 0 || waiting < max).then_some(waiting + 1);
        self.waiting.fetch_update(Relaxed, Relaxed, one_more).map_err(|_| self.overloaded())?;
        let (max, tokens) = (self.max_waiting_tokens.load(Relaxed), tokens as u64);
        let more = |waiting: u64| {
            let sum = waiting.saturating_add(tokens);
            (max == 0 || waiting == 0 || sum <= max).then_some(sum)
        };
        self.waiting_tokens.fetch_update(Relaxed, Relaxed, more).map_err(|_| {
            self.waiting.fetch_sub(1, Relaxed);
            self.overloaded()
        })?;
        Ok(())
    }

    /// Gives the place back: the request runs, or is over.
    pub(super) fn leave(&self, tokens: usize) {
        self.waiting.fetch_sub(1, Relaxed);
        self.waiting_tokens.fetch_sub(tokens as u64, Relaxed);
    }

    /// The queue is full, and how long it takes to work it off at the measured speed.
    pub(super) fn overloaded(&self) -> WorkerError {
        WorkerError::Overloaded {
            waiting: self.waiting.load(Relaxed),
            retry_after_secs: self.drain_secs(),
        }
    }

    /// Notes a step of `rows` tokens that took `elapsed`, and `interval` with the training before it.
    pub(super) fn note_step(&self, rows: usize, elapsed: Duration, interval: Duration) {
        self.steps.fetch_add(1, Relaxed);
        self.serving_micros.fetch_add(elapsed.as_micros() as u64, Relaxed);
        let now = (rows as f64 * 1e3 / interval.as_secs_f64().max(1e-6)) as u64;
        let before = self.milli_tokens_per_second.load(Relaxed);
        let smooth = if before == 0 { now } else { (before * 15 + now) / 16 };
        self.milli_tokens_per_second.store(smooth, Relaxed);
    }

    /// Notes how fast a step of training on `base` was.
    pub fn note_training_rate(&self, base: &str, rate: f64) {
        let mut rates = self.training_rates.lock().unwrap_or_else(PoisonError::into_inner);
        match rates.get_mut(base) {
            Some(known) => *known += (rate - *known) / 4.0,
            None => drop(rates.insert(base.to_owned(), rate)),
        }
    }

    /// Operations per second of training on `base`, once a step was measured.
    pub fn training_rate(&self, base: &str) -> Option<f64> {
        self.training_rates.lock().unwrap_or_else(PoisonError::into_inner).get(base).copied()
    }

    /// Between 1 and 60: clients give up on anything longer.
    fn drain_secs(&self) -> u64 {
        let milli_tokens = self.waiting_tokens.load(Relaxed).saturating_mul(1000);
        let speed = self.milli_tokens_per_second.load(Relaxed).max(1);
        milli_tokens.div_ceil(speed).clamp(1, 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_says_how_long_it_takes_at_the_measured_speed() {
        let stats = WorkerStats::default();
        stats.max_waiting.store(2, Relaxed);
        stats.note_step(100, Duration::from_millis(500), Duration::from_secs(1));
        stats.enter(1000).unwrap();
        stats.enter(500).unwrap();
        let full = WorkerError::Overloaded { waiting: 2, retry_after_secs: 15 };
        assert_eq!(stats.enter(1), Err(full));
        stats.leave(1000);
        assert_eq!(stats.enter(1), Ok(()));
    }

    #[test]
    fn the_queue_is_bounded_in_tokens_and_an_empty_one_takes_any_request() {
        let stats = WorkerStats::default();
        stats.bound_queue(10, 100);
        assert_eq!(stats.enter(500), Ok(()));
        assert!(matches!(stats.enter(1), Err(WorkerError::Overloaded { waiting: 1, .. })));
        stats.leave(500);
        assert_eq!((stats.enter(60), stats.enter(40)), (Ok(()), Ok(())));
        assert!(stats.enter(1).is_err());
        assert_eq!(stats.waiting.load(Relaxed), 2);
    }
}
