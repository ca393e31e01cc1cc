//! `tandem bench` and `tandem doctor`: what the machine can do, and what we reach of it.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::Failure;
use crate::app::base_source;
use crate::bench::{BenchError, cuda, load, machine, offline, progress, table};
use crate::config::ModelOption;

/// What `tandem doctor` takes.
#[derive(Args, Clone, Debug)]
pub struct DoctorOptions {
    /// Compute threads; 0: what affinity and the cgroup quota allow.
    #[arg(long, env = "TANDEM_THREADS", default_value_t = 0)]
    threads: usize,
    /// Folder of NVIDIA's libnvrtc: of a CUDA toolkit or a Python environment.
    #[arg(long, env = "TANDEM_CUDA_LIBRARIES", value_name = "DIR")]
    cuda_libraries: Option<PathBuf>,
    /// Only compile the kernels for GPUs of these architectures, which needs no GPU.
    #[arg(long, value_name = "sm_75,sm_90,…", value_delimiter = ',')]
    compile_kernels: Vec<String>,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

/// What `tandem bench` takes.
#[derive(Args, Clone, Debug)]
pub struct BenchOptions {
    /// Model to measure on this machine, without a server; as in `tandem serve`.
    #[arg(long, value_name = "[NAME=]SOURCE[,quantize=…][,dtype=…]", default_value = "demo")]
    model: String,
    /// Measure a running server instead.
    #[arg(long, value_name = "URL", conflicts_with = "model")]
    url: Option<String>,
    /// Model names that requests to the server take in turn.
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        default_value = "demo",
        requires = "url"
    )]
    name: Vec<String>,
    /// Requests in flight.
    #[arg(long, default_value_t = 8, requires = "url")]
    concurrency: usize,
    /// Requests in all.
    #[arg(long, default_value_t = 32, requires = "url")]
    requests: usize,
    /// Tokens of each prompt.
    #[arg(long, default_value_t = 128, requires = "url")]
    prompt_tokens: usize,
    /// Tokens of each answer.
    #[arg(long, default_value_t = 64, requires = "url")]
    max_tokens: usize,
    /// Seed of the prompts.
    #[arg(long, default_value_t = 0, requires = "url")]
    seed: u64,
    /// Bearer key of the server.
    #[arg(long, env = "TANDEM_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Compute threads; 0: what affinity and the cgroup quota allow.
    #[arg(long, env = "TANDEM_THREADS", default_value_t = 0)]
    threads: usize,
    /// Print what each stage takes, too.
    #[arg(long)]
    stages: bool,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

/// Prints device, limits and kernels, or compiles kernels.
///
/// # Errors
/// Exit code 1 if a kernel does not compile or the compiler is not found.
pub(super) fn doctor(options: &DoctorOptions) -> Result<(), Failure> {
    if !options.compile_kernels.is_empty() {
        return compile_kernels(options);
    }
    let found = machine::Machine::measure(options.threads);
    let choices = machine::choices();
    let gpus = cuda::find(options.cuda_libraries.as_deref());
    if options.json {
        let report = serde_json::json!({"machine": found, "kernels": choices, "cuda": gpus});
        return print_json(&report);
    }
    print!("{}\n{}", table::machine(&found, &choices), table::cuda(&gpus));
    Ok(())
}

fn compile_kernels(options: &DoctorOptions) -> Result<(), Failure> {
    let libraries = options.cuda_libraries.as_deref();
    let compiled = cuda::compile(libraries, &options.compile_kernels)
        .map_err(|error| Failure::new(1, error))?;
    if options.json {
        return print_json(&compiled);
    }
    print!("{}", table::compiled(&compiled));
    Ok(())
}

/// Measures a model here, or a server elsewhere.
///
/// # Errors
/// Exit code 2 for an option, 78 for a model, 1 for a server that does not answer.
pub(super) fn bench(options: BenchOptions) -> Result<(), Failure> {
    match options.url.clone() {
        Some(url) => bench_server(options, url),
        None => bench_model(&options),
    }
}

fn bench_model(options: &BenchOptions) -> Result<(), Failure> {
    let model = ModelOption::parse(&options.model)
        .map_err(|error| Failure::new(error.exit_code(), error))?;
    let base = base_source(&model);
    let line = progress();
    let report =
        offline::run(&base.source, &base.options, options.threads, &line).map_err(failure)?;
    line.finish_and_clear();
    if options.json {
        return print_json(&report);
    }
    print!("{}", table::offline(&report, options.stages));
    Ok(())
}

fn bench_server(options: BenchOptions, url: String) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(1, format!("cannot start the runtime: {error}")))?;
    let load = load::Load {
        url,
        models: options.name,
        api_key: options.api_key,
        concurrency: options.concurrency,
        requests: options.requests,
        prompt_tokens: options.prompt_tokens,
        max_tokens: options.max_tokens,
        seed: options.seed,
    };
    let line = progress();
    let report = runtime.block_on(load::run(load, &line)).map_err(failure)?;
    line.finish_and_clear();
    if options.json {
        return print_json(&report);
    }
    print!("{}", table::load(&report));
    Ok(())
}

fn failure(error: BenchError) -> Failure {
    let code = match error {
        BenchError::Model(_) | BenchError::Context { .. } => 78,
        BenchError::Unreachable { .. } | BenchError::AllFailed { .. } => 1,
    };
    Failure::new(code, error)
}

fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::new(1, error))?;
    println!("{text}");
    Ok(())
}
