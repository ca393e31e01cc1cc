//! How fast a LoRA job trains, where its time goes, and how near that is to what the machine can do.
//!
//! ```text
//! cargo bench --bench train -- MODEL_FOLDER f32|bf16|nf4|nf4-dq BATCH TOKENS [STEPS [MEMORY_MIB]]
//! ```
//! Trains rank 16 on every linear layer of the model for a few steps on random tokens, all of them
//! labelled. The limit is the number of multiplications the job cannot do without, recomputation
//! left out, over the speed of a large product measured in the same process.

mod machine;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tandem::backend::WeightFormat;
use tandem::backend::cpu::CpuBackend;
use tandem::domain::{
    BaseInfo, Example, Hyperparameters, LoraSpec, LossNormalization, LrScheduler, OptimizerKind,
};
use tandem::model::{LoadOptions, Model, ModelSource};
use tandem::train::{Run, TrainEvent, TrainRequest};

const RANK: usize = 16;

/// What the command line asks for.
struct Job {
    folder: PathBuf,
    format: WeightFormat,
    batch: usize,
    tokens: usize,
    steps: usize,
    keep_bytes: usize,
}

fn main() {
    let Some(job) = job(std::env::args().skip(1).filter(|word| word != "--bench")) else {
        eprintln!(
            "usage: train MODEL_FOLDER f32|bf16|nf4|nf4-dq BATCH TOKENS [STEPS [MEMORY_MIB]]"
        );
        return;
    };
    let peak = match job.format {
        WeightFormat::F32 => machine::f32_gemm(),
        _ => machine::bf16_gemm(),
    };
    machine::forget_peak();

    let started = Instant::now();
    let mut b = CpuBackend::for_this_machine();
    let options = LoadOptions { name: "base".into(), format: Some(job.format) };
    let model = Model::load(&mut b, &ModelSource::Folder(job.folder.clone()), &options)
        .unwrap_or_else(|error| panic!("{error}"));
    println!(
        "loaded in {:.2} s, peak {:.2} GiB",
        started.elapsed().as_secs_f64(),
        gib(machine::peak_bytes())
    );
    machine::forget_peak();
    let speeds = train(&mut b, &model, &job, started);
    report(&model.info, &job, speeds, peak);
}

fn job(words: impl Iterator<Item = String>) -> Option<Job> {
    let words: Vec<String> = words.collect();
    let number = |at: usize| words.get(at).and_then(|word| word.parse::<usize>().ok());
    let format = match words.get(1)?.as_str() {
        "f32" => WeightFormat::F32,
        "bf16" => WeightFormat::Bf16,
        "nf4" => WeightFormat::Nf4 { double: false },
        "nf4-dq" => WeightFormat::Nf4 { double: true },
        _ => return None,
    };
    Some(Job {
        folder: words[0].clone().into(),
        format,
        batch: number(2)?,
        tokens: number(3)?,
        steps: number(4).unwrap_or(4),
        keep_bytes: number(5).map_or(usize::MAX, |mib| mib << 20),
    })
}

/// Tokens per second of each step.
fn train(b: &mut CpuBackend, model: &Model<CpuBackend>, job: &Job, started: Instant) -> Vec<f64> {
    let mut run = Run::start(b, model, request(&model.info, job)).expect("the job starts");
    run.keep_activations(job.keep_bytes);
    let mut speeds = Vec::new();
    while !run.finished() {
        for event in run.advance(b, model) {
            if let TrainEvent::Step(metrics) = event {
                if speeds.is_empty() {
                    println!("first step after {:.2} s", started.elapsed().as_secs_f64());
                }
                println!(
                    "step {}: loss {:.6}, gradient {:.6}, {:.0} tokens/s",
                    metrics.step, metrics.train_loss, metrics.grad_norm, metrics.tokens_per_second
                );
                speeds.push(metrics.tokens_per_second);
            }
        }
    }
    speeds
}

fn report(info: &BaseInfo, job: &Job, mut speeds: Vec<f64>, peak: f64) {
    speeds.remove(0);
    speeds.sort_by(f64::total_cmp);
    let median = speeds[speeds.len() / 2];
    let limit = peak / work_per_token(info, job.tokens);
    println!(
        "median {median:.0} tokens/s, {:.0} % of the limit {limit:.0} at {:.0} GFLOP/s; peak {:.2} GiB",
        100.0 * median / limit,
        peak / 1e9,
        gib(machine::peak_bytes()),
    );
}

/// Floating-point operations per token: forward and `dx` of every frozen product, the five
/// products of the adapter, attention once forward and two and a half times backward.
fn work_per_token(info: &BaseInfo, tokens: usize) -> f64 {
    let layers = info.modules.iter().filter(|module| module.layer.is_some());
    let size = |m: &tandem::domain::ModuleShape| (m.in_features * m.out_features) as f64;
    let frozen: f64 = layers.clone().map(size).sum();
    let adapter: f64 = layers.map(|m| (RANK * (m.in_features + m.out_features)) as f64).sum();
    let head = (info.vocab_size * info.hidden_size) as f64;
    let attention = (info.num_layers * info.hidden_size * tokens) as f64;
    4.0 * (frozen + head) + 6.0 * adapter + 3.5 * 2.0 * attention
}

fn gib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

fn request(info: &BaseInfo, job: &Job) -> TrainRequest {
    let modules = info.modules.iter().filter(|module| module.layer.is_some());
    let mut state = 1u64;
    let mut token = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32 % info.vocab_size as u32
    };
    let mut example = || {
        let ids: Vec<u32> = (0..job.tokens).map(|_| token()).collect();
        let labels = ids.iter().map(|&id| id as i32).collect();
        Example::new(ids, labels)
    };
    TrainRequest {
        job: "bench".into(),
        base: Arc::clone(&info.name),
        lora: LoraSpec {
            r: RANK,
            modules: modules.map(|module| module.name.clone()).collect(),
            ..LoraSpec::default()
        },
        hyperparameters: hyperparameters(job),
        seed: 1,
        examples: Arc::new((0..job.batch * job.steps).map(|_| example()).collect()),
        validation: Arc::new(Vec::new()),
        init_adapter: None,
        resume: None,
        scratch: std::env::temp_dir(),
    }
}

fn hyperparameters(job: &Job) -> Hyperparameters {
    Hyperparameters {
        n_epochs: 1,
        batch_size: job.batch,
        micro_batch_size: job.batch,
        gradient_accumulation_steps: 1,
        learning_rate: 1e-4,
        learning_rate_multiplier: 1.0,
        lr_scheduler: LrScheduler::Constant,
        warmup_steps: 0,
        weight_decay: 0.0,
        adam_beta1: 0.9,
        adam_beta2: 0.999,
        adam_epsilon: 1e-8,
        max_grad_norm: 1.0,
        max_steps: Some(job.steps),
        max_seq_length: job.tokens,
        loss_normalization: LossNormalization::Window,
        packing: false,
        shuffle: false,
        neftune_alpha: 0.0,
        eval_steps: None,
        checkpoint_steps: None,
        optimizer: OptimizerKind::default(),
        optimizer_memory_bytes: None,
        loraplus_lr_ratio: None,
        modules_to_save_lr_ratio: None,
        early_stopping: None,
        load_best_model_at_end: false,
    }
}
