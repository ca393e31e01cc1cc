//! Training beside serving: one run at a time, advanced by small units within a latency budget.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::ration::{Ration, Served};
use super::run::panic_message;
use super::survey::survey;
use super::{Command, TrainControl, WorkerError, WorkerSettings, WorkerStats};
use crate::backend::Backend;
use crate::model::Model;
use crate::train::{Run, TrainEvent, TrainRequest, Unit};

/// What a turn of training came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Idle,
    Advanced,
    /// The run's owner does not take its events; it stands still until they are taken.
    Unread,
}

/// The runs: one active, the others in line.
pub(super) struct Training<B: Backend> {
    /// The base models that may be trained on.
    models: Vec<Arc<Model<B>>>,
    waiting: VecDeque<(TrainRequest, Owner)>,
    active: Option<Active<B>>,
    /// Owners of ended runs that have not taken the last events.
    leaving: Vec<Owner>,
    ration: Ration,
    /// Bytes of activations a run may keep; `None`: half of what is available at its start.
    memory: Option<usize>,
    /// Bytes of what a run saw of pictures that it may keep.
    pictures: usize,
}

struct Active<B: Backend> {
    run: Run<B>,
    model: Arc<Model<B>>,
    owner: Owner,
}

/// Who hears of a run.
struct Owner {
    job: String,
    control: Arc<TrainControl>,
    events: mpsc::Sender<TrainEvent>,
    /// Events the channel has no room for yet.
    unread: VecDeque<TrainEvent>,
}

impl<B: Backend> Training<B> {
    /// No run yet, and the bounds of those to come.
    pub fn new(models: Vec<Arc<Model<B>>>, settings: &WorkerSettings) -> Self {
        let (waiting, leaving) = (VecDeque::new(), Vec::new());
        let ration = Ration::new(settings.training_latency_budget);
        let (memory, pictures) = (settings.training_memory_bytes, settings.picture_cache_bytes);
        Self { models, waiting, active: None, leaving, ration, memory, pictures }
    }

    /// Puts a run in line, or looks at what there is for one.
    pub fn accept(&mut self, b: &mut B, command: Command) {
        match command {
            Command::Train { run, control, events } => self.push(*run, control, events),
            Command::Survey { base, trial, done } => {
                let memory = (self.memory, self.pictures);
                let look = |model: &Arc<Model<B>>| survey(b, model, memory, trial);
                // Who asked sees the channel close if the base is unknown or the trial panics.
                let found = catch_unwind(AssertUnwindSafe(|| self.model(&base).map(look)));
                let _gone_is_fine = found.ok().flatten().map(|found| done.send(found));
            }
            Command::Generate { .. } | Command::Stop => {}
        }
    }

    fn push(
        &mut self,
        run: TrainRequest,
        control: Arc<TrainControl>,
        events: mpsc::Sender<TrainEvent>,
    ) {
        let owner = Owner { job: run.job.clone(), control, events, unread: VecDeque::new() };
        self.waiting.push_back((run, owner));
    }

    fn model(&self, base: &str) -> Option<&Arc<Model<B>>> {
        self.models.iter().find(|model| *model.info.name == *base)
    }

    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.active.is_none() && self.leaving.is_empty()
    }

    /// Spends what is allowed after a step of serving, or one unit if nobody else wants the device.
    pub fn turn(&mut self, b: &mut B, served: Option<Served>, stats: &WorkerStats) -> Turn {
        self.part_with_cancelled();
        if self.active.is_none() {
            self.start_next(b, stats);
        }
        stats.training.store(self.active.is_some(), Relaxed);
        let Some(served) = served else {
            self.ration.rest();
            return self.timed_unit(b, stats);
        };
        self.ration.open(served);
        let mut turn = Turn::Idle;
        while self.ration.allows(self.next_unit()) {
            turn = self.timed_unit(b, stats);
            if turn != Turn::Advanced {
                break;
            }
        }
        turn
    }

    /// Seconds that units took since the last step of serving, where no budget of the operator's covers
    /// them.
    pub fn spent_seconds(&self) -> f64 {
        self.ration.spent_seconds()
    }

    fn next_unit(&self) -> Unit {
        self.active.as_ref().map_or(Unit::Other, |active| active.run.next_unit())
    }

    /// Drops every run where it stands; their owners see their channels close.
    pub fn abandon(&mut self, b: &mut B) {
        self.waiting.clear();
        self.leaving.clear();
        if let Some(active) = self.active.take() {
            active.run.release(b);
            b.trim();
        }
    }

    fn timed_unit(&mut self, b: &mut B, stats: &WorkerStats) -> Turn {
        let (started, unit) = (Instant::now(), self.next_unit());
        let turn = self.unit(b, stats);
        if turn == Turn::Advanced {
            let elapsed = started.elapsed();
            stats.training_micros.fetch_add(elapsed.as_micros() as u64, Relaxed);
            stats.longest_unit_micros.fetch_max(elapsed.as_micros() as u64, Relaxed);
            self.ration.note(unit, elapsed.as_secs_f64());
        }
        turn
    }

    fn unit(&mut self, b: &mut B, stats: &WorkerStats) -> Turn {
        let Some(active) = &mut self.active else {
            return if self.leaving.is_empty() { Turn::Idle } else { Turn::Unread };
        };
        if active.owner.wants_no_more() {
            self.end(b, Some(TrainEvent::Cancelled));
            return Turn::Advanced;
        }
        if !active.owner.flush() {
            return Turn::Unread;
        }
        if active.owner.control.pause_requested() {
            active.run.request_pause();
        }
        match catch_unwind(AssertUnwindSafe(|| active.run.advance(b, &active.model))) {
            Ok(events) => self.tell(b, events, stats),
            Err(panic) => self.fail_active(&panic_message(&*panic), stats),
        }
        Turn::Advanced
    }

    fn tell(&mut self, b: &mut B, events: Vec<TrainEvent>, stats: &WorkerStats) {
        let Some(active) = &mut self.active else { return };
        let steps = events.iter().filter(|event| matches!(event, TrainEvent::Step(_))).count();
        stats.training_steps.fetch_add(steps as u64, Relaxed);
        active.owner.unread.extend(events);
        active.owner.flush();
        if active.run.finished() {
            self.end(b, None);
        }
    }

    /// Frees the active run; `last` is what its owner hears at the end.
    fn end(&mut self, b: &mut B, last: Option<TrainEvent>) {
        if let Some(Active { run, mut owner, .. }) = self.active.take() {
            run.release(b);
            b.trim();
            owner.unread.extend(last);
            self.part_with(owner);
        }
    }

    /// After a panic the run's buffers are not trusted to be given back; they are dropped.
    fn fail_active(&mut self, reason: &str, stats: &WorkerStats) {
        stats.panics.fetch_add(1, Relaxed);
        if let Some(Active { run, mut owner, .. }) = self.active.take() {
            tracing::error!(job.id = owner.job, reason, "a unit of training panicked");
            let message = WorkerError::Device(reason.to_owned()).to_string();
            owner.unread.push_back(TrainEvent::Failed { step: run.step(), message });
            self.part_with(owner);
        }
    }

    fn start_next(&mut self, b: &mut B, stats: &WorkerStats) {
        let Some((request, mut owner)) = self.waiting.pop_front() else { return };
        match self.start(b, request, stats) {
            Ok((mut run, model)) => {
                let half = || b.available_bytes().map_or(usize::MAX, |bytes| bytes / 2);
                run.keep_activations(self.memory.unwrap_or_else(half));
                run.keep_pictures(self.pictures);
                self.ration.forget();
                self.active = Some(Active { run, model, owner });
            }
            Err(message) => {
                owner.unread.push_back(TrainEvent::Failed { step: 0, message });
                self.part_with(owner);
            }
        }
    }

    /// Sets a run up on its base model.
    fn start(
        &self,
        b: &mut B,
        request: TrainRequest,
        stats: &WorkerStats,
    ) -> Result<(Run<B>, Arc<Model<B>>), String> {
        let unknown = || WorkerError::UnknownBase(request.base.to_string()).to_string();
        let model = self.model(&request.base).ok_or_else(unknown)?;
        match catch_unwind(AssertUnwindSafe(|| Run::start(b, model, request))) {
            Ok(run) => run.map(|run| (run, Arc::clone(model))).map_err(|error| error.to_string()),
            Err(panic) => {
                stats.panics.fetch_add(1, Relaxed);
                Err(WorkerError::Device(panic_message(&*panic)).to_string())
            }
        }
    }

    /// Lets go of the runs in line whose owners do not want them any more, and of owners who have
    /// heard everything.
    fn part_with_cancelled(&mut self) {
        self.leaving.retain_mut(|owner| !owner.events.is_closed() && !owner.flush());
        let unwanted = |(_, owner): &(TrainRequest, Owner)| owner.wants_no_more();
        while let Some(at) = self.waiting.iter().position(unwanted) {
            if let Some((_, mut owner)) = self.waiting.remove(at) {
                owner.unread.push_back(TrainEvent::Cancelled);
                self.part_with(owner);
            }
        }
    }

    fn part_with(&mut self, mut owner: Owner) {
        if !owner.flush() {
            self.leaving.push(owner);
        }
    }
}

impl Owner {
    fn wants_no_more(&self) -> bool {
        self.control.cancel_requested() || self.events.is_closed()
    }

    /// Hands over what the channel has room for; true if nothing is left to hand over.
    fn flush(&mut self) -> bool {
        while let Some(event) = self.unread.pop_front() {
            match self.events.try_send(event) {
                Ok(()) => {}
                Err(TrySendError::Full(event)) => {
                    self.unread.push_front(event);
                    return false;
                }
                Err(TrySendError::Closed(_)) => self.unread.clear(),
            }
        }
        true
    }
}
