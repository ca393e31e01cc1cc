//! Every setting with its unit, its default and where it may come from.
//!
//! A setting is taken from the command line, else from its `TANDEM_…` environment variable, else
//! from the file named by `--config`, else from its default. Whatever is wrong is one sentence
//! that names the setting.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

mod file;
mod model;
mod options;

pub use model::{AdapterOption, ModelOption, Quantize, Source, TemplateChoice};
pub use options::ServeOptions;

use crate::domain::{KvFormat, Speculation, WeightFormat};

/// Where computations run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The first GPU that can be used, else the CPU.
    Auto,
    Cpu,
    /// The GPU of this number, or none.
    Cuda(usize),
}

/// Where jobs, files and adapters are recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Database {
    /// `sqlite://PATH`; without one, `tandem.sqlite` in the data folder.
    Sqlite(PathBuf),
    /// `postgres://…`, whole. It may hold a password and is never logged.
    Postgres(String),
}

/// All settings of a server, settled.
#[derive(Clone, Debug)]
pub struct Config {
    /// At least one; the demo model if none was named.
    pub models: Vec<ModelOption>,
    pub adapters: Vec<AdapterOption>,
    pub database: Database,
    /// Folder of uploaded files, checkpoints and adapters.
    pub storage: PathBuf,
    pub listen: SocketAddr,
    pub data: PathBuf,
    pub device: Device,
    /// Where NVIDIA's libraries lie; none: wherever they are found.
    pub cuda_libraries: Option<PathBuf>,
    /// Bearer keys; empty: none is asked for, and only loopback is listened on.
    pub api_keys: Vec<String>,
    /// The third part of `ft:<base>:<organization>:<suffix>:<id>`.
    pub organization: String,
    /// Folder below which `POST /v1/adapters` may name a path; none: uploads only.
    pub adapter_root: Option<PathBuf>,
    /// Compute threads, the device thread included.
    pub threads: usize,
    /// Memory for keys and values of all sequences, in MiB, shared by the base models.
    pub kv_cache_mib: usize,
    /// How keys and values are held.
    pub kv_cache_dtype: Option<KvFormat>,
    /// Memory for resident adapters, in MiB, shared by the base models.
    pub adapter_cache_mib: usize,
    /// Tokens of one forward pass.
    pub max_batch_tokens: usize,
    /// Sequences of one forward pass.
    pub max_sequences: usize,
    /// Requests that may wait before a 429.
    pub max_waiting: usize,
    /// Tokens, prompt and longest answer, that those requests may ask for together.
    pub max_waiting_tokens: usize,
    /// Whether steps may check guessed tokens.
    pub speculative: Speculation,
    /// What training may add to the time between two tokens, on average; `None`: half of the cores beside
    /// requests or, on one core or a GPU, as much as leaves a step little longer than those that read
    /// prompts.
    pub training_latency_budget: Option<Duration>,
    /// Most memory for kept activations of a training run, in MiB; `None`: half of what is available.
    pub training_memory_mib: Option<usize>,
    /// How long a shutdown waits for running streams.
    pub shutdown_timeout: Duration,
    pub log_json: bool,
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ConfigError {
    #[error("`{place}` is `{value}`: {reason}")]
    Invalid { place: &'static str, value: String, reason: String },
    #[error("cannot read the configuration file {path}: {reason}")]
    File { path: PathBuf, reason: String },
    #[error(
        "listening on {listen} without an API key would let anybody in: set `--api-key`, or listen \
         on 127.0.0.1"
    )]
    OpenToTheWorld { listen: SocketAddr },
}

impl ConfigError {
    /// 78 for a configuration file, 2 for an option (see `sysexits.h` and the shell's custom).
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::File { .. } => 78,
            Self::Invalid { .. } | Self::OpenToTheWorld { .. } => 2,
        }
    }

    /// The same of a value that was given in another place.
    pub fn given_as(self, place: &'static str) -> Self {
        match self {
            Self::Invalid { value, reason, .. } => Self::Invalid { place, value, reason },
            other => other,
        }
    }
}

impl Quantize {
    /// The format linear layers are held in.
    pub fn format(self) -> WeightFormat {
        match self {
            Self::Nf4 => WeightFormat::Nf4 { double: true },
            Self::Fp4 => WeightFormat::Fp4 { double: true },
            Self::Q8_0 => WeightFormat::Q8_0,
            Self::Q4_0 => WeightFormat::Q4_0,
            Self::Q4K => WeightFormat::Q4K,
        }
    }
}
