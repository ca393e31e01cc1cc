//! Starting the device thread, and stopping it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc;

use super::kv::blocks_for;
use super::lane::Lane;
use super::run::{Device, panic_message};
use super::scheduler::StepLimits;
use super::trainer::{Beside, Trainer};
use super::training::Training;
use super::{Command, WorkerHandle, WorkerStats};
use crate::backend::{BLOCK_TOKENS, Backend};
use crate::domain::{BaseInfo, KvFormat, Speculation};
use crate::model::{LoadOptions, Model, ModelError, ModelSource};

/// Deep enough for any model's layers in an unoptimised build.
pub(super) const STACK_BYTES: usize = 64 << 20;
/// Logits of prompts being scored that one step may hold.
const SCORED_BYTES: usize = 64 << 20;
/// Contexts for which there is room beside those of a full batch, for prefixes to be found again.
const SPARE_CONTEXTS: usize = 8;

/// One base model to load.
#[derive(Clone, Debug)]
pub struct BaseSource {
    pub source: ModelSource,
    /// How to hold it, and the name requests use.
    pub options: LoadOptions,
}

/// The bounds of the device thread.
#[derive(Clone, Debug)]
pub struct WorkerSettings {
    /// Tokens one step may compute, decode and prefill together.
    pub max_batch_tokens: usize,
    /// Sequences that may run at the same time, per base model.
    pub max_sequences: usize,
    /// Requests that may wait; one more is refused as overloaded.
    pub max_waiting: usize,
    /// Tokens those requests may take together, prompt and longest answer; one alone may take more.
    pub max_waiting_tokens: usize,
    /// Most memory for keys and values, shared evenly among the base models; a model takes no more
    /// of it than a full batch at the end of its context and some prefixes besides.
    pub kv_cache_bytes: usize,
    /// How keys and values are held; `None`: [`KvFormat::beside`] the weights.
    pub kv_format: Option<KvFormat>,
    /// Memory for resident adapters, shared evenly among the base models.
    pub adapter_cache_bytes: usize,
    /// Memory for the features of pictures, shared evenly among the base models; a training run may
    /// take as much once more.
    pub picture_cache_bytes: usize,
    /// Time that training may add to a step of serving, on average; `None`: it works on a thread beside
    /// where the device can be shared, and elsewhere takes as much as leaves a step little longer than
    /// one that reads prompts.
    pub training_latency_budget: Option<Duration>,
    /// Most memory for activations that a training run keeps between forward and backward; `None`:
    /// half of what the machine has left when the run starts.
    pub training_memory_bytes: Option<usize>,
    /// Whether steps may check guessed tokens.
    pub speculation: Speculation,
}

impl Default for WorkerSettings {
    fn default() -> Self {
        Self {
            max_batch_tokens: 256,
            max_sequences: 64,
            max_waiting: 1024,
            max_waiting_tokens: usize::MAX,
            kv_cache_bytes: 1 << 30,
            kv_format: Some(KvFormat::F32),
            adapter_cache_bytes: 512 << 20,
            picture_cache_bytes: 256 << 20,
            training_latency_budget: None,
            training_memory_bytes: None,
            speculation: Speculation::Auto,
        }
    }
}

/// Why the device thread did not come up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("no base model was given")]
    NoBase,
    #[error("two base models are named `{0}`; give one of them another name")]
    SameName(String),
    #[error("cannot load the base model `{base}`: {source}")]
    Load { base: String, source: ModelError },
    #[error(
        "the KV cache of {given_bytes} bytes per base model holds no block of `{base}`, which takes \
         {block_bytes}; give it more"
    )]
    CacheTooSmall { base: String, block_bytes: usize, given_bytes: usize },
    #[error("cannot start the device thread: {0}")]
    Thread(#[from] std::io::Error),
    #[error(
        "the base models cannot be loaded: {0}; if memory is short, try `quantize=nf4`, a smaller \
         `--kv-cache-mib`, or `--device cpu`"
    )]
    Panicked(String),
    #[error("the device thread ended while it loaded the base models")]
    Died,
}

/// The device thread, to be stopped and waited for.
#[derive(Debug)]
pub struct Worker {
    thread: JoinHandle<()>,
    stopping: Arc<AtomicBool>,
    commands: mpsc::WeakSender<Command>,
}

/// Loads the base models on a thread of their own, which then serves and trains; returns when they
/// are loaded. The thread ends when every handle is dropped and its work is done, or when stopped.
///
/// # Errors
/// If a model cannot be loaded or the caches are too small for it.
pub fn start<B: Backend>(
    make_backend: impl FnOnce() -> B + Send + 'static,
    bases: Vec<BaseSource>,
    settings: WorkerSettings,
) -> Result<(WorkerHandle, Worker), StartError> {
    check_names(&bases)?;
    let stats = Arc::new(WorkerStats::default());
    stats.bound_queue(settings.max_waiting.max(1), settings.max_waiting_tokens);
    let stopping = Arc::new(AtomicBool::new(false));
    // Room for every request that may wait, and for the training runs and the stop beside them.
    let (commands, receiver) = mpsc::channel(settings.max_waiting.max(1) + 64);
    let (loaded, loading) = std::sync::mpsc::channel();
    let (flag, counters) = (Arc::clone(&stopping), Arc::clone(&stats));
    let thread = std::thread::Builder::new().name("device".into()).stack_size(STACK_BYTES).spawn(
        move || {
            let (backend, lanes) = match loading_caught(make_backend, &bases, &settings) {
                Ok(device) => device,
                Err(error) => return drop(loaded.send(Err(error))),
            };
            let trainer = match trainer(&backend, &lanes, &settings, &flag, &counters) {
                Ok(trainer) => trainer,
                Err(error) => return drop(loaded.send(Err(error.into()))),
            };
            let infos = lanes.iter().map(|lane| Arc::clone(&lane.model.info)).collect();
            if loaded.send(Ok(infos)).is_ok() {
                Device::new(backend, lanes, receiver, flag, counters, trainer).run();
            }
        },
    )?;
    let infos: Vec<Arc<BaseInfo>> = loading.recv().map_err(|_| StartError::Died)??;
    let worker = Worker { thread, stopping, commands: commands.downgrade() };
    Ok((WorkerHandle::new(commands, infos, stats), worker))
}

impl Worker {
    /// Asks the thread to end: what waits fails with [`super::WorkerError::Stopped`], what runs is
    /// finished, and a training run is dropped, to go on later from its last checkpoint.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        if let Some(commands) = self.commands.upgrade() {
            // If the channel is full the thread is awake and sees the flag anyway.
            let _awake_already = commands.try_send(Command::Stop);
        }
    }

    /// Whether the thread has ended, asked to or not.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for the thread to end; true if it ended in order, false if it panicked.
    pub fn join(self) -> bool {
        self.thread.join().is_ok()
    }
}

/// Who will train: a thread beside this one if the device can be shared, unless the operator says how
/// much training may lengthen a step.
pub(super) fn trainer<B: Backend>(
    backend: &B,
    lanes: &[Lane<B>],
    settings: &WorkerSettings,
    stopping: &Arc<AtomicBool>,
    stats: &Arc<WorkerStats>,
) -> std::io::Result<Trainer<B>> {
    let models = lanes.iter().map(|lane| Arc::clone(&lane.model)).collect();
    let training = Training::new(models, settings);
    match backend.beside().filter(|_| settings.training_latency_budget.is_none()) {
        Some(second) => Beside::start(second, training, Arc::clone(stopping), Arc::clone(stats))
            .map(Trainer::Beside),
        None => Ok(Trainer::Between(Box::new(training))),
    }
}

fn check_names(bases: &[BaseSource]) -> Result<(), StartError> {
    if bases.is_empty() {
        return Err(StartError::NoBase);
    }
    for (i, base) in bases.iter().enumerate() {
        let name = &base.options.name;
        if bases[..i].iter().any(|other| other.options.name == *name) {
            return Err(StartError::SameName(name.clone()));
        }
    }
    Ok(())
}

/// Makes the backend and loads the base models; a panic on the way, as of a GPU that is full, is an
/// error with its message.
fn loading_caught<B: Backend>(
    make_backend: impl FnOnce() -> B,
    bases: &[BaseSource],
    settings: &WorkerSettings,
) -> Result<(B, Vec<Lane<B>>), StartError> {
    let loaded = catch_unwind(AssertUnwindSafe(|| {
        let mut backend = make_backend();
        let lanes = load(&mut backend, bases, settings)?;
        Ok((backend, lanes))
    }));
    loaded.unwrap_or_else(|panic| Err(StartError::Panicked(panic_message(&*panic))))
}

/// Loads the base models, each with its own share of the caches.
pub(super) fn load<B: Backend>(
    b: &mut B,
    bases: &[BaseSource],
    settings: &WorkerSettings,
) -> Result<Vec<Lane<B>>, StartError> {
    bases.iter().map(|base| load_one(b, base, settings, bases.len())).collect()
}

fn load_one<B: Backend>(
    b: &mut B,
    base: &BaseSource,
    settings: &WorkerSettings,
    shares: usize,
) -> Result<Lane<B>, StartError> {
    let name = || base.options.name.clone();
    let mut model = Model::load(b, &base.source, &base.options)
        .map_err(|source| StartError::Load { base: name(), source })?;
    let given_bytes = settings.kv_cache_bytes / shares;
    let kv_format = settings.kv_format.unwrap_or_else(|| model.kv_format());
    let block_bytes = model.kv_bytes_per_block(b, kv_format);
    let tokens = settings.max_batch_tokens.max(1);
    let limits = StepLimits {
        tokens,
        sequences: settings.max_sequences.clamp(1, tokens),
        speculation: settings.speculation,
        scored_rows: (SCORED_BYTES / (4 * model.info.vocab_size).max(1)).max(1),
    };
    let useful = (limits.sequences + SPARE_CONTEXTS) * blocks_for(model.info.context_length);
    let blocks = (given_bytes / block_bytes.max(1)).min(useful);
    if blocks == 0 {
        return Err(StartError::CacheTooSmall { base: name(), block_bytes, given_bytes });
    }
    let (holds, context_length) = (blocks * BLOCK_TOKENS, model.info.context_length);
    if holds < context_length {
        tracing::warn!(
            model = &*model.info.name,
            context_length,
            served_context_length = holds,
            "the KV cache cannot hold the model's whole context: the context is served cut to what \
             it holds; a larger --kv-cache-mib serves more"
        );
        model.cut_context(holds);
    }
    let adapter_bytes = settings.adapter_cache_bytes / shares;
    let picture_bytes = settings.picture_cache_bytes / shares;
    let room = (blocks, kv_format);
    Ok(Lane::new(b, model, limits, room, adapter_bytes, picture_bytes))
}
