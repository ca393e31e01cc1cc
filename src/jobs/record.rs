//! Writing down how a run goes: little by little, but not so often that the disk slows it.

use std::time::Duration;

use tokio::time::Instant;

use super::insist::insist;
use super::metrics::{self, Validation};
use crate::domain::TrainMetrics;
use crate::store::{Lease, NewEvent, Progress, Store, StoreResult, Timestamp};

/// Progress is written at most this often; each write waits for the disk.
const EVERY: Duration = Duration::from_millis(250);

/// The progress of one run that is not in the database yet.
pub(super) struct Recorder {
    store: Store,
    lease: Lease,
    progress: Progress,
    /// The newest step, held back a moment: its validation may follow.
    last: Option<TrainMetrics>,
    /// Of the newest step, for checkpoints and for a validation that comes late.
    told: Option<TrainMetrics>,
    due: Option<Instant>,
    /// When the run's first step ended, and which it was.
    pace: Option<(Instant, usize)>,
}

impl Recorder {
    pub fn new(store: Store, lease: Lease) -> Self {
        let progress = Progress::default();
        Self { store, lease, progress, last: None, told: None, due: None, pace: None }
    }

    /// When the next write is due, if anything waits for it.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    pub fn started(&mut self, step: usize, total_steps: usize) {
        self.progress.step = step as i64;
        self.progress.total_steps = Some(total_steps as i64);
        self.schedule();
    }

    pub fn step(&mut self, metrics: TrainMetrics) {
        self.tell_last(None);
        self.progress.step = metrics.step as i64;
        self.progress.trained_tokens = Some(metrics.trained_tokens as i64);
        self.progress.estimated_finish = self.estimate(&metrics);
        self.last = Some(metrics);
        self.schedule();
    }

    /// A validation after `step` steps; with 0, before the first.
    pub fn evaluated(&mut self, step: usize, validation: Validation) {
        if step == 0 {
            let total_steps = self.progress.total_steps;
            return self.event(metrics::before_training(total_steps, validation));
        }
        if self.last.is_none() {
            self.last = self.told.take().filter(|told| told.step == step);
        }
        self.tell_last(Some(validation));
        self.schedule();
    }

    pub fn event(&mut self, event: NewEvent) {
        self.tell_last(None);
        self.progress.events.push(event);
        self.schedule();
    }

    /// Everything that waits, to be written together with something else.
    pub fn take_events(&mut self) -> Vec<NewEvent> {
        self.tell_last(None);
        std::mem::take(&mut self.progress.events)
    }

    /// Tokens that bore loss so far, as last heard.
    pub fn trained_tokens(&self) -> Option<i64> {
        self.progress.trained_tokens
    }

    /// Writes what waits.
    ///
    /// # Errors
    /// Whatever the store answers, except that it is not available: that is waited out.
    pub async fn flush(&mut self) -> StoreResult<()> {
        self.tell_last(None);
        self.due = None;
        insist(|| self.store.record_progress(&self.lease, &self.progress)).await?;
        self.progress.events.clear();
        Ok(())
    }

    fn tell_last(&mut self, validation: Option<Validation>) {
        if let Some(metrics) = self.last.take() {
            self.progress.events.push(metrics::event(&metrics, validation));
            self.told = Some(metrics);
        }
    }

    fn schedule(&mut self) {
        self.due.get_or_insert_with(|| Instant::now() + EVERY);
    }

    fn estimate(&mut self, metrics: &TrainMetrics) -> Option<Timestamp> {
        let now = Instant::now();
        let (since, first) = *self.pace.get_or_insert((now, metrics.step));
        let done = u32::try_from(metrics.step - first).ok().filter(|done| *done > 0)?;
        let left = u32::try_from(metrics.total_steps - metrics.step).ok()?;
        let remaining = (now - since) / done * left;
        let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).ok()?;
        i64::try_from((clock + remaining).as_micros()).ok().map(Timestamp)
    }
}
