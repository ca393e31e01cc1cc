//! The end of a step: gradients are looked at, then the optimiser moves the adapter.

use std::time::Instant;

use super::{Phase, Run};
use crate::backend::{Backend, LossSum};
use crate::domain::TrainMetrics;
use crate::train::watch::Seen;
use crate::train::{TrainError, TrainEvent, schedule};

impl<B: Backend> Run<B> {
    /// How the window of so many `tokens`, opened at `since`, went, unless what is found ends the run.
    pub(super) fn measure(
        &mut self,
        b: &mut B,
        loss: LossSum,
        (tokens, since): (usize, Instant),
        events: &mut Vec<TrainEvent>,
    ) -> Phase<B> {
        let (step, total_steps) = (self.progress.step + 1, self.plan.total_steps());
        let squares = self.optimizer.gradient_squares(b, &mut self.trainee);
        let h = &self.request.hyperparameters;
        let metrics = TrainMetrics {
            step,
            total_steps,
            train_loss: loss.loss / loss.tokens as f64,
            train_mean_token_accuracy: loss.correct as f64 / loss.tokens as f64,
            learning_rate: schedule::learning_rate(h, step, total_steps),
            grad_norm: squares.iter().sum::<f64>().sqrt(),
            tokens_per_second: 0.0, // known when the step is over
            trained_tokens: self.progress.trained_tokens + loss.tokens as u64,
        };
        match self.guards.check(&metrics, &squares) {
            Ok(()) => Phase::Update { metrics, tokens, since },
            Err(message) => fail(step, message, events),
        }
    }

    /// Moves the adapter, and tells of the step.
    pub(super) fn update(
        &mut self,
        b: &mut B,
        mut metrics: TrainMetrics,
        (tokens, since): (usize, Instant),
        events: &mut Vec<TrainEvent>,
    ) -> Phase<B> {
        let (h, step) = (&self.request.hyperparameters, metrics.step);
        let (rate, norm) = (metrics.learning_rate, metrics.grad_norm);
        if let Err(error) = self.optimizer.step(b, &mut self.trainee, h, rate, norm, step) {
            return fail(step, TrainError::Paging(error).to_string(), events);
        }
        self.trainee.zero_gradients(b);
        metrics.tokens_per_second = tokens as f64 / since.elapsed().as_secs_f64().max(1e-9);
        (self.progress.step, self.progress.trained_tokens) = (step, metrics.trained_tokens);
        events.push(TrainEvent::Step(metrics.clone()));
        match self.watch.see(&metrics) {
            Seen::Nothing => {}
            Seen::Odd(message) => events.push(TrainEvent::Warning { step, message }),
            Seen::Lost(message) => return fail(step, message, events),
        }
        self.metrics = Some(metrics);
        self.after_update()
    }
}

/// Ends the run in `step` with what went wrong.
fn fail<B: Backend>(step: usize, message: String, events: &mut Vec<TrainEvent>) -> Phase<B> {
    events.push(TrainEvent::Failed { step, message });
    Phase::Over
}
