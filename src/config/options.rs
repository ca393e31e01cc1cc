//! The options of `tandem serve`, and how they become a [`Config`].

use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::file::ConfigFile;
use super::model::Wanted;
use super::{AdapterOption, Config, ConfigError, Database, Device};
use crate::domain::{KvFormat, Speculation};
use crate::hub::HubSettings;

/// What `tandem serve` takes. Each option is also an environment variable.
#[derive(Args, Clone, Debug, Default)]
pub struct ServeOptions {
    /// Base model to serve; repeatable. SOURCE is a Hugging Face folder, a GGUF file,
    /// `hf:ORG/NAME[/FILE.gguf][@REVISION]` on the hub, or `demo`; SETTING is
    /// `quantize=nf4|fp4|q8_0|q4_0|q4_k`, `dtype=f32|f16|bf16` or `template=FILE|PRESET`. The
    /// variable holds one per line.
    #[arg(
        long,
        env = "TANDEM_MODEL",
        value_name = "[NAME=]SOURCE[,SETTING]",
        value_delimiter = '\n'
    )]
    pub model: Vec<String>,
    /// Adapter to register at start, a PEFT folder or a GGUF file; repeatable. The variable holds one
    /// per line.
    #[arg(long, env = "TANDEM_ADAPTER", value_name = "NAME=PATH[@BASE]", value_delimiter = '\n')]
    pub adapter: Vec<String>,
    /// Where jobs and files are recorded, `sqlite://PATH` or `postgres://…` [default: an SQLite file
    /// in the data folder].
    #[arg(long, env = "TANDEM_DATABASE", value_name = "URL", hide_env_values = true)]
    pub database: Option<String>,
    /// Folder of uploaded files, checkpoints and adapters [default: `artifacts` in the data folder].
    #[arg(long, env = "TANDEM_STORAGE", value_name = "DIR")]
    pub storage: Option<String>,
    /// Address to listen on, or a port of this machine alone [default: 127.0.0.1:8080].
    #[arg(long, env = "TANDEM_LISTEN", value_name = "[ADDRESS:]PORT", visible_alias = "port")]
    pub listen: Option<String>,
    /// Folder for everything that must survive a restart [default: ./tandem-data].
    #[arg(long, env = "TANDEM_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Where to compute: the first GPU that can be used, else the CPU; the CPU; GPU number N
    /// [default: auto].
    #[arg(long, env = "TANDEM_DEVICE", value_name = "auto|cpu|cuda:N")]
    pub device: Option<String>,
    /// Folder of NVIDIA's libnvrtc: of a CUDA toolkit or a Python environment [default: wherever it
    /// is found].
    #[arg(long, env = "TANDEM_CUDA_LIBRARIES", value_name = "DIR")]
    pub cuda_libraries: Option<PathBuf>,
    /// TOML file with any of these settings.
    #[arg(long, env = "TANDEM_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Bearer key that requests must carry; repeatable. Needed to listen beyond loopback.
    #[arg(
        long,
        env = "TANDEM_API_KEY",
        value_name = "KEY",
        hide_env_values = true,
        value_delimiter = ' '
    )]
    pub api_key: Vec<String>,
    /// Organization in the names of fine-tuned models [default: tandem].
    #[arg(long, env = "TANDEM_ORGANIZATION", value_name = "NAME")]
    pub organization: Option<String>,
    /// Folder below which `POST /v1/adapters` may name a path.
    #[arg(long, env = "TANDEM_ADAPTER_ROOT", value_name = "DIR")]
    pub adapter_root: Option<PathBuf>,
    /// Compute threads [default: what affinity and the cgroup quota allow].
    #[arg(long, env = "TANDEM_THREADS", value_name = "N")]
    pub threads: Option<usize>,
    /// Memory for keys and values, in MiB, shared by the base models [default: 512].
    #[arg(long, env = "TANDEM_KV_CACHE_MIB", value_name = "MIB")]
    pub kv_cache_mib: Option<usize>,
    /// How keys and values are held; bf16 and int8 hold two and four times as many tokens as f32.
    /// `auto` is f32 beside weights held in f32 or f16, else bf16 [default: auto].
    #[arg(long, env = "TANDEM_KV_CACHE_DTYPE", value_name = "auto|bf16|f32|int8")]
    pub kv_cache_dtype: Option<String>,
    /// Memory for resident adapters, in MiB, shared by the base models [default: 512].
    #[arg(long, env = "TANDEM_ADAPTER_CACHE_MIB", value_name = "MIB")]
    pub adapter_cache_mib: Option<usize>,
    /// Tokens of one forward pass [default: 512].
    #[arg(long, env = "TANDEM_MAX_BATCH_TOKENS", value_name = "N")]
    pub max_batch_tokens: Option<usize>,
    /// Sequences of one forward pass [default: 64].
    #[arg(long, env = "TANDEM_MAX_SEQUENCES", value_name = "N")]
    pub max_sequences: Option<usize>,
    /// Requests that may wait before the answer is 429 [default: 256].
    #[arg(long, env = "TANDEM_MAX_WAITING", value_name = "N")]
    pub max_waiting: Option<usize>,
    /// Tokens that waiting requests may ask for together before the answer is 429 [default: 1048576].
    #[arg(long, env = "TANDEM_MAX_WAITING_TOKENS", value_name = "N")]
    pub max_waiting_tokens: Option<usize>,
    /// Guess tokens from the text so far and check several at once: where it gains, never, or
    /// wherever there is a guess. The answers are the same [default: auto].
    #[arg(long, env = "TANDEM_SPECULATIVE", value_name = "auto|off|always")]
    pub speculative: Option<String>,
    /// What training may add to the time between two tokens on average, in milliseconds: it then works
    /// between steps, and a unit of it, less than a layer of a micro-batch, is not interrupted [default:
    /// beside requests training has half of the cores; on one core or a GPU, what makes no step much longer
    /// than steps that read prompts are].
    #[arg(long, env = "TANDEM_TRAINING_LATENCY_BUDGET", value_name = "MS")]
    pub training_latency_budget: Option<u64>,
    /// Most memory for activations kept between forward and backward of a training run, in MiB; what
    /// is not kept is computed again [default: half of what is available when the run starts].
    #[arg(long, env = "TANDEM_TRAINING_MEMORY_MIB", value_name = "MIB")]
    pub training_memory_mib: Option<usize>,
    /// How long a shutdown waits for running answers, in seconds [default: 30].
    #[arg(long, env = "TANDEM_SHUTDOWN_TIMEOUT", value_name = "SECONDS")]
    pub shutdown_timeout: Option<u64>,
    /// Write log lines as JSON.
    #[arg(long, env = "TANDEM_LOG_JSON")]
    pub log_json: bool,
}

fn invalid(place: &'static str, value: impl ToString, reason: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { place, value: value.to_string(), reason: reason.into() }
}

impl ServeOptions {
    /// Settles every setting: option, else environment, else file, else default.
    ///
    /// # Errors
    /// [`ConfigError`] naming the setting.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        let file = self.config.as_deref().map(ConfigFile::read).transpose()?.unwrap_or_default();
        let data = self.data.or(file.data).unwrap_or_else(|| "tandem-data".into());
        let wanted = wanted(first_named(self.model, file.model))?;
        let mut config = Config {
            models: Vec::new(),
            adapters: first_named(self.adapter, file.adapter)
                .iter()
                .map(|text| AdapterOption::parse(text))
                .collect::<Result<_, _>>()?,
            database: database(self.database.or(file.database), &data)?,
            storage: storage(self.storage.or(file.storage), &data)?,
            listen: listen(self.listen.or(file.listen))?,
            device: device(self.device.or(file.device))?,
            cuda_libraries: self.cuda_libraries.or(file.cuda_libraries),
            api_keys: api_keys(first_named(self.api_key, file.api_key))?,
            organization: organization(self.organization.or(file.organization))?,
            adapter_root: self.adapter_root.or(file.adapter_root),
            threads: threads(self.threads.or(file.threads))?,
            kv_cache_mib: at_least_one(
                "--kv-cache-mib",
                self.kv_cache_mib.or(file.kv_cache_mib),
                512,
            )?,
            kv_cache_dtype: one_of(
                "--kv-cache-dtype",
                self.kv_cache_dtype.or(file.kv_cache_dtype),
                KvFormat::CHOICES,
            )?,
            adapter_cache_mib: at_least_one(
                "--adapter-cache-mib",
                self.adapter_cache_mib.or(file.adapter_cache_mib),
                512,
            )?,
            max_batch_tokens: at_least_one(
                "--max-batch-tokens",
                self.max_batch_tokens.or(file.max_batch_tokens),
                512,
            )?,
            max_sequences: at_least_one(
                "--max-sequences",
                self.max_sequences.or(file.max_sequences),
                64,
            )?,
            max_waiting: at_least_one("--max-waiting", self.max_waiting.or(file.max_waiting), 256)?,
            max_waiting_tokens: at_least_one(
                "--max-waiting-tokens",
                self.max_waiting_tokens.or(file.max_waiting_tokens),
                1 << 20,
            )?,
            speculative: one_of(
                "--speculative",
                self.speculative.or(file.speculative),
                Speculation::ALL,
            )?,
            training_latency_budget: self
                .training_latency_budget
                .or(file.training_latency_budget_ms)
                .map(Duration::from_millis),
            training_memory_mib: self
                .training_memory_mib
                .or(file.training_memory_mib)
                .map(|mib| at_most("--training-memory-mib", mib, MOST))
                .transpose()?,
            shutdown_timeout: Duration::from_secs(
                self.shutdown_timeout.or(file.shutdown_timeout_secs).unwrap_or(30),
            ),
            log_json: self.log_json || file.log_json.unwrap_or(false),
            data,
        };
        if config.api_keys.is_empty() && !config.listen.ip().is_loopback() {
            return Err(ConfigError::OpenToTheWorld { listen: config.listen });
        }
        // Last, since it may download for a long time: whatever else is wrong has been said.
        let hub = HubSettings::from_environment();
        let models = wanted.into_iter().map(|wanted| wanted.locate(&hub));
        config.models = models.collect::<Result<_, _>>()?;
        Ok(config)
    }
}

/// A list from the command line or environment replaces the file's.
fn first_named(options: Vec<String>, file: Vec<String>) -> Vec<String> {
    if options.is_empty() { file } else { options }
}

/// The models that are named, no two alike; the demo model if there is none.
fn wanted(mut texts: Vec<String>) -> Result<Vec<Wanted>, ConfigError> {
    if texts.is_empty() {
        texts.push("demo".to_owned());
    }
    let mut models: Vec<Wanted> = Vec::with_capacity(texts.len());
    for text in &texts {
        let model = Wanted::parse(text)?;
        let name = &model.option.name;
        if name.is_empty() || name.starts_with("ft:") || name.contains('@') {
            return Err(invalid(
                "--model",
                text,
                "a name may not be empty, start with `ft:` or hold `@`",
            ));
        }
        if models.iter().any(|other| other.option.name == *name) {
            return Err(invalid("--model", text, "another model has that name; write NAME=SOURCE"));
        }
        models.push(model);
    }
    Ok(models)
}

fn database(url: Option<String>, data: &std::path::Path) -> Result<Database, ConfigError> {
    let Some(url) = url else { return Ok(Database::Sqlite(data.join("tandem.sqlite"))) };
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        return Ok(Database::Postgres(url));
    }
    match url.strip_prefix("sqlite://") {
        Some(path) if !path.is_empty() => Ok(Database::Sqlite(path.into())),
        // The value may hold a password in a form we do not recognise, so it is not repeated.
        _ => Err(invalid("--database", "…", "it must be postgres://… or sqlite://PATH")),
    }
}

fn storage(value: Option<String>, data: &std::path::Path) -> Result<PathBuf, ConfigError> {
    match value {
        None => Ok(data.join("artifacts")),
        Some(url) if url.contains("://") => {
            Err(invalid("--storage", url, "object stores are not built yet; give a folder"))
        }
        Some(folder) => Ok(folder.into()),
    }
}

fn listen(value: Option<String>) -> Result<SocketAddr, ConfigError> {
    let value = value.unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let reason =
        "it must be ADDRESS:PORT or a PORT of this machine alone, as 127.0.0.1:8080 or 8080";
    if let Ok(port) = value.parse() {
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    let found = value.to_socket_addrs().map_err(|_| invalid("--listen", &value, reason))?.next();
    found.ok_or_else(|| invalid("--listen", &value, reason))
}

fn device(value: Option<String>) -> Result<Device, ConfigError> {
    let reason = "it must be auto, cpu, or cuda:N with the number of a GPU, counted from 0";
    match value.as_deref() {
        None | Some("auto") => Ok(Device::Auto),
        Some("cpu") => Ok(Device::Cpu),
        Some("cuda") => Ok(Device::Cuda(0)),
        Some(other) => {
            let number = other.strip_prefix("cuda:").and_then(|number| number.parse().ok());
            number.map(Device::Cuda).ok_or_else(|| invalid("--device", other, reason))
        }
    }
}

fn api_keys(keys: Vec<String>) -> Result<Vec<String>, ConfigError> {
    match keys.iter().any(|key| key.len() < 16) {
        true => Err(invalid("--api-key", "…", "a key needs at least 16 characters")),
        false => Ok(keys),
    }
}

fn organization(value: Option<String>) -> Result<String, ConfigError> {
    let value = value.unwrap_or_else(|| "tandem".to_owned());
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if value.is_empty() || !value.chars().all(allowed) {
        return Err(invalid(
            "--organization",
            value,
            "only letters, digits, `-` and `_` are allowed",
        ));
    }
    Ok(value)
}

/// What affinity and the cgroup's CPU quota leave us; the standard library reads both.
fn usable_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The value of that name; without a name the first, which is the default.
fn one_of<T: Copy, const N: usize>(
    place: &'static str,
    value: Option<String>,
    all: [(&'static str, T); N],
) -> Result<T, ConfigError> {
    let Some(value) = value else { return Ok(all[0].1) };
    let names = || all.map(|(name, _)| name).join(", ");
    let found = all.iter().find(|(name, _)| *name == value);
    found
        .map(|&(_, choice)| choice)
        .ok_or_else(|| invalid(place, &value, format!("it is none of {}", names())))
}

/// Tokens, requests, sequences, MiB: nobody has more, and sums of them do not overflow.
const MOST: usize = u32::MAX as usize;

fn threads(value: Option<usize>) -> Result<usize, ConfigError> {
    const MOST_THREADS: usize = 1024;
    let value = at_least_one("--threads", value, usable_cores())?;
    at_most("--threads", value, MOST_THREADS.max(usable_cores()))
}

fn at_least_one(
    place: &'static str,
    value: Option<usize>,
    default: usize,
) -> Result<usize, ConfigError> {
    match value {
        Some(0) => Err(invalid(place, 0, "it must be at least 1")),
        Some(value) => at_most(place, value, MOST),
        None => Ok(default),
    }
}

fn at_most(place: &'static str, value: usize, most: usize) -> Result<usize, ConfigError> {
    match value <= most {
        true => Ok(value),
        false => Err(invalid(place, value, format!("it must be at most {most}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelOption;

    fn with_file(text: &str) -> (tempfile::TempDir, ServeOptions) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("tandem.toml");
        std::fs::write(&path, text).expect("a file");
        (folder, ServeOptions { config: Some(path), ..ServeOptions::default() })
    }

    #[test]
    fn nothing_given_serves_the_demo_model_on_loopback() {
        let config = ServeOptions::default().resolve().expect("the defaults are valid");
        assert_eq!(config.models, [ModelOption::demo()]);
        assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
        assert_eq!(config.database, Database::Sqlite("tandem-data/tandem.sqlite".into()));
    }

    #[test]
    fn an_option_wins_over_the_file_and_the_file_over_the_default() {
        let text = "listen = '127.0.0.1:9000'\nmax-waiting = 7\nmodel = 'demo'\n";
        let (_folder, options) = with_file(text);
        let config = ServeOptions { listen: Some("127.0.0.1:9001".into()), ..options };
        let config = config.resolve().expect("valid");
        assert_eq!((config.listen.port(), config.max_waiting, config.max_sequences), (9001, 7, 64));
    }

    #[test]
    fn an_unknown_key_of_the_file_is_named() {
        let (_folder, options) = with_file("# mine\ncolour = 'red'");
        let error = options.resolve().expect_err("must be refused");
        assert_eq!(error.exit_code(), 78);
        assert!(error.to_string().contains("line 2: unknown field `colour`"), "{error}");
    }

    #[test]
    fn what_the_file_expects_is_said_in_plain_words() {
        for (text, plain) in [
            ("max-waiting = 'many'", "expected a whole number that is not negative"),
            ("shutdown-timeout = -1", "expected a whole number that is not negative"),
            ("data = 7", "expected a path in quotes"),
        ] {
            let error = with_file(text).1.resolve().expect_err("must be refused").to_string();
            assert!(error.contains(plain), "{error}");
        }
    }

    #[test]
    fn a_path_may_hold_spaces_and_a_variable_several_models() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            options: ServeOptions,
        }
        let read = |args: &[&str]| <Line as clap::Parser>::parse_from(args).options;
        let options =
            read(&["tandem", "--model", "a=/my models/a", "--adapter", "x=/my adapters/x@a"]);
        assert_eq!(options.model, ["a=/my models/a"]);
        assert_eq!(options.adapter, ["x=/my adapters/x@a"]);
        // As the variable's value is split.
        assert_eq!(read(&["tandem", "--model", "a=/my models/a\ndemo"]).model.len(), 2);
    }

    #[test]
    fn beyond_loopback_a_key_is_needed() {
        let options = ServeOptions { listen: Some("0.0.0.0:8080".into()), ..Default::default() };
        assert!(matches!(options.clone().resolve(), Err(ConfigError::OpenToTheWorld { .. })));
        let keyed = ServeOptions { api_key: vec!["0123456789abcdef".into()], ..options };
        assert!(keyed.resolve().is_ok());
    }

    #[test]
    fn a_port_alone_is_one_of_this_machine() {
        let options = ServeOptions { listen: Some("9000".into()), ..Default::default() };
        assert_eq!(options.resolve().expect("a port").listen.to_string(), "127.0.0.1:9000");
    }

    #[test]
    fn values_that_make_no_sense_are_refused() {
        let refuse = |options: ServeOptions| options.resolve().expect_err("must be refused");
        for options in [
            ServeOptions { listen: Some("nonsense".into()), ..Default::default() },
            ServeOptions { threads: Some(0), ..Default::default() },
            ServeOptions { threads: Some(1_000_000), ..Default::default() },
            ServeOptions { max_waiting: Some(usize::MAX), ..Default::default() },
            ServeOptions { kv_cache_mib: Some(usize::MAX), ..Default::default() },
            ServeOptions { device: Some("cuda:first".into()), ..Default::default() },
            ServeOptions { database: Some("mysql://x".into()), ..Default::default() },
            ServeOptions { storage: Some("s3://bucket".into()), ..Default::default() },
            ServeOptions { model: vec!["demo".into(), "demo".into()], ..Default::default() },
            ServeOptions { api_key: vec!["short".into()], ..Default::default() },
            ServeOptions { kv_cache_dtype: Some("f8".into()), ..Default::default() },
            ServeOptions { speculative: Some("on".into()), ..Default::default() },
        ] {
            assert_eq!(refuse(options).exit_code(), 2);
        }
    }
}
