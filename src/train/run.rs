//! A fine-tuning run as a value with a next unit.
//!
//! Whoever trains calls [`Run::advance`] whenever the device has a moment. Nothing a run computes
//! depends on when it is called or on what the device did meanwhile.

mod update;

use std::sync::Arc;
use std::time::Instant;

use sha2::{Digest, Sha256};

use super::best::{Best, Verdict};
use super::evaluate::Evaluation;
use super::guards::Guards;
use super::optimizer::Optimizer;
use super::served::Comparison;
use super::sight::Sight;
use super::snapshot::{self, Identity, Progress};
use super::watch::Watch;
use super::window::Window;
use super::{Plan, TrainError, TrainEvent, TrainRequest, TrainSnapshot, adapter};
use crate::backend::{Backend, LossSum};
use crate::domain::{Hyperparameters, TrainMetrics};
use crate::model::{Model, PassUnit, Trainee};

/// A supervised fine-tuning run of one adapter.
pub struct Run<B: Backend> {
    request: TrainRequest,
    identity: Identity,
    plan: Plan,
    trainee: Trainee<B>,
    optimizer: Optimizer<B>,
    guards: Guards,
    watch: Watch,
    progress: Progress,
    /// The tensors of the best adapter so far, where they are asked for.
    best: Vec<Vec<f32>>,
    phase: Phase<B>,
    /// Events of the start, told with the first unit.
    pending: Vec<TrainEvent>,
    pause_requested: bool,
    keep_bytes: usize,
    sight: Sight<B>,
    metrics: Option<TrainMetrics>,
    validation: Option<Validation>,
}

/// What the next unit is part of.
enum Phase<B: Backend> {
    NextStep,
    Window(Window<B>),
    /// The window's gradients are there.
    Measure {
        loss: LossSum,
        tokens: usize,
        since: Instant,
    },
    /// They are in order.
    Update {
        metrics: TrainMetrics,
        tokens: usize,
        since: Instant,
    },
    Evaluate(Evaluation<B>),
    Snapshot(Occasion),
    Compare {
        snapshot: TrainSnapshot,
        comparison: Comparison,
    },
    Over,
}

/// Why a snapshot is taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Occasion {
    Checkpoint,
    Pause,
    End,
}

/// The result of the last validation.
#[derive(Clone, Copy)]
struct Validation {
    step: usize,
    loss: f64,
    accuracy: f64,
}

/// The kinds of unit a run consists of; those of one kind take about equally long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    Pass(PassUnit),
    Measure,
    Update,
    Evaluate(PassUnit),
    Snapshot,
    Other,
}

impl<B: Backend> Run<B> {
    /// Sets a run up: the adapter, its optimiser and the order of its data, or all of them as they
    /// were when the checkpoint in `request.resume` was written.
    ///
    /// # Errors
    /// [`TrainError`] if the data, the settings, the adapter or the checkpoint cannot be used.
    pub fn start(b: &mut B, model: &Model<B>, request: TrainRequest) -> Result<Self, TrainError> {
        let h = &request.hyperparameters;
        let plan = Plan::new(&request.examples, h, request.seed)?;
        let weights = match &request.init_adapter {
            Some(init) => adapter::checked(init, &request.lora)?,
            None => adapter::fresh(&model.info, &request.lora, request.seed)?,
        };
        let weights = adapter::completed(b, model, weights, &request.lora)?;
        let mut trainee = Trainee::adapter(b, model, &weights)?;
        let optimizer = Optimizer::of(b, &mut trainee, h, &request.scratch);
        let mut optimizer = optimizer.map_err(TrainError::Paging)?;
        let identity = Identity::of(&request, &model.info.fingerprint);
        let mut best = Vec::new();
        let progress = match &request.resume {
            Some(path) => {
                snapshot::read(b, path, &identity, &mut trainee, &mut optimizer, &mut best)?
            }
            None => Progress::default(),
        };
        let guards = Guards::new(trainee.parameters_mut().map(|p| p.name.to_owned()));
        let pending = opening(&plan, &trainee, progress.step, h);
        let over = progress.stopped || progress.step >= plan.total_steps();
        let phase = match progress.step {
            _ if over => Phase::Snapshot(Occasion::End),
            // What the later losses are to be compared with.
            0 if !request.validation.is_empty() => validate(&request),
            _ => Phase::NextStep,
        };
        Ok(Self {
            request,
            identity,
            plan,
            trainee,
            optimizer,
            guards,
            watch: Watch::default(),
            progress,
            best,
            phase,
            pending,
            pause_requested: false,
            keep_bytes: 0,
            sight: Sight::default(),
            metrics: None,
            validation: None,
        })
    }

    /// Lets the run keep so many bytes of activations between forward and backward. It then computes
    /// less of them anew; its results stay the same to the bit.
    pub fn keep_activations(&mut self, bytes: usize) {
        self.keep_bytes = bytes;
    }

    /// Lets the run keep so many bytes of what it saw of pictures, so that it looks less often; its
    /// results stay the same to the bit.
    pub fn keep_pictures(&mut self, bytes: usize) {
        self.sight.keep(bytes);
    }

    /// The kind of the unit that [`Run::advance`] does next.
    pub fn next_unit(&self) -> Unit {
        match &self.phase {
            Phase::Window(window) => window.next_unit().map_or(Unit::Other, Unit::Pass),
            Phase::Measure { .. } => Unit::Measure,
            Phase::Update { .. } => Unit::Update,
            Phase::Evaluate(pass) => pass.next_unit().map_or(Unit::Other, Unit::Evaluate),
            Phase::Snapshot(_) => Unit::Snapshot,
            Phase::NextStep | Phase::Compare { .. } | Phase::Over => Unit::Other,
        }
    }

    /// Does one unit: a piece of one micro-batch, an optimiser step, a unit of validation or a
    /// snapshot; and tells what came of it. `model` is the one the run was started with.
    pub fn advance(&mut self, b: &mut B, model: &Model<B>) -> Vec<TrainEvent> {
        let mut events = std::mem::take(&mut self.pending);
        self.phase = match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::NextStep if self.pause_requested => {
                self.snapshot(b, Occasion::Pause, &mut events)
            }
            Phase::NextStep => self.open_window(model),
            Phase::Window(window) => self.window_unit(b, model, window, &mut events),
            Phase::Measure { loss, tokens, since } => {
                self.measure(b, loss, (tokens, since), &mut events)
            }
            Phase::Update { metrics, tokens, since } => {
                self.update(b, metrics, (tokens, since), &mut events)
            }
            Phase::Evaluate(pass) => self.evaluation_unit(b, model, pass, &mut events),
            Phase::Snapshot(occasion) => self.snapshot(b, occasion, &mut events),
            Phase::Compare { snapshot, comparison } => {
                self.compare(b, model, snapshot, comparison, &mut events)
            }
            Phase::Over => Phase::Over,
        };
        events
    }

    /// Asks for a snapshot after the step in progress and the end of this run with
    /// [`TrainEvent::Paused`].
    pub fn request_pause(&mut self) {
        self.pause_requested = true;
    }

    /// True once [`TrainEvent::Finished`], [`TrainEvent::Paused`] or [`TrainEvent::Failed`] was
    /// told: nothing is left to do.
    pub fn finished(&self) -> bool {
        matches!(self.phase, Phase::Over)
    }

    /// Optimiser steps done.
    pub fn step(&self) -> usize {
        self.progress.step
    }

    /// Gives the run's device memory back.
    pub fn release(self, b: &mut B) {
        self.optimizer.release(b);
        self.sight.release(b);
    }

    fn open_window(&mut self, model: &Model<B>) -> Phase<B> {
        let step = self.progress.step + 1;
        let batches = self.plan.window(&self.request.examples, step);
        let width = model.info.hidden_size;
        Phase::Window(Window::new(batches, &self.request, step, width, self.keep_bytes))
    }

    fn window_unit(
        &mut self,
        b: &mut B,
        model: &Model<B>,
        mut window: Window<B>,
        events: &mut Vec<TrainEvent>,
    ) -> Phase<B> {
        match window.look(b, model, &mut self.sight) {
            Ok(true) => {}
            Ok(false) => return Phase::Window(window),
            Err(error) => return self.give_up(&error, events),
        }
        match window.advance(b, model, &mut self.trainee) {
            Some(loss) => Phase::Measure { loss, tokens: window.tokens(), since: window.since() },
            None => Phase::Window(window),
        }
    }

    /// Ends the run with what went wrong.
    fn give_up(&self, error: &TrainError, events: &mut Vec<TrainEvent>) -> Phase<B> {
        let (step, message) = (self.progress.step, error.to_string());
        events.push(TrainEvent::Failed { step, message });
        Phase::Over
    }

    fn after_update(&mut self) -> Phase<B> {
        let h = &self.request.hyperparameters;
        if self.request.validation.is_empty() || !self.due(h.eval_steps) {
            return self.after_evaluation();
        }
        validate(&self.request)
    }

    fn after_evaluation(&self) -> Phase<B> {
        if self.progress.step == 0 {
            Phase::NextStep
        } else if self.progress.stopped || self.progress.step == self.plan.total_steps() {
            Phase::Snapshot(Occasion::End)
        } else if self.pause_requested {
            Phase::Snapshot(Occasion::Pause)
        } else if self.due(self.request.hyperparameters.checkpoint_steps) {
            Phase::Snapshot(Occasion::Checkpoint)
        } else {
            Phase::NextStep
        }
    }

    /// Whether something that happens every `every` steps, or else after each epoch, and always
    /// after the last step, happens now.
    fn due(&self, every: Option<usize>) -> bool {
        let step = self.progress.step;
        step == self.plan.total_steps()
            || every.map_or_else(|| self.plan.ends_epoch(step), |every| step.is_multiple_of(every))
    }

    fn evaluation_unit(
        &mut self,
        b: &mut B,
        model: &Model<B>,
        mut pass: Evaluation<B>,
        events: &mut Vec<TrainEvent>,
    ) -> Phase<B> {
        match pass.look(b, model, &mut self.sight) {
            Ok(true) => {}
            Ok(false) => return Phase::Evaluate(pass),
            Err(error) => return self.give_up(&error, events),
        }
        let Some(sum) = pass.advance(b, model, &mut self.trainee) else {
            return Phase::Evaluate(pass);
        };
        let step = self.progress.step;
        if sum.tokens == 0 {
            let message = "the validation data has no token to learn; it is left out".to_owned();
            events.push(TrainEvent::Warning { step, message });
            return self.after_evaluation();
        }
        let loss = sum.loss / sum.tokens as f64;
        let mean_token_accuracy = sum.correct as f64 / sum.tokens as f64;
        self.validation = Some(Validation { step, loss, accuracy: mean_token_accuracy });
        let tokens = sum.tokens;
        events.push(TrainEvent::Evaluated { step, loss, mean_token_accuracy, tokens });
        self.judge(b, loss, events);
        self.after_evaluation()
    }

    /// Keeps the best adapter, and ends the run if none better came for too long.
    fn judge(&mut self, b: &B, loss: f64, events: &mut Vec<TrainEvent>) {
        let (h, step) = (&self.request.hyperparameters, self.progress.step);
        match Best::judge(&mut self.progress.best, step, loss, h.early_stopping) {
            Verdict::GoOn => {}
            Verdict::Better if h.load_best_model_at_end => {
                let values = self.trainee.parameters_mut().map(|p| b.download(p.value));
                self.best = values.collect();
            }
            Verdict::Better => {}
            Verdict::Stop => {
                self.progress.stopped = true;
                events.push(TrainEvent::Told { step, message: self.why_stopped() });
            }
        }
    }

    fn why_stopped(&self) -> String {
        let patience = self.request.hyperparameters.early_stopping.map_or(0, |s| s.patience);
        let best = self.progress.best.as_ref();
        format!(
            "Stopped early: {patience} validations in a row brought no better loss than {:.4} at \
             step {}",
            best.map_or(f64::NAN, Best::loss),
            best.map_or(0, |best| best.step),
        )
    }

    fn snapshot(
        &mut self,
        b: &mut B,
        occasion: Occasion,
        events: &mut Vec<TrainEvent>,
    ) -> Phase<B> {
        let snapshot = match self.take_snapshot(b) {
            Ok(snapshot) => snapshot,
            Err(error) => return self.give_up(&TrainError::Paging(error), events),
        };
        let (event, next) = match occasion {
            Occasion::Checkpoint => (TrainEvent::Checkpoint(snapshot), Phase::NextStep),
            Occasion::Pause => (TrainEvent::Paused(snapshot), Phase::Over),
            Occasion::End => return self.conclude(b, snapshot, events),
        };
        events.push(event);
        next
    }

    /// Brings the best adapter back where it is asked for, and goes on to compare.
    fn conclude(
        &mut self,
        b: &mut B,
        mut snapshot: TrainSnapshot,
        events: &mut Vec<TrainEvent>,
    ) -> Phase<B> {
        let best = self.progress.best.as_ref().filter(|best| best.step != snapshot.step);
        if let Some(best) = best.filter(|_| !self.best.is_empty()) {
            for (parameter, values) in self.trainee.parameters_mut().zip(&self.best) {
                b.overwrite(parameter.value, values);
            }
            let (step, loss) = (best.step, best.loss());
            let message = format!(
                "The result is the adapter of step {step}, whose validation loss {loss:.4} is the \
                 lowest"
            );
            events.push(TrainEvent::Told { step: snapshot.step, message });
            let key = format!("{}-best", snapshot.adapter.key);
            let adapter = self.trainee.adapter_weights(b, key, snapshot.adapter.dropout);
            snapshot.best = adapter.map(Arc::new);
        }
        Phase::Compare { snapshot, comparison: Comparison::new(&self.request) }
    }

    fn compare(
        &mut self,
        b: &mut B,
        model: &Model<B>,
        mut snapshot: TrainSnapshot,
        mut comparison: Comparison,
        events: &mut Vec<TrainEvent>,
    ) -> Phase<B> {
        let step = snapshot.step;
        let result = Arc::clone(snapshot.best.as_ref().unwrap_or(&snapshot.adapter));
        match comparison.advance(b, model, (&mut self.trainee, &result), &mut self.sight) {
            Ok(None) => return Phase::Compare { snapshot, comparison },
            Ok(Some(check)) => {
                if comparison.is_suspicious() {
                    let off = check.max_abs_logit_difference;
                    let message = format!(
                        "as it is served, the adapter gives logits that differ by {off:.1e} from \
                         those in training"
                    );
                    events.push(TrainEvent::Warning { step, message });
                }
                snapshot.served = Some(check);
                events.push(TrainEvent::Finished(snapshot));
            }
            Err(error @ TrainError::Picture { .. }) => return self.give_up(&error, events),
            Err(error) => {
                let message = format!("the adapter cannot be served: {error}");
                events.push(TrainEvent::Failed { step, message });
            }
        }
        Phase::Over
    }

    fn take_snapshot(&mut self, b: &mut B) -> std::io::Result<TrainSnapshot> {
        let step = self.progress.step;
        let state = snapshot::write(
            b,
            &mut self.trainee,
            &self.optimizer,
            &self.identity,
            &self.progress,
            &self.best,
        )?;
        let key = format!("step-{step}-{}", &hex::encode(Sha256::digest(&state))[..32]);
        let dropout = self.request.lora.dropout as f32;
        let adapter = self.trainee.adapter_weights(b, key, dropout);
        let validation = self.validation.filter(|validation| validation.step == step);
        Ok(TrainSnapshot {
            step,
            state: Arc::new(state),
            adapter: Arc::new(adapter.expect("a run trains an adapter")),
            best: None,
            served: None,
            metrics: self.metrics.clone().filter(|metrics| metrics.step == step),
            valid_loss: validation.map(|validation| validation.loss),
            valid_mean_token_accuracy: validation.map(|validation| validation.accuracy),
        })
    }
}

/// A pass over the validation examples.
fn validate<B: Backend>(request: &TrainRequest) -> Phase<B> {
    let longest = request.hyperparameters.max_seq_length;
    Phase::Evaluate(Evaluation::new(&request.validation, longest))
}

/// What there is to say before the first step.
fn opening<B: Backend>(
    plan: &Plan,
    trainee: &Trainee<B>,
    step: usize,
    h: &Hyperparameters,
) -> Vec<TrainEvent> {
    let mut events = vec![TrainEvent::Started {
        step,
        total_steps: plan.total_steps(),
        trainable_parameters: trainee.trainable_parameters(),
    }];
    let mut warn = |message| events.push(TrainEvent::Warning { step, message });
    if plan.dropped() > 0 {
        warn(format!(
            "{} training examples have no token to learn and are left out",
            plan.dropped()
        ));
    }
    if plan.cut() > 0 {
        warn(format!(
            "{} training examples are cut to `max_seq_length` = {} tokens",
            plan.cut(),
            h.max_seq_length
        ));
    }
    events
}
