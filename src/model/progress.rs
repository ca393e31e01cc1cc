//! A bar for loading that takes its time.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// What loads faster needs no bar.
const PATIENCE: Duration = Duration::from_secs(2);

/// How much of a model is read; on a terminal, after two seconds, shown.
pub struct Progress {
    started: Instant,
    total_bytes: u64,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub fn new(total_bytes: u64) -> Self {
        Self { started: Instant::now(), total_bytes, bar: None }
    }

    /// `done_bytes` are read.
    pub fn reach(&mut self, done_bytes: u64) {
        if self.bar.is_none() && self.started.elapsed() > PATIENCE {
            let bar = ProgressBar::new(self.total_bytes);
            let style = "loading {bar:30} {bytes}/{total_bytes} {elapsed} + {eta}";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            self.bar = Some(bar);
        }
        if let Some(bar) = &self.bar {
            bar.set_position(done_bytes);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
