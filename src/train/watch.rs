//! What a person should be told while a run goes on: a loss that does not move, or that climbs.

use crate::domain::TrainMetrics;

/// Steps whose mean loss is compared; single steps are too noisy.
const WINDOW: usize = 10;
/// Windows after which the loss must have moved.
const PATIENCE_WINDOWS: usize = 5;
/// A loss has moved if it fell by more than this share.
const MOVED: f64 = 2e-3;
/// Below this there is nothing left to learn.
const LEARNED: f64 = 0.05;
/// A loss that climbs so many times above its best, and one nat, deserves a word; twice that far
/// the run is lost.
const CLIMBED: f64 = 1.5;

/// Watches the mean loss of each [`WINDOW`] steps.
#[derive(Debug, Default)]
pub struct Watch {
    sum: f64,
    steps: usize,
    windows: usize,
    first: f64,
    best: f64,
    /// Any step had a rate above zero.
    moved: bool,
    told_still: bool,
    told_climbing: bool,
}

/// What a window came to.
#[derive(Debug, PartialEq)]
pub enum Seen {
    Nothing,
    /// A sentence for a person.
    Odd(String),
    /// The run is lost; a sentence that says why and what to do.
    Lost(String),
}

impl Watch {
    /// Looks at one step.
    pub fn see(&mut self, metrics: &TrainMetrics) -> Seen {
        self.moved |= metrics.learning_rate > 0.0;
        self.sum += metrics.train_loss;
        self.steps += 1;
        if self.steps < WINDOW {
            return Seen::Nothing;
        }
        let mean = self.sum / self.steps as f64;
        (self.sum, self.steps) = (0.0, 0);
        self.windows += 1;
        if self.windows == 1 {
            (self.first, self.best) = (mean, mean);
            return Seen::Nothing;
        }
        let seen = self.judge(mean, metrics);
        self.best = self.best.min(mean);
        seen
    }

    fn judge(&mut self, mean: f64, metrics: &TrainMetrics) -> Seen {
        let (best, step, rate) = (self.best, metrics.step, metrics.learning_rate);
        let remedy = "lower `learning_rate`, add `warmup_steps`, or set `max_grad_norm` to 1";
        if mean > 2.0 * CLIMBED * best + 2.0 {
            return Seen::Lost(format!(
                "training has diverged: the mean loss of the last {WINDOW} steps is {mean:.2} and \
                 was {best:.2}; {remedy} (the rate at step {step} was {rate:e})"
            ));
        }
        if mean > CLIMBED * best + 1.0 && !std::mem::replace(&mut self.told_climbing, true) {
            return Seen::Odd(format!(
                "the loss climbs: {mean:.2} over the last {WINDOW} steps, {best:.2} at its best; \
                 {remedy}"
            ));
        }
        let still = self.windows >= PATIENCE_WINDOWS
            && self.moved
            && self.best.min(mean) > (1.0 - MOVED) * self.first
            && self.first > LEARNED;
        if still && !std::mem::replace(&mut self.told_still, true) {
            let steps = self.windows * WINDOW;
            return Seen::Odd(format!(
                "the loss has not moved in {steps} steps: {:.4} at first, {mean:.4} now; raise \
                 `learning_rate` (it is {rate:e}) or `lora.r`, target more modules, or look whether \
                 the data can be learned",
                self.first
            ));
        }
        Seen::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(losses: impl IntoIterator<Item = f64>) -> Vec<Seen> {
        let mut watch = Watch::default();
        let metrics = |(at, train_loss): (usize, f64)| TrainMetrics {
            step: at + 1,
            total_steps: 1000,
            train_loss,
            train_mean_token_accuracy: 0.5,
            learning_rate: 1e-3,
            grad_norm: 1.0,
            tokens_per_second: 1.0,
            trained_tokens: 1,
        };
        let seen = losses.into_iter().enumerate().map(|step| watch.see(&metrics(step)));
        seen.filter(|seen| *seen != Seen::Nothing).collect()
    }

    #[test]
    fn a_loss_that_falls_is_nothing_to_tell() {
        assert_eq!(run((0..200).map(|step| 4.0 / (1.0 + step as f64 / 50.0))), []);
        assert_eq!(run((0..200).map(|_| 0.01)), []);
    }

    #[test]
    fn a_loss_that_stands_still_is_told_once() {
        let seen = run((0..200).map(|step| 4.0 + 0.1 * f64::from(step % 3)));
        assert!(
            matches!(&seen[..], [Seen::Odd(told)] if told.contains("has not moved in 50 steps"))
        );
    }

    #[test]
    fn a_loss_that_climbs_is_told_and_then_ends_the_run() {
        let climb = (0..100).map(|step| if step < 20 { 2.0 } else { f64::from(step) / 5.0 });
        let seen = run(climb);
        assert!(matches!(&seen[0], Seen::Odd(told) if told.contains("climbs")), "{seen:?}");
        assert!(matches!(&seen[1], Seen::Lost(told) if told.contains("diverged")), "{seen:?}");
    }
}
