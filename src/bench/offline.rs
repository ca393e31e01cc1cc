//! One model on this machine, without a server: load, prefill, decode, with and without adapters.

use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use serde::Serialize;

use super::machine::{self, Machine};
use super::{BenchError, median};
use crate::backend::cpu::{Cost, CpuBackend, Stage};
use crate::backend::{BLOCK_TOKENS, Backend, SequenceRows};
use crate::domain::{AdapterSite, AdapterWeights, BaseInfo};
use crate::model::{Adapter, AdapterRows, LoadOptions, Model, ModelSource, Step};

/// Tokens before the decoded one.
const CONTEXT: usize = 128;
/// Adapters of one batch, and the rank of each.
pub const ADAPTERS: usize = 8;
pub const RANK: usize = 16;
/// How long one case is repeated, and how often at least.
const ENOUGH: Duration = Duration::from_millis(1500);
const LEAST_RUNS: usize = 3;

/// What is measured: so many sequences, each with so many rows of the step.
#[derive(Clone, Copy, Debug)]
struct Case {
    what: &'static str,
    sequences: usize,
    rows: usize,
    /// Tokens each sequence has in the cache already.
    start: usize,
    adapters: bool,
}

const fn case(what: &'static str, sequences: usize, rows: usize, adapters: bool) -> Case {
    Case { what, sequences, rows, start: if rows == 1 { CONTEXT } else { 0 }, adapters }
}

const CASES: [Case; 9] = [
    case("prefill", 1, 128, false),
    case("prefill", 1, 512, false),
    case("decode", 1, 1, false),
    case("decode", 8, 1, false),
    case("decode", 16, 1, false),
    case("prefill", 1, 512, true),
    case("decode", 1, 1, true),
    case("decode", 8, 1, true),
    case("decode", 16, 1, true),
];

/// Everything one run found.
#[derive(Debug, Serialize)]
pub struct Report {
    pub model: String,
    pub format: String,
    pub parameters: u64,
    pub weight_bytes: u64,
    pub load_seconds: f64,
    /// Resident memory after loading, and its peak until then.
    pub resident_bytes: Option<(u64, u64)>,
    pub machine: Machine,
    pub speeds: Vec<Speed>,
    pub stages: Vec<StageReport>,
}

/// The speed of one case.
#[derive(Debug, Serialize)]
pub struct Speed {
    pub what: &'static str,
    /// Rows of the step: tokens of the prompt, or sequences that decode.
    pub rows: usize,
    /// Adapters among them.
    pub adapters: usize,
    /// Median seconds of a step, and how many were timed.
    pub step_seconds: f64,
    pub steps: usize,
    pub tokens_per_second: f64,
    /// Of the time that reading every weight once and multiplying at the peak would allow.
    pub of_limit: f64,
}

/// What one stage of one case took.
#[derive(Debug, Serialize)]
pub struct StageReport {
    pub case: String,
    pub stage: String,
    pub calls: u64,
    pub seconds: f64,
    pub share: f64,
    pub bytes_per_second: f64,
    pub operations_per_second: f64,
}

/// Loads the model and measures every case.
///
/// # Errors
/// If it cannot be loaded, or its context is too short.
pub fn run(
    source: &ModelSource,
    options: &LoadOptions,
    threads: usize,
    progress: &ProgressBar,
) -> Result<Report, BenchError> {
    progress.set_message("measuring the machine");
    let machine = Machine::measure(threads);
    let mut b = CpuBackend::new(machine.threads);
    progress.set_message("loading the model");
    let began = Instant::now();
    let model = Model::load(&mut b, source, options)?;
    let load_seconds = began.elapsed().as_secs_f64();
    let resident_bytes = machine::resident_bytes();
    let (speeds, stages) = Bench::new(b, &model, machine.clone())?.measure(progress)?;
    let info = &model.info;
    Ok(Report {
        model: info.name.to_string(),
        format: info.dtype.clone(),
        parameters: info.parameters,
        weight_bytes: info.size_bytes,
        load_seconds,
        resident_bytes,
        machine,
        speeds,
        stages,
    })
}

struct Bench<'a> {
    b: CpuBackend,
    model: &'a Model<CpuBackend>,
    machine: Machine,
    cache: <CpuBackend as Backend>::Cache,
    adapters: Vec<Adapter<CpuBackend>>,
}

impl<'a> Bench<'a> {
    fn new(
        mut b: CpuBackend,
        model: &'a Model<CpuBackend>,
        machine: Machine,
    ) -> Result<Self, BenchError> {
        let (context, needed) = (model.info.context_length, CONTEXT + BLOCK_TOKENS);
        if context < needed {
            return Err(BenchError::Context { context, needed });
        }
        let prompt = CASES.map(|case| case.rows).into_iter().max().unwrap_or(0);
        let shared = prompt.max(CONTEXT).div_ceil(BLOCK_TOKENS);
        let most = CASES.map(|case| case.sequences).into_iter().max().unwrap_or(1);
        let cache = model.cache_as(&mut b, shared + most, model.kv_format());
        let adapters = (0..ADAPTERS as u64)
            .map(|seed| model.attach(&mut b, &random_adapter(&model.info, seed)))
            .collect::<Result<_, _>>()?;
        Ok(Self { b, model, machine, cache, adapters })
    }

    fn measure(
        mut self,
        progress: &ProgressBar,
    ) -> Result<(Vec<Speed>, Vec<StageReport>), BenchError> {
        let (mut speeds, mut stages) = (Vec::new(), Vec::new());
        for case in CASES {
            if case.start + case.rows > self.model.info.context_length {
                continue;
            }
            progress.set_message(format!("{} of {} rows", case.what, case.sequences * case.rows));
            self.step(&case); // warms caches and memory
            speeds.push(self.time(&case));
            stages.extend(self.stages(&case));
        }
        Ok((speeds, stages))
    }

    fn time(&mut self, case: &Case) -> Speed {
        let (began, mut times) = (Instant::now(), Vec::new());
        while times.len() < LEAST_RUNS || began.elapsed() < ENOUGH {
            times.push(self.step(case).as_secs_f64());
        }
        let (rows, steps, step_seconds) = (case.sequences * case.rows, times.len(), median(times));
        Speed {
            what: case.what,
            rows,
            adapters: if case.adapters { case.sequences.min(ADAPTERS) } else { 0 },
            step_seconds,
            steps,
            tokens_per_second: rows as f64 / step_seconds,
            of_limit: self.limit_seconds(rows) / step_seconds,
        }
    }

    /// The longer of reading all weights once and multiplying by them at the peak of their type.
    fn limit_seconds(&self, rows: usize) -> f64 {
        let (info, best) = (&self.model.info, self.machine.best());
        let peak = match info.dtype.as_str() {
            "f32" => Some(best.f32_operations),
            "bf16" | "nf4" | "nf4-dq" => best.bf16_operations,
            _ => best.int8_operations,
        };
        let weights: usize = info.modules.iter().map(|m| m.in_features * m.out_features).sum();
        let arithmetic = 2.0 * (rows * weights) as f64 / peak.unwrap_or(best.f32_operations);
        arithmetic.max(info.size_bytes as f64 / best.read_bytes)
    }

    fn stages(&mut self, case: &Case) -> Vec<StageReport> {
        const STEPS: u32 = 3;
        self.b.stages.open();
        for _ in 0..STEPS {
            self.step(case);
        }
        let book = self.b.stages.close();
        let total: Duration = book.iter().map(|(_, cost)| cost.time).sum();
        book.iter().map(|entry| stage_report(case, entry, STEPS, total)).collect()
    }

    /// One forward pass.
    fn step(&mut self, case: &Case) -> Duration {
        let vocabulary = self.model.info.vocab_size as u32;
        let rows = case.sequences * case.rows;
        let tokens: Vec<u32> = (0..rows as u32).map(|i| (i * 7919 + 11) % vocabulary).collect();
        let sequences: Vec<_> = (0..case.sequences).map(|i| sequence(case, i)).collect();
        let logits: Vec<usize> = sequences.iter().map(|s| s.rows.end - 1).collect();
        let Self { b, model, cache, adapters, .. } = self;
        let groups = if case.adapters { groups(adapters, case) } else { Vec::new() };
        let step = Step {
            tokens: &tokens,
            pictures: &[],
            sequences: &sequences,
            adapters: &groups,
            logits: &logits,
        };
        let began = Instant::now();
        let z = model.forward(b, cache, &step);
        let took = began.elapsed();
        b.recycle(z);
        took
    }
}

/// Which rows wear which adapter: the sequences in turn, as evenly as they fall.
fn groups<'a>(
    adapters: &'a [Adapter<CpuBackend>],
    case: &Case,
) -> Vec<AdapterRows<'a, CpuBackend>> {
    let (rows, count) = (case.sequences * case.rows, case.sequences.min(adapters.len()));
    let bound = |i: usize| i * case.sequences / count * case.rows;
    let group = |(i, adapter)| AdapterRows {
        rows: bound(i)..if i + 1 == count { rows } else { bound(i + 1) },
        adapter,
        scale: 1.0,
    };
    adapters.iter().take(count).enumerate().map(group).collect()
}

/// Sequence `index` of a case: the first blocks belong to all of them, the last to it alone.
fn sequence(case: &Case, index: usize) -> SequenceRows {
    let shared = case.start.max(if case.start == 0 { case.rows } else { 0 });
    let mut blocks: Vec<u32> = (0..shared.div_ceil(BLOCK_TOKENS) as u32).collect();
    if case.start > 0 {
        let first_own = CASES.map(|case| case.rows).into_iter().max().unwrap_or(0) / BLOCK_TOKENS;
        blocks.push((first_own + index) as u32);
    }
    let rows = index * case.rows..(index + 1) * case.rows;
    SequenceRows { read: case.start + case.rows, start: case.start, rows, blocks }
}

fn stage_report(
    case: &Case,
    (stage, cost): &(Stage, Cost),
    steps: u32,
    total: Duration,
) -> StageReport {
    let seconds = cost.time.as_secs_f64();
    let with = if case.adapters { " with adapters" } else { "" };
    StageReport {
        case: format!("{} {}{with}", case.what, case.sequences * case.rows),
        stage: match stage.shape {
            (0, 0) => stage.name.to_owned(),
            (n, k) => format!("{} {k} to {n}", stage.name),
        },
        calls: cost.calls / u64::from(steps),
        seconds: seconds / f64::from(steps),
        share: seconds / total.as_secs_f64().max(1e-12),
        bytes_per_second: cost.bytes as f64 / seconds.max(1e-12),
        operations_per_second: cost.operations as f64 / seconds.max(1e-12),
    }
}

/// An adapter with values like trained ones at every linear of every layer.
fn random_adapter(info: &BaseInfo, seed: u64) -> AdapterWeights {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut values = |count: usize, size: f32| -> Vec<f32> {
        (0..count)
            .map(|_| {
                // A linear congruential generator is random enough to be multiplied by.
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * size
            })
            .collect()
    };
    let layers = info.modules.iter().filter(|module| module.layer.is_some());
    let sites = layers.map(|module| AdapterSite {
        module: module.name.clone(),
        r: RANK,
        scaling: 1.0,
        a: values(RANK * module.in_features, (module.in_features as f32).powf(-0.5)),
        b: values(RANK * module.out_features, 0.01),
        magnitude: None,
    });
    let (key, sites) = (format!("bench-{seed}"), sites.collect());
    AdapterWeights { key, sites, saved: Vec::new(), dropout: 0.0 }
}
