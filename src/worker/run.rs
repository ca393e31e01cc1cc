//! The device loop.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, Ordering::Relaxed};
use std::time::Instant;

use tokio::sync::mpsc;

use super::lane::Lane;
use super::panics::PanicWatch;
use super::ration::Served;
use super::sequence::Request;
use super::trainer::Trainer;
use super::{Command, GenerationEvent, WorkerError, WorkerStats};
use crate::backend::Backend;
use crate::domain::GenerationRequest;

/// Everything the device thread owns.
pub(super) struct Device<B: Backend> {
    backend: B,
    lanes: Vec<Lane<B>>,
    /// The lane whose turn it is.
    turn: usize,
    /// When the last step ended, while steps follow one another.
    last_step: Option<Instant>,
    trainer: Trainer<B>,
    commands: mpsc::Receiver<Command>,
    stopping: Arc<AtomicBool>,
    stats: Arc<WorkerStats>,
    panics: PanicWatch,
}

impl<B: Backend> Device<B> {
    pub fn new(
        backend: B,
        lanes: Vec<Lane<B>>,
        commands: mpsc::Receiver<Command>,
        stopping: Arc<AtomicBool>,
        stats: Arc<WorkerStats>,
        trainer: Trainer<B>,
    ) -> Self {
        let blocks = lanes.iter().map(|lane| lane.scheduler.room.total()).sum();
        stats.blocks_total.store(blocks, Relaxed);
        let panics = PanicWatch::default();
        Self {
            backend,
            lanes,
            turn: 0,
            last_step: None,
            trainer,
            commands,
            stopping,
            stats,
            panics,
        }
    }

    /// Runs until every handle is gone and all work is done, until it is stopped, or until it has
    /// panicked so often that a new process is the better remedy.
    pub fn run(mut self) {
        while self.is_busy() || self.wait() {
            self.turn();
            if self.panics.too_many(self.stats.panics.load(Relaxed), Instant::now()) {
                tracing::error!("the device thread gives up: it panicked again and again");
                self.stopping.store(true, Ordering::SeqCst);
                break;
            }
        }
        self.refuse_late_commands();
    }

    /// One round of the loop.
    pub fn turn(&mut self) {
        self.receive_commands();
        self.release_ended();
        let served = self.decode_turn();
        self.trainer.turn(&mut self.backend, served, &self.stats);
        self.publish();
    }

    /// Adapters that sequences hold.
    #[cfg(test)]
    pub fn pinned_adapters(&self) -> usize {
        self.lanes.iter().map(|lane| lane.resident.pinned()).sum()
    }

    pub fn is_busy(&self) -> bool {
        self.is_serving() || !self.trainer.is_idle()
    }

    /// Takes what has arrived.
    fn receive_commands(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            self.accept(command);
        }
        if self.is_stopping() {
            self.refuse_waiting();
        }
    }

    /// Sleeps until there is something to do; false if nothing will come any more.
    fn wait(&mut self) -> bool {
        if self.is_stopping() {
            return false;
        }
        let command = self.commands.blocking_recv();
        command.map(|command| self.accept(command)).is_some()
    }

    /// Answers those who sent while the thread was ending.
    fn refuse_late_commands(&mut self) {
        self.commands.close();
        self.receive_commands();
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    fn is_serving(&self) -> bool {
        self.lanes.iter().any(|lane| lane.has_work())
    }

    fn accept(&mut self, command: Command) {
        match command {
            Command::Generate { request, stops, events } => {
                self.accept_request(*request, stops, events);
            }
            Command::Train { .. } | Command::Survey { .. } => {
                self.trainer.accept(&mut self.backend, command);
            }
            Command::Stop => {}
        }
    }

    fn accept_request(
        &mut self,
        ask: GenerationRequest,
        stops: Arc<[AtomicBool]>,
        events: mpsc::Sender<GenerationEvent>,
    ) {
        let cost = ask.cost();
        let lane = self.lanes.iter_mut().find(|lane| lane.model.info.name == ask.base);
        let Some(lane) = lane else {
            let error = WorkerError::UnknownBase(ask.base.to_string());
            let _gone_is_fine = events.try_send(GenerationEvent::Failed(error));
            return self.stats.leave(cost);
        };
        let context = lane.model.info.context_length;
        let border = lane.model.beyond().map(Into::into);
        if !lane.accept(Request::new(ask, stops, events, context, border)) {
            self.stats.leave(cost);
        }
    }

    /// Drains: nothing new begins, what runs goes on to its end.
    fn refuse_waiting(&mut self) {
        self.trainer.abandon(&mut self.backend);
        for lane in &mut self.lanes {
            let left = |request: &Request| self.stats.leave(request.ask.cost());
            lane.refuse_waiting(&WorkerError::Stopped, left);
        }
    }

    fn release_ended(&mut self) {
        for lane in &mut self.lanes {
            let left = |request: &Request| self.stats.leave(request.ask.cost());
            lane.release_ended(left);
        }
    }

    /// One step of the next base model that has work; `None` if nobody waits for an answer any more.
    fn decode_turn(&mut self) -> Option<Served> {
        let next = self.next_lane();
        self.backend.at_work(next.is_some());
        let Some(next) = next else {
            self.last_step = None;
            return None;
        };
        self.turn = (next + 1) % self.lanes.len();
        let scheduler = &mut self.lanes[next].scheduler;
        scheduler.trained = self.trainer.spent_seconds();
        scheduler.share_device(self.trainer.works_beside(&self.stats));
        let (lane, backend, stats) = (&mut self.lanes[next], &mut self.backend, &self.stats);
        let started = Instant::now();
        match catch_unwind(AssertUnwindSafe(|| lane.step(backend, stats))) {
            Ok(0) => {}
            Ok(rows) => {
                let interval = self.last_step.unwrap_or(started).elapsed();
                stats.note_step(rows, started.elapsed(), interval);
                self.last_step = Some(Instant::now());
            }
            Err(panic) => {
                let reason = panic_message(&*panic);
                stats.panics.fetch_add(1, Relaxed);
                tracing::error!(base = %lane.model.info.name, reason, "a step of serving panicked");
                lane.recover(backend, &reason);
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        let next = &self.lanes[self.next_lane()?].scheduler;
        Some(Served { seconds, room: next.room_for_training(seconds) })
    }

    /// The lane whose turn it is among those that have work.
    fn next_lane(&self) -> Option<usize> {
        let count = self.lanes.len();
        let mut order = (self.turn..self.turn + count).map(|turn| turn % count);
        order.find(|&lane| self.lanes[lane].has_work())
    }

    fn publish(&self) {
        let sum = |count: &dyn Fn(&Lane<B>) -> usize| self.lanes.iter().map(count).sum();
        let stats = &self.stats;
        stats.running.store(sum(&|lane| lane.scheduler.running.len()), Relaxed);
        stats.blocks_used.store(sum(&|lane| lane.scheduler.room.used()), Relaxed);
        stats.adapters_resident.store(sum(&|lane| lane.resident.len()), Relaxed);
        let preemptions = self.lanes.iter().map(|lane| lane.scheduler.preemptions).sum();
        stats.preemptions.store(preemptions, Relaxed);
    }
}

/// What a panic said.
pub(super) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}
