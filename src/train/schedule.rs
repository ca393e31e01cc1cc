//! The learning rate, step by step, as transformers computes it.

use std::f64::consts::PI;

use crate::domain::{Hyperparameters, LrScheduler};

/// The rate of optimiser step `step` (from 1) out of `total_steps`.
///
/// A linear warm-up, then constant, linear to 0, or half a cosine to 0. As with torch's
/// schedulers the factor counts the steps *done* before this one, so with a warm-up the first step
/// has rate 0.
pub fn learning_rate(h: &Hyperparameters, step: usize, total_steps: usize) -> f64 {
    h.learning_rate * factor(h.lr_scheduler, step - 1, h.warmup_steps, total_steps)
}

fn factor(scheduler: LrScheduler, done: usize, warmup: usize, total: usize) -> f64 {
    if done < warmup {
        return done as f64 / warmup.max(1) as f64;
    }
    let span = total.saturating_sub(warmup).max(1) as f64;
    match scheduler {
        LrScheduler::Constant => 1.0,
        LrScheduler::Linear => (total.saturating_sub(done) as f64 / span).max(0.0),
        LrScheduler::Cosine => {
            let progress = (done - warmup) as f64 / span;
            (0.5 * (1.0 + (PI * progress).cos())).max(0.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_then_each_shape() {
        let at = |scheduler, done| factor(scheduler, done, 2, 10);
        for scheduler in [LrScheduler::Constant, LrScheduler::Linear, LrScheduler::Cosine] {
            assert_eq!([0, 1, 2].map(|done| at(scheduler, done)), [0.0, 0.5, 1.0]);
        }
        assert_eq!(at(LrScheduler::Constant, 9), 1.0);
        assert_eq!(at(LrScheduler::Linear, 6), 0.5);
        assert!((at(LrScheduler::Cosine, 6) - 0.5).abs() < 1e-12);
        assert_eq!(at(LrScheduler::Linear, 10), 0.0);
        assert!(at(LrScheduler::Cosine, 10) < 1e-12);
    }

    #[test]
    fn a_warm_up_longer_than_the_run_stays_finite() {
        assert_eq!(factor(LrScheduler::Cosine, 3, 8, 4), 0.375);
        assert_eq!(factor(LrScheduler::Linear, 8, 8, 4), 0.0);
    }
}
