//! Fine-tuning runs: the reference trajectories, exact resumption, and what a run refuses.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::SafeTensors;
use serde_json::Value;
use tandem::backend::cpu::CpuBackend;
use tandem::backend::reference::ReferenceBackend;
use tandem::backend::{Backend, WeightFormat};
use tandem::domain::{
    AdapterSite, AdapterWeights, EarlyStopping, Example, Hyperparameters, IGNORE_INDEX, LoraSpec,
    LossNormalization, LrScheduler, OptimizerKind, TrainMetrics,
};
use tandem::model::{
    LoadOptions, MicroBatch, MicroBatchOptions, Model, ModelSource, Parameter, TrainBatch, Trainee,
};
use tandem::train::{Evaluation, Run, TrainEvent, TrainRequest, TrainSnapshot};

use crate::support::emulator;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

/// One stored trajectory: settings, batches, and where it began and ended.
struct Case {
    case: Value,
    examples: Vec<Example>,
    initial: HashMap<String, Vec<f32>>,
    finals: HashMap<String, Vec<f32>>,
    moments: HashMap<String, Vec<f32>>,
}

impl Case {
    fn read(name: &str) -> Self {
        let folder = golden("train").join(name);
        let text = std::fs::read_to_string(folder.join("case.json")).expect("case.json");
        let strip = |key: &str| key.trim_start_matches("base_model.model.").to_owned();
        let tensors = |file: &str| -> HashMap<String, Vec<f32>> {
            floats(&folder.join(file)).into_iter().map(|(key, v)| (strip(&key), v)).collect()
        };
        Self {
            case: serde_json::from_str(&text).expect("JSON"),
            examples: examples(&folder.join("batches.safetensors")),
            initial: tensors("initial/adapter_model.safetensors"),
            finals: tensors("final/adapter_model.safetensors"),
            moments: tensors("final_optimizer.safetensors"),
        }
    }

    fn setting(&self, name: &str) -> f64 {
        self.case["settings"][name].as_f64().expect("a number")
    }

    fn tolerance(&self, name: &str) -> f64 {
        self.case[name].as_f64().expect("a number")
    }

    fn lora<B: Backend>(&self, model: &Model<B>) -> LoraSpec {
        let lora = &self.case["settings"]["lora"];
        let targets: Vec<&str> = lora["target_modules"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let named = |name: &str| targets.iter().any(|target| name.ends_with(target));
        LoraSpec {
            r: lora["r"].as_u64().expect("r") as usize,
            alpha: lora["lora_alpha"].as_f64().expect("alpha"),
            dropout: 0.0,
            modules: model
                .info
                .modules
                .iter()
                .map(|m| m.name.clone())
                .filter(|n| named(n))
                .collect(),
            ranks: Vec::new(),
            use_rslora: false,
            ..LoraSpec::default()
        }
    }

    fn hyperparameters(&self) -> Hyperparameters {
        let betas = &self.case["settings"]["betas"];
        let (micro, accumulation) =
            (self.setting("batch") as usize, self.setting("accum") as usize);
        Hyperparameters {
            n_epochs: 1,
            batch_size: micro * accumulation,
            micro_batch_size: micro,
            gradient_accumulation_steps: accumulation,
            learning_rate: self.setting("lr"),
            learning_rate_multiplier: 1.0,
            lr_scheduler: LrScheduler::Cosine,
            warmup_steps: self.setting("warmup") as usize,
            weight_decay: self.setting("weight_decay"),
            adam_beta1: betas[0].as_f64().expect("beta 1"),
            adam_beta2: betas[1].as_f64().expect("beta 2"),
            adam_epsilon: self.setting("eps"),
            max_grad_norm: self.setting("clip"),
            max_steps: None,
            max_seq_length: 128,
            loss_normalization: match self.case["settings"]["norm"].as_str() {
                Some("micro") => LossNormalization::MicroBatch,
                _ => LossNormalization::Window,
            },
            packing: false,
            shuffle: false,
            neftune_alpha: 0.0,
            eval_steps: None,
            checkpoint_steps: None,
            ..Hyperparameters::default()
        }
    }

    fn adapter(&self, lora: &LoraSpec) -> AdapterWeights {
        let sites = lora.modules.iter().map(|module| AdapterSite {
            module: module.clone(),
            r: lora.r,
            scaling: (lora.alpha / lora.r as f64) as f32,
            a: self.initial[&format!("{module}.lora_A.weight")].clone(),
            b: self.initial[&format!("{module}.lora_B.weight")].clone(),
            magnitude: None,
        });
        AdapterWeights {
            key: "initial".into(),
            sites: sites.collect(),
            saved: Vec::new(),
            dropout: 0.0,
        }
    }

    fn request(&self, lora: LoraSpec) -> TrainRequest {
        TrainRequest {
            job: "parity".into(),
            base: "llama_gqa".into(),
            init_adapter: Some(Arc::new(self.adapter(&lora))),
            lora,
            hyperparameters: self.hyperparameters(),
            seed: 1,
            examples: Arc::new(self.examples.clone()),
            validation: Arc::new(Vec::new()),
            resume: None,
            scratch: std::env::temp_dir(),
        }
    }

    /// Holds one step against the reference: loss, gradient norm before clipping, rate.
    fn check_step(&self, step: usize, loss: f64, norm: f64, rate: f64) {
        let expected = &self.case["steps"][step - 1];
        let number = |key: &str| expected[key].as_f64().expect("a number");
        let off = (loss - number("loss")).abs();
        assert!(off <= self.tolerance("loss_atol"), "step {step}: loss off by {off:e}");
        let off = (norm / number("grad_norm") - 1.0).abs();
        assert!(off <= self.tolerance("grad_norm_rtol"), "step {step}: norm off by {off:e}");
        assert!((rate - number("lr")).abs() < 1e-9, "step {step}: rate {rate}");
    }

    fn check_final(&self, adapter: &AdapterWeights) {
        for site in &adapter.sites {
            for (matrix, values) in [("A", &site.a), ("B", &site.b)] {
                let name = format!("{}.lora_{matrix}.weight", site.module);
                let off = furthest(values, &self.finals[&name]);
                assert!(off <= self.tolerance("final_weight_atol"), "{name} off by {off:e}");
            }
        }
    }
}

fn furthest(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(x, y)| f64::from((x - y).abs())).fold(0.0, f64::max)
}

fn floats(path: &Path) -> HashMap<String, Vec<f32>> {
    let bytes = std::fs::read(path).expect("a golden file");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let read = |data: &[u8]| {
        data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    };
    file.iter().map(|(name, view)| (name.to_owned(), read(view.data()))).collect()
}

/// The rows of all batches, padding dropped.
fn examples(path: &Path) -> Vec<Example> {
    let bytes = std::fs::read(path).expect("batches");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let read = |name: &str| -> Vec<i64> {
        let view = file.tensor(name).expect("a tensor");
        let number = |b: &[u8]| i64::from_le_bytes(b.try_into().expect("eight bytes"));
        view.data().chunks_exact(8).map(number).collect()
    };
    let width = file.tensor("input_ids").expect("ids").shape()[2];
    let (ids, labels, mask) = (read("input_ids"), read("labels"), read("attention_mask"));
    let row = |at: usize| {
        let real = |i: &usize| mask[*i] == 1;
        let range = at * width..(at + 1) * width;
        Example::new(
            range.clone().filter(real).map(|i| ids[i] as u32).collect(),
            range.filter(real).map(|i| labels[i] as i32).collect(),
        )
    };
    (0..ids.len() / width).map(row).collect()
}

fn load<B: Backend>(b: &mut B) -> Model<B> {
    load_as(b, None)
}

fn load_as<B: Backend>(b: &mut B, format: Option<WeightFormat>) -> Model<B> {
    let source = ModelSource::Folder(golden("models/llama_gqa/model"));
    let options = LoadOptions { name: "llama_gqa".to_owned(), format };
    Model::load(b, &source, &options).expect("the tiny Llama")
}

/// Runs to the end and returns every event.
fn drive<B: Backend>(b: &mut B, model: &Model<B>, run: &mut Run<B>) -> Vec<TrainEvent> {
    let mut events = Vec::new();
    while !run.finished() {
        events.extend(run.advance(b, model));
    }
    events
}

fn steps(events: &[TrainEvent]) -> Vec<TrainMetrics> {
    let step = |event: &TrainEvent| match event {
        TrainEvent::Step(metrics) => Some(metrics.clone()),
        _ => None,
    };
    events.iter().filter_map(step).collect()
}

fn finished(events: &[TrainEvent]) -> &TrainSnapshot {
    match events.last() {
        Some(TrainEvent::Finished(snapshot)) => snapshot,
        other => panic!("the run ended with {other:?}"),
    }
}

fn follows_the_references<B: Backend>(b: &mut B) {
    ["llama_lora_token", "llama_lora_micro"].into_iter().for_each(|name| follows(b, name));
}

fn follows<B: Backend>(b: &mut B, name: &str) {
    let case = Case::read(name);
    let model = load(b);
    let request = case.request(case.lora(&model));
    let mut run = Run::start(b, &model, request).expect("a run");
    let events = drive(b, &model, &mut run);
    let steps = steps(&events);
    assert_eq!(steps.len(), 10);
    for m in &steps {
        case.check_step(m.step, m.train_loss, m.grad_norm, m.learning_rate);
    }
    case.check_final(&finished(&events).adapter);
    check_moments(&case, &finished(&events).state);
}

/// The moments in the state file, against torch's.
fn check_moments(case: &Case, state: &[u8]) {
    let file = SafeTensors::deserialize(state).expect("a state file");
    for (name, expected) in &case.moments {
        let view = file.tensor(name).expect("every moment is kept");
        let values: Vec<f32> = view
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        let size = expected.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let off = values.iter().zip(expected).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>();
        assert!(off.sqrt() <= 1e-3 * size, "{name} off by {:e}", off.sqrt() / size);
    }
}

#[test]
fn a_run_follows_the_reference_trajectories() {
    follows_the_references(&mut ReferenceBackend);
}

#[test]
fn what_is_kept_and_what_is_computed_again_are_the_same_bits() {
    let case = Case::read("llama_lora_token");
    for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Nf4 { double: true }] {
        let mut b = CpuBackend::new(2);
        let model = load_as(&mut b, Some(format));
        // Nothing, the last layer alone, and everything.
        let [none, some, all] = [0, 2 * 30 * 400 * 4, usize::MAX].map(|bytes| {
            let request = TrainRequest {
                hyperparameters: Hyperparameters { max_steps: Some(2), ..case.hyperparameters() },
                ..case.request(case.lora(&model))
            };
            let mut run = Run::start(&mut b, &model, request).expect("a run");
            run.keep_activations(bytes);
            let events = drive(&mut b, &model, &mut run);
            bits(&finished(&events).adapter)
        });
        assert!(none == some && none == all, "{format:?}");
    }
}

/// The gradients of one micro-batch, by tensor.
fn gradients<B: Backend>(b: &mut B, format: WeightFormat) -> Vec<(String, Vec<f32>)> {
    let case = Case::read("llama_lora_token");
    let model = load_as(b, Some(format));
    let adapter = case.adapter(&case.lora(&model));
    let mut trainee = Trainee::adapter(b, &model, &adapter).expect("a trainee");
    let batch = TrainBatch::new(&case.examples[..4]);
    let weight = 1.0 / batch.trained_tokens() as f32;
    let mut micro =
        MicroBatch::start(batch, MicroBatchOptions { weight, ..MicroBatchOptions::default() });
    while micro.advance(b, &model, &mut trainee).is_none() {}
    let read = |p: Parameter<'_, B>| (p.name.to_owned(), b.download(p.gradient));
    trainee.parameters_mut().map(read).collect()
}

/// The reference computes in `f32` with the same rounded weights, so that what differs is the
/// rounding of activations and adapters to bf16: half a unit of 2⁻⁸ each.
#[test]
fn gradients_in_bf16_stay_within_its_rounding() {
    for format in [WeightFormat::Bf16, WeightFormat::Nf4 { double: true }] {
        let expected = gradients(&mut ReferenceBackend, format);
        let found = gradients(&mut CpuBackend::new(2), format);
        for ((name, found), (_, expected)) in found.iter().zip(&expected) {
            let squares = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>();
            let size = squares(&mut expected.iter().map(|&x| f64::from(x))).sqrt();
            let pairs = found.iter().zip(expected);
            let off = squares(&mut pairs.map(|(x, y)| f64::from(x - y))).sqrt();
            assert!(size > 0.0 && off <= 0.04 * size, "{format:?} {name}: {:.4}", off / size);
        }
    }
}

/// A run with everything that draws random numbers, short enough to be run often.
fn lively<B: Backend>(model: &Model<B>) -> TrainRequest {
    let case = Case::read("llama_lora_token");
    let h = Hyperparameters {
        n_epochs: 2,
        micro_batch_size: 3,
        batch_size: 6,
        max_steps: Some(6),
        shuffle: true,
        packing: true,
        max_seq_length: 40,
        neftune_alpha: 5.0,
        eval_steps: Some(3),
        checkpoint_steps: Some(2),
        ..case.hyperparameters()
    };
    TrainRequest {
        init_adapter: None,
        lora: LoraSpec { dropout: 0.2, ..case.lora(model) },
        examples: Arc::new(case.examples[..24].to_vec()),
        validation: Arc::new(case.examples[24..30].to_vec()),
        hyperparameters: h,
        seed: 7,
        ..case.request(case.lora(model))
    }
}

fn bits(adapter: &AdapterWeights) -> Vec<u32> {
    let values = adapter.sites.iter().flat_map(|site| site.a.iter().chain(&site.b));
    values.map(|value| value.to_bits()).collect()
}

#[test]
fn a_run_resumed_at_any_checkpoint_ends_as_if_it_had_never_stopped() {
    let mut b = ReferenceBackend;
    let model = load(&mut b);
    let mut run = Run::start(&mut b, &model, lively(&model)).expect("a run");
    let events = drive(&mut b, &model, &mut run);
    let checkpoints: Vec<&TrainSnapshot> = events
        .iter()
        .filter_map(|event| match event {
            TrainEvent::Checkpoint(snapshot) => Some(snapshot),
            _ => None,
        })
        .collect();
    assert_eq!(checkpoints.iter().map(|snapshot| snapshot.step).collect::<Vec<_>>(), [2, 4]);
    let folder = tempfile::tempdir().expect("a folder");
    for checkpoint in checkpoints {
        let path = folder.path().join("state.safetensors");
        std::fs::write(&path, &*checkpoint.state).expect("written");
        let request = TrainRequest { resume: Some(path), ..lively(&model) };
        let mut again = Run::start(&mut b, &model, request).expect("resumed");
        assert_eq!(again.step(), checkpoint.step);
        let rest = drive(&mut b, &model, &mut again);
        assert_eq!(finished(&rest).state, finished(&events).state, "from {}", checkpoint.step);
        assert_eq!(bits(&finished(&rest).adapter), bits(&finished(&events).adapter));
    }
}

#[test]
fn a_paused_run_goes_on_where_it_stopped() {
    let mut b = ReferenceBackend;
    let model = load(&mut b);
    let mut whole = Run::start(&mut b, &model, lively(&model)).expect("a run");
    let expected = drive(&mut b, &model, &mut whole);

    let mut run = Run::start(&mut b, &model, lively(&model)).expect("a run");
    while run.step() < 1 {
        run.advance(&mut b, &model);
    }
    run.advance(&mut b, &model); // inside the second step
    run.request_pause();
    let events = drive(&mut b, &model, &mut run);
    let Some(TrainEvent::Paused(snapshot)) = events.last() else {
        panic!("paused, not {events:?}")
    };
    assert_eq!(snapshot.step, 2, "the step in progress is finished first");
    run.release(&mut b);

    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("state.safetensors");
    std::fs::write(&path, &*snapshot.state).expect("written");
    let request = TrainRequest { resume: Some(path), ..lively(&model) };
    let mut again = Run::start(&mut b, &model, request).expect("resumed");
    let rest = drive(&mut b, &model, &mut again);
    assert_eq!(bits(&finished(&rest).adapter), bits(&finished(&expected).adapter));
}

#[test]
fn a_checkpoint_of_another_run_or_a_damaged_one_is_refused_with_the_reason() {
    let mut b = ReferenceBackend;
    let model = load(&mut b);
    let mut run = Run::start(&mut b, &model, lively(&model)).expect("a run");
    let events = drive(&mut b, &model, &mut run);
    let state = &finished(&events).state;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("state.safetensors");
    let mut refused = |bytes: &[u8], change: &dyn Fn(&mut TrainRequest)| -> String {
        std::fs::write(&path, bytes).expect("written");
        let mut request = TrainRequest { resume: Some(path.clone()), ..lively(&model) };
        change(&mut request);
        match Run::start(&mut b, &model, request) {
            Ok(_) => panic!("it was accepted"),
            Err(error) => error.to_string(),
        }
    };
    let told = refused(state, &|request| request.seed = 8);
    assert!(told.contains("another seed"), "{told}");
    let told =
        refused(state, &|request| request.examples = Arc::new(request.examples[1..].to_vec()));
    assert!(told.contains("other training data"), "{told}");
    let told = refused(state, &|request| request.hyperparameters.learning_rate *= 2.0);
    assert!(told.contains("other hyperparameters"), "{told}");
    let told = refused(&state[..state.len() - 5], &|_| {});
    assert!(told.contains("cannot be gone on from"), "{told}");
    let told = refused(b"nonsense", &|_| {});
    assert!(told.contains("cannot be gone on from"), "{told}");
}

#[test]
fn accumulating_gradients_changes_nothing_but_memory() {
    let mut b = ReferenceBackend;
    let model = load(&mut b);
    let mut norms = Vec::new();
    for (micro, accumulation) in [(8, 1), (4, 2), (1, 8)] {
        let case = Case::read("llama_lora_token");
        let mut request = case.request(case.lora(&model));
        request.hyperparameters.micro_batch_size = micro;
        request.hyperparameters.gradient_accumulation_steps = accumulation;
        request.hyperparameters.max_steps = Some(1);
        let mut run = Run::start(&mut b, &model, request).expect("a run");
        let step = steps(&drive(&mut b, &model, &mut run)).remove(0);
        norms.push((step.train_loss, step.grad_norm));
    }
    for (loss, norm) in &norms[1..] {
        assert!((loss - norms[0].0).abs() < 1e-6 && (norm / norms[0].1 - 1.0).abs() < 1e-6);
    }
}

#[test]
fn a_diverging_run_fails_and_names_step_and_remedy() {
    let mut b = ReferenceBackend;
    let model = load(&mut b);
    let case = Case::read("llama_lora_token");
    let mut request = case.request(case.lora(&model));
    request.hyperparameters.learning_rate = 1e30;
    request.hyperparameters.lr_scheduler = LrScheduler::Constant;
    request.hyperparameters.warmup_steps = 0;
    let mut run = Run::start(&mut b, &model, request).expect("a run");
    let events = drive(&mut b, &model, &mut run);
    let Some(TrainEvent::Failed { step, message }) = events.last() else { panic!("{events:?}") };
    assert!(*step >= 2 && message.contains("learning_rate"), "step {step}: {message}");
}

#[test]
fn examples_without_labels_are_refused_or_told() {
    let mut b = ReferenceBackend;
    let model = load(&mut b);
    let mut request = lively(&model);
    let masked: Vec<Example> = request
        .examples
        .iter()
        .map(|e| Example::new(e.ids.clone(), vec![IGNORE_INDEX; e.ids.len()]))
        .collect();
    request.examples = Arc::new(masked.clone());
    let error = Run::start(&mut b, &model, request).err().expect("refused").to_string();
    assert!(error.contains("every label is masked"), "{error}");

    let mut request = lively(&model);
    let some = request.examples.iter().cloned().chain(masked).collect();
    request.examples = Arc::new(some);
    let mut run = Run::start(&mut b, &model, request).expect("a run");
    let events = run.advance(&mut b, &model);
    let warned = |event: &TrainEvent| matches!(event, TrainEvent::Warning { message, .. } if message.starts_with("24 training"));
    assert!(matches!(events[0], TrainEvent::Started { step: 0, total_steps: 6, .. }));
    assert!(events.iter().any(warned), "{events:?}");
}

#[test]
fn validation_comes_when_due_and_lands_in_the_snapshot() {
    let mut b = ReferenceBackend;
    let model = load(&mut b);
    let mut run = Run::start(&mut b, &model, lively(&model)).expect("a run");
    let events = drive(&mut b, &model, &mut run);
    let found: Vec<(usize, f64)> = events
        .iter()
        .filter_map(|event| match event {
            TrainEvent::Evaluated { step, loss, .. } => Some((*step, *loss)),
            _ => None,
        })
        .collect();
    assert_eq!(found.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [0, 3, 6]);
    let snapshot = finished(&events);
    assert_eq!(snapshot.valid_loss, Some(found[2].1));
    assert_eq!(snapshot.metrics.as_ref().map(|metrics| metrics.step), Some(6));
}

/// All events of a run, and of one that goes on from each of its checkpoints; every one of them
/// ends in the same bytes.
fn resumed_from_every_checkpoint(request: impl Fn() -> TrainRequest) -> Vec<TrainEvent> {
    let mut b = CpuBackend::new(2);
    let model = load(&mut b);
    let mut run = Run::start(&mut b, &model, request()).expect("a run");
    let events = drive(&mut b, &model, &mut run);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("state.safetensors");
    let mut resumed = 0;
    for event in &events {
        let TrainEvent::Checkpoint(checkpoint) = event else { continue };
        std::fs::write(&path, &**checkpoint.state).expect("written");
        let request = TrainRequest { resume: Some(path.clone()), ..request() };
        let mut again = Run::start(&mut b, &model, request).expect("resumed");
        let rest = drive(&mut b, &model, &mut again);
        let (found, expected) = (finished(&rest), finished(&events));
        assert_eq!(found.step, expected.step);
        assert!(found.state == expected.state, "from step {}", checkpoint.step);
        let best = |snapshot: &TrainSnapshot| snapshot.best.as_ref().map(|best| bits(best));
        assert_eq!(best(found), best(expected));
        resumed += 1;
    }
    assert!(resumed > 0);
    events
}

/// [`lively`] with matrices large enough for moments in 8 bits.
fn with_optimizer(optimizer: OptimizerKind, memory: Option<u64>) -> TrainRequest {
    let mut b = CpuBackend::new(1);
    let mut request = lively(&load(&mut b));
    request.lora.r = 64;
    request.hyperparameters.optimizer = optimizer;
    request.hyperparameters.optimizer_memory_bytes = memory;
    request.hyperparameters.loraplus_lr_ratio = Some(4.0);
    request
}

#[test]
fn every_optimizer_resumes_to_the_bit_and_paging_changes_none() {
    let ended = |optimizer, memory| {
        let events = resumed_from_every_checkpoint(|| with_optimizer(optimizer, memory));
        bits(&finished(&events).adapter)
    };
    let plain = ended(OptimizerKind::AdamW, None);
    assert_eq!(ended(OptimizerKind::PagedAdamW, Some(100_000)), plain);
    let eight = ended(OptimizerKind::AdamW8Bit, None);
    assert_ne!(eight, plain);
    assert_eq!(ended(OptimizerKind::PagedAdamW8Bit, Some(0)), eight);
}

#[test]
fn a_run_that_gets_no_better_stops_and_gives_its_best_adapter() {
    let request = || {
        let mut b = CpuBackend::new(1);
        let mut request = lively(&load(&mut b));
        let h = &mut request.hyperparameters;
        (h.max_steps, h.warmup_steps, h.eval_steps) = (Some(60), 0, Some(1));
        (h.lr_scheduler, h.learning_rate) = (LrScheduler::Constant, 2e-2);
        h.early_stopping = Some(EarlyStopping { patience: 3, min_delta: 0.0 });
        h.load_best_model_at_end = true;
        request
    };
    let events = resumed_from_every_checkpoint(request);
    let losses: Vec<f64> = events
        .iter()
        .filter_map(|event| match event {
            TrainEvent::Evaluated { loss, .. } => Some(*loss),
            _ => None,
        })
        .collect();
    let snapshot = finished(&events);
    assert!(snapshot.step < 60 && losses.len() == snapshot.step + 1, "{losses:?}");
    let least = (0..losses.len()).min_by(|&i, &j| losses[i].total_cmp(&losses[j]));
    assert_eq!(least, Some(snapshot.step - 3), "patience is over: {losses:?}");
    let best = snapshot.best.as_ref().expect("the last is not the best");
    assert_ne!(bits(best), bits(&snapshot.adapter));
    let told = |text: &str| {
        let tells = |event: &TrainEvent| matches!(event, TrainEvent::Told { message, .. } if message.contains(text));
        events.iter().any(tells)
    };
    assert!(told("Stopped early: 3 validations") && told("The result is the adapter of step"));
    // The best adapter's loss, found anew.
    let mut b = CpuBackend::new(2);
    let model = load(&mut b);
    let mut trainee = Trainee::adapter(&mut b, &model, best).expect("a trainee");
    let request = request();
    let mut pass = Evaluation::new(&request.validation, request.hyperparameters.max_seq_length);
    let sum = loop {
        if let Some(sum) = pass.advance(&mut b, &model, &mut trainee) {
            break sum;
        }
    };
    assert_eq!(sum.loss / sum.tokens as f64, losses[snapshot.step - 3]);
}

#[test]
fn dora_and_whole_modules_are_trained_kept_and_served_as_trained() {
    let request = || {
        let mut b = CpuBackend::new(1);
        let mut request = lively(&load(&mut b));
        request.lora.use_dora = true;
        request.lora.modules_to_save = vec!["model.embed_tokens".into(), "lm_head".into()];
        request
    };
    let events = resumed_from_every_checkpoint(request);
    let snapshot = finished(&events);
    let Some(TrainEvent::Started { trainable_parameters, .. }) = events.first() else {
        panic!("{events:?}")
    };
    assert_eq!(*trainable_parameters, snapshot.adapter.parameters());
    assert!(snapshot.adapter.sites.iter().all(|site| site.magnitude.is_some()));
    assert_eq!(snapshot.adapter.saved.len(), 2);
    let mut b = CpuBackend::new(1);
    let model = load(&mut b);
    for saved in &snapshot.adapter.saved {
        assert_ne!(saved.values, model.saved_values(&b, &saved.module).expect("a table"));
    }
    let served = snapshot.served.expect("compared");
    assert!(served.tokens > 50 && served.top1_agreement == 1.0, "{served:?}");
    assert!(served.max_abs_logit_difference < 1e-4, "{served:?}");
}

#[test]
fn a_run_follows_the_reference_trajectories_on_the_cpu_backend() {
    follows_the_references(&mut CpuBackend::new(2));
}

#[test]
fn a_run_follows_the_reference_trajectory_on_the_emulated_cuda_backend() {
    follows(&mut emulator::cuda(), "llama_lora_token");
}

#[test]
fn the_threads_of_the_cpu_backend_do_not_change_a_bit() {
    let finals = [1, 2].map(|threads| {
        let mut b = CpuBackend::new(threads);
        let model = load(&mut b);
        let mut run = Run::start(&mut b, &model, lively(&model)).expect("a run");
        bits(&finished(&drive(&mut b, &model, &mut run)).adapter)
    });
    assert_eq!(finals[0], finals[1]);
}
