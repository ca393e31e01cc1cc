//! A run of training beside requests, and what its owner may do to it.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use futures::FutureExt;
use tokio::sync::mpsc;

use super::faulty::{Faults, FaultyBackend};
use super::harness::{Answer, Bench, Dice, ask, roomy, tiny};
use crate::backend::Backend;
use crate::domain::{AdapterWeights, Example, Hyperparameters, LoraSpec, LrScheduler};
use crate::worker::{Command, TrainControl, TrainEvent, TrainEvents, TrainRequest, TrainSnapshot};

pub fn run(job: &str, steps: usize) -> TrainRequest {
    let mut dice = Dice::new(12);
    let example = |_| {
        let ids = dice.tokens(14);
        Example::new(ids.clone(), ids.iter().map(|&id| id as i32).collect())
    };
    let modules = ["q_proj", "v_proj"].into_iter().flat_map(|module| {
        (0..2).map(move |layer| format!("model.layers.{layer}.self_attn.{module}"))
    });
    TrainRequest {
        job: job.to_owned(),
        base: "tiny".into(),
        lora: LoraSpec {
            r: 2,
            alpha: 4.0,
            dropout: 0.1,
            modules: modules.collect(),
            ranks: Vec::new(),
            use_rslora: false,
            ..LoraSpec::default()
        },
        hyperparameters: Hyperparameters {
            n_epochs: 1,
            batch_size: 4,
            micro_batch_size: 2,
            gradient_accumulation_steps: 2,
            learning_rate: 1e-2,
            learning_rate_multiplier: 1.0,
            lr_scheduler: LrScheduler::Linear,
            warmup_steps: 0,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            max_steps: Some(steps),
            max_seq_length: 64,
            packing: false,
            shuffle: true,
            neftune_alpha: 0.0,
            eval_steps: None,
            checkpoint_steps: None,
            ..Hyperparameters::default()
        },
        seed: 3,
        examples: Arc::new((0..16).map(example).collect()),
        validation: Arc::new(Vec::new()),
        init_adapter: None,
        resume: None,
        scratch: std::env::temp_dir(),
    }
}

pub fn hear(events: &mut TrainEvents) -> Vec<TrainEvent> {
    std::iter::from_fn(|| events.next().now_or_never().flatten()).collect()
}

pub fn finished(events: &[TrainEvent]) -> &TrainSnapshot {
    match events.last() {
        Some(TrainEvent::Finished(snapshot)) => snapshot,
        other => panic!("the run ended with {other:?}"),
    }
}

/// The run's adapter with nobody else on the device.
fn trained_alone(steps: usize) -> Arc<AdapterWeights> {
    let mut bench = Bench::new(&roomy());
    let mut events = bench.handle.train(run("alone", steps)).expect("room in the channel");
    bench.drain();
    Arc::clone(&finished(&hear(&mut events)).adapter)
}

fn turns<B: Backend>(bench: &mut Bench<B>, count: usize) {
    (0..count).for_each(|_| bench.device.turn());
}

#[test]
fn serving_changes_no_bit_of_what_is_trained_nor_training_of_what_is_served() {
    let expected = trained_alone(4);
    let mut bench = Bench::new(&roomy());
    let mut dice = Dice::new(9);
    let asks: Vec<_> = (0..24).map(|_| dice.request(&[None])).collect();
    let answers: Vec<Answer> = asks.iter().map(|ask| bench.answer(ask)).collect();
    let mut training = bench.handle.train(run("beside", 4)).expect("room in the channel");
    let mut serving: Vec<_> = Vec::new();
    for ask in &asks {
        serving.push(bench.submit(ask));
        turns(&mut bench, 2);
    }
    bench.drain();
    let heard: Vec<Answer> = serving.iter_mut().map(Answer::heard).collect();
    assert_eq!(heard, answers);
    let events = hear(&mut training);
    let trained = &finished(&events).adapter;
    assert_eq!((&trained.key, &trained.sites), (&expected.key, &expected.sites));
    assert_eq!(bench.stats().training_steps.load(Relaxed), 4);
    bench.assert_nothing_is_held();
}

#[test]
fn a_trained_adapter_is_served_at_once_and_changes_the_answer() {
    let mut bench = Bench::new(&roomy());
    let plain = bench.answer(&ask(&[1, 2, 3]));
    let mut events = bench.handle.train(run("use", 4)).expect("room in the channel");
    bench.drain();
    let adapter = Arc::clone(&finished(&hear(&mut events)).adapter);
    let mut dressed = ask(&[1, 2, 3]);
    dressed.sampling.logprobs = Some(0);
    let before = bench.answer(&dressed);
    dressed.adapter = Some(adapter);
    assert_ne!(bench.answer(&dressed), before);
    assert_eq!(bench.answer(&ask(&[1, 2, 3])), plain);
}

#[test]
fn runs_follow_one_another_and_a_cancelled_one_makes_way() {
    let mut bench = Bench::new(&roomy());
    let mut long = bench.handle.train(run("long", 1000)).expect("room in the channel");
    let mut unwanted = bench.handle.train(run("unwanted", 2)).expect("room in the channel");
    let mut last = bench.handle.train(run("last", 2)).expect("room in the channel");
    turns(&mut bench, 60);
    assert!(matches!(hear(&mut long).first(), Some(TrainEvent::Started { .. })));
    unwanted.control().cancel();
    long.control().cancel();
    bench.drain();
    assert!(matches!(hear(&mut long).last(), Some(TrainEvent::Cancelled)));
    assert!(matches!(hear(&mut unwanted)[..], [TrainEvent::Cancelled]));
    assert_eq!(finished(&hear(&mut last)).step, 2);
}

#[test]
fn a_run_whose_owner_left_is_dropped() {
    let mut bench = Bench::new(&roomy());
    let gone = bench.handle.train(run("gone", 1000)).expect("room in the channel");
    turns(&mut bench, 10);
    drop(gone);
    turns(&mut bench, 2);
    assert!(!bench.device.is_busy());
}

#[test]
fn a_paused_run_goes_on_from_its_snapshot_to_the_same_weights() {
    let expected = trained_alone(4);
    let mut bench = Bench::new(&roomy());
    let mut first = bench.handle.train(run("first", 4)).expect("room in the channel");
    turns(&mut bench, 20);
    first.control().pause();
    bench.drain();
    let events = hear(&mut first);
    let Some(TrainEvent::Paused(snapshot)) = events.last() else { panic!("not paused") };
    assert!(snapshot.step < 4);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("state.safetensors");
    std::fs::write(&path, &**snapshot.state).expect("the snapshot is written");
    let rest = TrainRequest { resume: Some(path), ..run("first", 4) };
    let mut second = bench.handle.train(rest).expect("room in the channel");
    bench.drain();
    assert_eq!(finished(&hear(&mut second)).adapter.sites, expected.sites);
}

#[test]
fn a_fault_in_training_fails_that_run_only() {
    let faults = Faults::none();
    let mut bench = Bench::with(FaultyBackend::new(&faults), &[tiny("tiny", 1)], &roomy());
    let expected = bench.answer(&ask(&[1, 2, 3]));
    faults.training.store(true, SeqCst);
    let mut failing = bench.handle.train(run("failing", 2)).expect("room in the channel");
    let mut next = bench.handle.train(run("next", 2)).expect("room in the channel");
    let mut serving = bench.submit(&ask(&[1, 2, 3]));
    bench.drain();
    let events = hear(&mut failing);
    assert!(
        matches!(events.last(), Some(TrainEvent::Failed { message, .. }) if message.contains("a fault in training"))
    );
    assert_eq!(finished(&hear(&mut next)).step, 2);
    assert_eq!(Answer::heard(&mut serving), expected);
    assert_eq!(bench.stats().panics.load(Relaxed), 1);
}

#[test]
fn a_run_that_cannot_start_says_why() {
    let mut bench = Bench::new(&roomy());
    let elsewhere = TrainRequest { base: "elsewhere".into(), ..run("a", 2) };
    let empty = TrainRequest { examples: Arc::new(Vec::new()), ..run("b", 2) };
    for (request, reason) in [(elsewhere, "`elsewhere` is not loaded"), (empty, "empty")] {
        let mut events = bench.handle.train(request).expect("room in the channel");
        bench.drain();
        let heard = hear(&mut events);
        let [TrainEvent::Failed { step: 0, message }] = &heard[..] else { panic!("{heard:?}") };
        assert!(message.contains(reason), "{message}");
    }
}

#[test]
fn a_run_whose_events_nobody_takes_stands_still_and_loses_none() {
    let mut bench = Bench::new(&roomy());
    let (sender, mut events) = mpsc::channel(1);
    let control = Arc::new(TrainControl::default());
    let command = Command::Train { run: Box::new(run("unread", 3)), control, events: sender };
    bench.commands.try_send(command).expect("room in the channel");
    turns(&mut bench, 400);
    assert_eq!(bench.stats().training_steps.load(Relaxed), 1, "it went on unheard");
    assert!(bench.answer_beside(&ask(&[1, 2])).is_complete());
    let mut steps = 0;
    while bench.device.is_busy() {
        while let Some(Some(event)) = events.recv().now_or_never() {
            steps += usize::from(matches!(event, TrainEvent::Step(_)));
        }
        bench.device.turn();
    }
    while let Some(Some(event)) = events.recv().now_or_never() {
        steps += usize::from(matches!(event, TrainEvent::Step(_)));
    }
    assert_eq!(steps, 3);
}

#[test]
fn a_stop_drops_the_run_and_its_owner_sees_the_channel_close() {
    let mut bench = Bench::new(&roomy());
    let mut events = bench.handle.train(run("dropped", 1000)).expect("room in the channel");
    turns(&mut bench, 10);
    bench.stopping.store(true, Relaxed);
    bench.drain();
    assert!(!hear(&mut events).iter().any(|event| matches!(event, TrainEvent::Cancelled)));
    assert!(matches!(events.next().now_or_never(), Some(None)));
}
