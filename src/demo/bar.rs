//! The progress of [`super::train_from_scratch`] on a terminal, or in a log.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::scratch::Progress;

/// A bar with loss, speed and the time that is left; where stderr is no terminal, a log line every
/// twenty steps.
pub fn bar(total_steps: usize) -> impl FnMut(Progress) {
    let bar = ProgressBar::new(total_steps as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} {elapsed} + {eta}")
    {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_secs(1));
    move |report: Progress| {
        let speed = report.tokens as f64 / report.elapsed.as_secs_f64().max(1e-9);
        bar.set_position(report.step as u64);
        bar.set_message(format!("loss {:.3}, {speed:.0} tokens/s", report.loss));
        if bar.is_hidden() && (report.step.is_multiple_of(20) || report.step == 1) {
            tracing::info!(
                step = report.step,
                total_steps = report.total_steps,
                loss = report.loss,
                learning_rate = report.learning_rate,
                grad_norm = report.grad_norm,
                tokens_per_second = speed.round(),
                "training the demo model"
            );
        }
        if report.step == report.total_steps {
            bar.finish();
        }
    }
}
