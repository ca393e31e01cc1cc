//! Where training happens: on a thread beside the device thread where the device can be shared, or
//! on the device thread, between two steps of serving.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::ration::Served;
use super::start::STACK_BYTES;
use super::training::{Training, Turn};
use super::{Command, WorkerStats};
use crate::backend::Backend;

/// How long to look away when the only work is a training run whose events nobody takes.
const UNREAD_PAUSE: Duration = Duration::from_millis(2);

/// Who trains.
pub(super) enum Trainer<B: Backend> {
    /// The device thread, in the time that steps of serving leave.
    Between(Box<Training<B>>),
    /// A thread of its own; serving has the rest of the device all the time.
    Beside(Beside),
}

/// The thread that trains. It ends, its work done or dropped, when this is.
pub(super) struct Beside {
    /// `None` only while it is being waited for.
    commands: Option<Sender<Command>>,
    thread: Option<JoinHandle<()>>,
    /// Seconds of the whole device that it was left after the last step.
    left: f64,
    stopping: Arc<AtomicBool>,
}

impl Beside {
    /// A thread that trains on a backend of its own until `stopping` is set.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn start<B: Backend>(
        backend: B,
        training: Training<B>,
        stopping: Arc<AtomicBool>,
        stats: Arc<WorkerStats>,
    ) -> std::io::Result<Self> {
        let (commands, inbox) = channel();
        let flag = Arc::clone(&stopping);
        let builder = std::thread::Builder::new().name("training".into()).stack_size(STACK_BYTES);
        let thread = builder.spawn(move || train(backend, training, &inbox, &flag, &stats))?;
        Ok(Self { commands: Some(commands), thread: Some(thread), left: 0.0, stopping })
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.stopping.store(true, SeqCst); // or a long run would hide that the device is gone
        }
        self.commands = None;
        // It catches the panics of the runs; one of its own was told by the panic hook.
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}

/// The life of the thread.
fn train<B: Backend>(
    mut b: B,
    mut training: Training<B>,
    inbox: &Receiver<Command>,
    stopping: &AtomicBool,
    stats: &WorkerStats,
) {
    loop {
        inbox.try_iter().for_each(|command| training.accept(&mut b, command));
        if stopping.load(SeqCst) {
            training.abandon(&mut b);
        }
        if training.is_idle() {
            b.at_work(false);
            stats.training.store(false, Relaxed);
            let Ok(command) = inbox.recv() else { return };
            b.at_work(true);
            training.accept(&mut b, command);
        } else if training.turn(&mut b, None, stats) == Turn::Unread {
            b.at_work(false);
            std::thread::sleep(UNREAD_PAUSE);
            b.at_work(true);
        }
    }
}

impl<B: Backend> Trainer<B> {
    /// Takes what concerns training.
    pub fn accept(&mut self, b: &mut B, command: Command) {
        match self {
            Self::Between(training) => training.accept(b, command),
            Self::Beside(Beside { commands, .. }) => {
                // Who asked a thread that is gone sees the channel of the answer close.
                let _gone_is_fine = commands.as_ref().map(|commands| commands.send(command));
            }
        }
    }

    /// Whether the device thread has nothing to do for it.
    pub fn is_idle(&self) -> bool {
        match self {
            Self::Between(training) => training.is_idle(),
            Self::Beside(_) => true,
        }
    }

    /// Units of training on this thread: as many as are allowed beside requests, one without any, so
    /// that a new request waits for no more than that. A thread beside gets the whole device for the
    /// time that units would have here.
    pub fn turn(&mut self, b: &mut B, served: Option<Served>, stats: &WorkerStats) {
        match self {
            Self::Between(training) => {
                let turn = training.turn(b, served, stats);
                if turn == Turn::Unread && served.is_none() {
                    std::thread::sleep(UNREAD_PAUSE);
                }
            }
            Self::Beside(beside) => {
                let trains = stats.training.load(Relaxed);
                let room = served.filter(|_| trains).map_or(0.0, |served| served.room);
                beside.left = room.max(0.0);
                if beside.left > 0.0 {
                    b.at_work(false);
                    std::thread::sleep(Duration::from_secs_f64(beside.left));
                }
            }
        }
    }

    /// Whether steps of serving share the device with a run.
    pub fn works_beside(&self, stats: &WorkerStats) -> bool {
        matches!(self, Self::Beside(_)) && stats.training.load(Relaxed)
    }

    /// Seconds that units took since the last step of serving, where no budget of the operator's
    /// covers them.
    pub fn spent_seconds(&self) -> f64 {
        match self {
            Self::Between(training) => training.spent_seconds(),
            Self::Beside(beside) => beside.left,
        }
    }

    /// Drops every run where it stands; a thread beside looks at the stop flag itself.
    pub fn abandon(&mut self, b: &mut B) {
        if let Self::Between(training) = self {
            training.abandon(b);
        }
    }
}
