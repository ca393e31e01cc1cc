//! The device thread from outside: what many callers ask of it at the same time is answered as if
//! each were alone, and it starts and ends in order.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tandem::backend::cpu::CpuBackend;
use tandem::domain::{
    AdapterSite, AdapterWeights, BaseInfo, Example, FinishReason, GenerationRequest,
    Hyperparameters, LoraSpec, LrScheduler, SampledToken, SamplingParams, WeightFormat,
};
use tandem::model::{LoadOptions, ModelSource};
use tandem::worker::{
    BaseSource, GenerationEvent, GenerationEvents, StartError, TrainEvent, TrainRequest, Worker,
    WorkerError, WorkerHandle, WorkerSettings, start,
};

fn base(name: &str, format: Option<WeightFormat>) -> BaseSource {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/llama_gqa/model");
    let options = LoadOptions { name: name.to_owned(), format };
    BaseSource { source: ModelSource::Folder(folder), options }
}

/// A cache so small that callers push one another out of it.
fn crowded() -> WorkerSettings {
    WorkerSettings {
        max_batch_tokens: 16,
        max_sequences: 4,
        kv_cache_bytes: 256 << 10,
        training_latency_budget: Some(Duration::from_millis(1)),
        ..Default::default()
    }
}

fn started(settings: WorkerSettings) -> (WorkerHandle, Worker) {
    let bases = vec![base("small", None), base("packed", Some(WeightFormat::Q8_0))];
    start(|| CpuBackend::new(2), bases, settings).expect("the golden model loads")
}

type Answer = Vec<(Vec<SampledToken>, Option<FinishReason>)>;

async fn answer(mut events: GenerationEvents, choices: usize) -> Result<Answer, WorkerError> {
    let mut answer = vec![(Vec::new(), None); choices];
    while let Some(event) = events.next().await {
        match event {
            GenerationEvent::Prefilled { .. } => {}
            GenerationEvent::Token { choice, token } => answer[choice].0.push(token),
            GenerationEvent::Finished { choice, reason } => answer[choice].1 = Some(reason),
            GenerationEvent::Failed(error) => return Err(error),
        }
    }
    assert!(answer.iter().all(|(_, reason)| reason.is_some()), "the channel closed too early");
    Ok(answer)
}

async fn ask(handle: &WorkerHandle, request: &GenerationRequest) -> Answer {
    let events = handle.generate(request.clone()).expect("the queue has room");
    answer(events, request.choices).await.expect("an answer")
}

/// Rank 2 at every module of the layers, the same numbers for the same `variant`.
fn adapter(info: &BaseInfo, variant: usize) -> Arc<AdapterWeights> {
    let wave = |count: usize, phase: usize| -> Vec<f32> {
        (0..count).map(|i| 0.4 * ((i * 7 + phase * 13) as f32).sin()).collect()
    };
    let modules = info.modules.iter().filter(|module| module.layer.is_some());
    let sites = modules.enumerate().map(|(i, module)| AdapterSite {
        module: module.name.clone(),
        r: 2,
        scaling: 1.0,
        a: wave(2 * module.in_features, i + variant),
        b: wave(2 * module.out_features, i + 3 * variant),
        magnitude: None,
    });
    let sites = sites.collect();
    Arc::new(AdapterWeights {
        key: format!("variant {variant}"),
        sites,
        saved: Vec::new(),
        dropout: 0.0,
    })
}

/// Requests of many kinds, on both bases, with and without adapters.
fn requests(handle: &WorkerHandle) -> Vec<GenerationRequest> {
    let request = |i: usize| {
        let base = if i.is_multiple_of(3) { "packed" } else { "small" };
        let info = handle.base(base).expect("loaded");
        let token = |j: usize| ((j * j + j * (i % 4) + 5) % info.vocab_size) as u32;
        GenerationRequest {
            base: base.into(),
            adapter: (i % 4 > 1).then(|| adapter(info, i % 4)),
            adapter_scale: if i.is_multiple_of(5) { 0.5 } else { 1.0 },
            tenant: format!("tenant {}", i % 2).into(),
            pictures: Vec::new(),
            prompt: (0..3 + (i * 5) % 37).map(token).collect(),
            choices: 1 + i % 3,
            sampling: SamplingParams {
                temperature: if i.is_multiple_of(4) { 0.0 } else { 0.9 },
                top_p: if i % 3 == 1 { 0.8 } else { 1.0 },
                frequency_penalty: if i % 5 == 1 { 0.4 } else { 0.0 },
                seed: i as u64,
                max_tokens: 4 + i % 9,
                logprobs: Some(i % 3),
                ..Default::default()
            },
            stop_tokens: vec![7],
            speculative: true,
        }
    };
    (0..24).map(request).collect()
}

fn run(info: &BaseInfo) -> TrainRequest {
    let ids: Vec<u32> = (0..12).map(|i| (i * 5 + 1) % info.vocab_size as u32).collect();
    let example = Example::new(ids.clone(), ids.iter().map(|&id| id as i32).collect());
    let last = |name: &&str| name.ends_with("q_proj") || name.ends_with("down_proj");
    let modules = info.modules.iter().map(|module| module.name.as_str()).filter(last);
    TrainRequest {
        job: "beside".to_owned(),
        base: Arc::clone(&info.name),
        lora: LoraSpec {
            r: 2,
            alpha: 4.0,
            dropout: 0.0,
            modules: modules.map(str::to_owned).collect(),
            ranks: Vec::new(),
            use_rslora: false,
            ..LoraSpec::default()
        },
        hyperparameters: Hyperparameters {
            n_epochs: 1,
            batch_size: 2,
            micro_batch_size: 1,
            gradient_accumulation_steps: 2,
            learning_rate: 5e-3,
            learning_rate_multiplier: 1.0,
            lr_scheduler: LrScheduler::Constant,
            warmup_steps: 0,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            max_steps: Some(3),
            max_seq_length: 32,
            packing: false,
            shuffle: false,
            neftune_alpha: 0.0,
            eval_steps: None,
            checkpoint_steps: None,
            ..Hyperparameters::default()
        },
        seed: 1,
        examples: Arc::new(vec![example.clone(), example]),
        validation: Arc::new(Vec::new()),
        init_adapter: None,
        resume: None,
        scratch: std::env::temp_dir(),
    }
}

async fn train(handle: &WorkerHandle) -> Vec<AdapterSite> {
    let request = run(handle.base("small").expect("loaded"));
    let mut events = handle.train(request).expect("the queue has room");
    while let Some(event) = events.next().await {
        match event {
            TrainEvent::Finished(snapshot) => return snapshot.adapter.sites.clone(),
            TrainEvent::Failed { message, .. } => panic!("{message}"),
            _ => {}
        }
    }
    panic!("the device thread went away")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_and_a_training_run_at_the_same_time_get_what_each_gets_alone() {
    let (alone, _worker) = started(WorkerSettings::default());
    let requests = requests(&alone);
    let mut expected = Vec::new();
    for (i, request) in requests.iter().enumerate() {
        let tenant = format!("alone {i}").into();
        expected.push(ask(&alone, &GenerationRequest { tenant, ..request.clone() }).await);
    }
    let expected_weights = train(&alone).await;

    let (handle, _worker) = started(crowded());
    let callers: Vec<_> = requests
        .into_iter()
        .map(|request| {
            let handle = handle.clone();
            tokio::spawn(async move { ask(&handle, &request).await })
        })
        .collect();
    let weights = train(&handle).await;
    for (caller, expected) in callers.into_iter().zip(&expected) {
        assert_eq!(caller.await.expect("the caller ended").as_slice(), expected.as_slice());
    }
    assert_eq!(weights, expected_weights);
}

#[tokio::test]
async fn a_stopped_thread_finishes_what_runs_refuses_the_rest_and_ends() {
    let (handle, worker) = started(WorkerSettings { max_sequences: 1, ..Default::default() });
    let mut long = requests(&handle).swap_remove(1);
    (long.sampling.max_tokens, long.choices, long.stop_tokens) = (20, 1, Vec::new());
    let mut runs = handle.generate(long.clone()).expect("the queue has room");
    assert!(matches!(runs.next().await, Some(GenerationEvent::Prefilled { .. })));
    worker.stop();
    let heard = answer(runs, 1).await.expect("what runs is finished");
    assert_eq!(heard[0].0.len(), 20);
    assert!(tokio::task::spawn_blocking(|| worker.join()).await.expect("it is waited for"));
    assert_eq!(handle.generate(long).err(), Some(WorkerError::Stopped));
}

#[tokio::test]
async fn the_thread_ends_when_nobody_holds_a_handle_and_its_work_is_done() {
    let (handle, worker) = started(WorkerSettings::default());
    let request = requests(&handle).swap_remove(2);
    let events = handle.generate(request.clone()).expect("the queue has room");
    drop(handle);
    assert!(answer(events, request.choices).await.is_ok());
    assert!(tokio::task::spawn_blocking(|| worker.join()).await.expect("it is waited for"));
}

#[test]
fn a_thread_that_cannot_start_says_why() {
    let try_start = |bases: Vec<BaseSource>, settings: WorkerSettings| {
        start(|| CpuBackend::new(1), bases, settings).expect_err("it cannot start")
    };
    let roomy = WorkerSettings::default;
    assert!(matches!(try_start(Vec::new(), roomy()), StartError::NoBase));
    let twins = vec![base("a", None), base("a", None)];
    assert!(matches!(try_start(twins, roomy()), StartError::SameName(name) if name == "a"));
    let tight = WorkerSettings { kv_cache_bytes: 100, ..roomy() };
    let error = try_start(vec![base("a", None)], tight);
    assert!(matches!(error, StartError::CacheTooSmall { given_bytes: 100, .. }), "{error}");
    let mut nowhere = base("a", None);
    nowhere.source = ModelSource::Folder("/nowhere/at/all".into());
    let error = try_start(vec![nowhere], roomy());
    assert!(matches!(error, StartError::Load { .. }), "{error}");
    let dying = start(
        || -> CpuBackend { panic!("no device here") },
        vec![base("a", None)],
        WorkerSettings::default(),
    );
    assert!(
        matches!(dying.err(), Some(StartError::Panicked(reason)) if reason == "no device here")
    );
}
