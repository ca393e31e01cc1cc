//! A panic on the device ends the work it is about, and nothing else.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use super::faulty::{Faults, FaultyBackend};
use super::harness::{Answer, Bench, adapter, ask, roomy, tiny};
use crate::domain::GenerationRequest;
use crate::worker::WorkerError;

const POISON: u32 = 60;

fn bench(faults: &Arc<Faults>) -> Bench<FaultyBackend> {
    Bench::with(FaultyBackend::new(faults), &[tiny("tiny", 1)], &roomy())
}

#[test]
fn a_passing_fault_is_survived_by_those_who_had_heard_nothing() {
    let faults = Faults::none();
    let mut bench = bench(&faults);
    let asks = [ask(&[1, 2, 3]), ask(&[4, 5])];
    let expected: Vec<Answer> = asks.iter().map(|ask| bench.answer(ask)).collect();
    faults.serving.store(true, SeqCst);
    let mut events: Vec<_> = asks.iter().map(|ask| bench.submit(ask)).collect();
    bench.drain();
    let answers: Vec<Answer> = events.iter_mut().map(Answer::heard).collect();
    assert_eq!(answers, expected);
    assert_eq!(bench.stats().panics.load(Relaxed), 1);
    bench.assert_nothing_is_held();
}

#[test]
fn those_who_had_heard_something_fail_and_those_outside_the_step_go_on() {
    let faults = Faults::none();
    let mut bench = bench(&faults);
    let worn = adapter(bench.handle.base("tiny").expect("loaded"), 2, 3);
    let dressed = GenerationRequest { adapter: Some(worn), ..ask(&[1, 2, 3]) };
    let expected = bench.answer(&dressed);
    let mut talking = bench.submit(&ask(&[7, 8]));
    bench.device.turn();
    faults.serving.store(true, SeqCst);
    let mut new = bench.submit(&dressed);
    bench.drain();
    let failed = Answer::heard(&mut talking).failed;
    assert_eq!(failed, Some(WorkerError::Device("a fault in serving".into())));
    assert_eq!(Answer::heard(&mut new), expected);
    bench.assert_nothing_is_held();
}

#[test]
fn a_request_that_panics_each_time_fails_alone() {
    let faults = Faults::none();
    faults.poison.store(POISON, SeqCst);
    let mut bench = bench(&faults);
    let fine = ask(&[1, 2, 3]);
    let expected = bench.answer(&fine);
    let mut before: Vec<_> = (0..3).map(|_| bench.submit(&fine)).collect();
    let mut poisonous = bench.submit(&ask(&[4, POISON]));
    let mut after = bench.submit(&fine);
    bench.drain();
    assert_eq!(
        Answer::heard(&mut poisonous).failed,
        Some(WorkerError::Device("poison in the batch".into()))
    );
    for events in before.iter_mut().chain([&mut after]) {
        assert_eq!(Answer::heard(events), expected);
    }
    bench.assert_nothing_is_held();
    assert_eq!(bench.answer(&fine), expected);
}

#[test]
fn a_device_that_panics_again_and_again_ends() {
    let faults = Faults::none();
    faults.poison.store(POISON, SeqCst);
    let bench = bench(&faults);
    let _poisonous: Vec<_> = (0..4).map(|_| bench.submit(&ask(&[4, POISON]))).collect();
    let (handle, open) = (bench.handle.clone(), bench.commands.clone());
    bench.device.run(); // returns although the door is open
    assert_eq!(handle.generate(ask(&[1])).err(), Some(WorkerError::Stopped));
    assert!(open.is_closed());
}
