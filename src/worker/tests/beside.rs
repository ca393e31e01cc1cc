//! A run of training on a thread of its own, while the device thread serves.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use futures::FutureExt;

use super::faulty::{Faults, FaultyBackend};
use super::harness::{Answer, Bench, Dice, ask, roomy, tiny};
use super::training::{finished, hear, run};
use crate::backend::Backend;
use crate::backend::cpu::CpuBackend;
use crate::worker::{TrainEvent, TrainEvents, WorkerSettings};

/// A device whose cores serving and training share.
fn shared() -> Bench<CpuBackend> {
    Bench::with(CpuBackend::new(2), &[tiny("tiny", 1)], &roomy())
}

/// The device takes turns until the run is over.
fn until_over<B: Backend>(bench: &mut Bench<B>, events: &mut TrainEvents) -> Vec<TrainEvent> {
    let mut heard = Vec::new();
    while !matches!(
        heard.last(),
        Some(
            TrainEvent::Finished(_)
                | TrainEvent::Failed { .. }
                | TrainEvent::Cancelled
                | TrainEvent::Paused(_)
        )
    ) {
        bench.device.turn();
        heard.extend(hear(events));
        std::thread::yield_now();
    }
    heard
}

#[test]
fn neither_side_changes_a_bit_of_the_other() {
    let between = WorkerSettings { training_latency_budget: Some(Duration::ZERO), ..roomy() };
    let mut alone = Bench::with(CpuBackend::new(1), &[tiny("tiny", 1)], &between);
    let mut events = alone.handle.train(run("alone", 4)).expect("room in the channel");
    alone.drain();
    let expected = hear(&mut events);
    let mut dice = Dice::new(9);
    let asks: Vec<_> = (0..24).map(|_| dice.request(&[None])).collect();
    let answers: Vec<Answer> = asks.iter().map(|ask| alone.answer(ask)).collect();

    let mut bench = shared();
    let mut training = bench.handle.train(run("beside", 4)).expect("room in the channel");
    let mut serving: Vec<_> = asks.iter().map(|ask| bench.submit(ask)).collect();
    let events = until_over(&mut bench, &mut training);
    bench.drain();
    let heard: Vec<Answer> = serving.iter_mut().map(Answer::heard).collect();
    assert_eq!(heard, answers);
    assert_eq!(finished(&events).adapter.sites, finished(&expected).adapter.sites);
    assert_eq!(bench.stats().training_steps.load(Relaxed), 4);
    bench.assert_nothing_is_held();
}

#[test]
fn the_device_thread_need_not_turn_for_training_to_go_on() {
    let mut bench = shared();
    let mut events = bench.handle.train(run("beside", 4)).expect("room in the channel");
    bench.device.turn();
    assert!(!bench.device.is_busy());
    while bench.stats().training_steps.load(Relaxed) < 4 || bench.stats().training.load(Relaxed) {
        std::thread::yield_now();
    }
    assert_eq!(finished(&hear(&mut events)).step, 4);
}

#[test]
fn a_run_beside_can_be_paused_and_cancelled() {
    let mut bench = shared();
    let mut paused = bench.handle.train(run("paused", 1000)).expect("room in the channel");
    let mut unwanted = bench.handle.train(run("unwanted", 1000)).expect("room in the channel");
    bench.device.turn();
    unwanted.control().cancel();
    paused.control().pause();
    assert!(matches!(until_over(&mut bench, &mut paused).last(), Some(TrainEvent::Paused(_))));
    assert!(matches!(until_over(&mut bench, &mut unwanted)[..], [TrainEvent::Cancelled]));
}

#[test]
fn a_fault_beside_fails_that_run_only() {
    let faults = Faults::none();
    faults.beside.store(true, SeqCst);
    let mut bench = Bench::with(FaultyBackend::new(&faults), &[tiny("tiny", 1)], &roomy());
    let expected = bench.answer(&ask(&[1, 2, 3]));
    faults.training.store(true, SeqCst);
    let mut failing = bench.handle.train(run("failing", 2)).expect("room in the channel");
    let mut next = bench.handle.train(run("next", 2)).expect("room in the channel");
    let mut serving = bench.submit(&ask(&[1, 2, 3]));
    let failed = until_over(&mut bench, &mut failing);
    assert!(
        matches!(failed.last(), Some(TrainEvent::Failed { message, .. }) if message.contains("a fault in training"))
    );
    assert_eq!(finished(&until_over(&mut bench, &mut next)).step, 2);
    bench.drain();
    assert_eq!(Answer::heard(&mut serving), expected);
    assert_eq!(bench.stats().panics.load(Relaxed), 1);
}

#[test]
fn a_stop_drops_the_run_beside_and_its_owner_sees_the_channel_close() {
    let mut bench = shared();
    let mut events = bench.handle.train(run("dropped", 1_000_000)).expect("room in the channel");
    bench.device.turn();
    bench.stopping.store(true, SeqCst);
    let Bench { device, .. } = bench;
    drop(device); // waits for the thread
    assert!(!hear(&mut events).iter().any(|event| matches!(event, TrainEvent::Cancelled)));
    assert!(matches!(events.next().now_or_never(), Some(None)));
}
