//! Guessing ahead is faster where the text repeats itself, and never shows.

use std::sync::atomic::Ordering::Relaxed;

use super::harness::{Answer, BLOCK_BYTES, Bench, Dice, adapter, ask, roomy, tiny, tiny_stretched};
use crate::backend::Backend;
use crate::backend::cpu::CpuBackend;
use crate::backend::reference::ReferenceBackend;
use crate::domain::{GenerationRequest, SamplingParams, Speculation};
use crate::worker::{BaseSource, WorkerSettings};

fn speculating(speculation: Speculation) -> WorkerSettings {
    WorkerSettings { speculation, ..roomy() }
}

/// Prompts that repeat themselves, under every sampling control.
fn requests<B: Backend>(bench: &Bench<B>) -> Vec<GenerationRequest> {
    let info = bench.handle.base("tiny").expect("loaded");
    let adapters = [None, Some(adapter(info, 2, 5)), Some(adapter(info, 3, 6))];
    let mut dice = Dice::new(21);
    let request = |number: usize| {
        let motif = dice.tokens(5);
        let mut ask = dice.request(&adapters);
        ask.prompt = motif.iter().copied().cycle().take(17 + number % 13).collect();
        ask.sampling.temperature = dice.pick(&[0.0, 0.2, 0.5, 1.0]);
        ask.sampling.max_tokens = 40;
        ask
    };
    (0..32).map(request).collect()
}

fn answers<B: Backend>(bench: &mut Bench<B>, asks: &[GenerationRequest]) -> Vec<Answer> {
    let mut events: Vec<_> = asks.iter().map(|ask| bench.submit(ask)).collect();
    bench.drain();
    events.iter_mut().map(Answer::heard).collect()
}

fn assert_drafts_do_not_show<B: Backend>(base: &BaseSource, make: impl Fn() -> B) {
    let bench =
        |settings: &WorkerSettings| Bench::with(make(), std::slice::from_ref(base), settings);
    let mut plain = bench(&speculating(Speculation::Off));
    let asks = requests(&plain);
    let expected = answers(&mut plain, &asks);
    assert_eq!(plain.stats().drafted_tokens.load(Relaxed), 0);
    let tight = WorkerSettings {
        kv_cache_bytes: 13 * BLOCK_BYTES,
        max_batch_tokens: 40,
        ..speculating(Speculation::Always)
    };
    for settings in [speculating(Speculation::Always), speculating(Speculation::Auto), tight] {
        let mut bench = bench(&settings);
        for ((answer, expected), ask) in answers(&mut bench, &asks).iter().zip(&expected).zip(&asks)
        {
            assert_eq!(answer, expected, "{settings:?} {ask:?}");
        }
        if settings.speculation == Speculation::Always {
            let [drafted, accepted, steps] = [
                &bench.stats().drafted_tokens,
                &bench.stats().accepted_tokens,
                &bench.stats().steps,
            ]
            .map(|count| count.load(Relaxed));
            assert!(0 < accepted && accepted < drafted, "{accepted} of {drafted}");
            assert!(steps > 0);
        }
        bench.assert_nothing_is_held();
    }
}

#[test]
fn speculative_answers_are_the_plain_ones() {
    assert_drafts_do_not_show(&tiny("tiny", 1), || ReferenceBackend);
}

#[test]
fn speculative_answers_are_the_plain_ones_where_long_texts_are_turned_otherwise() {
    for base in tiny_stretched() {
        assert_drafts_do_not_show(&base, || ReferenceBackend);
    }
}

#[test]
fn speculative_answers_are_the_plain_ones_on_the_cpu() {
    assert_drafts_do_not_show(&tiny("tiny", 1), || CpuBackend::new(2));
}

#[test]
fn a_text_that_repeats_itself_takes_fewer_steps_unless_the_request_declines() {
    let mut long = ask(&[5, 6, 7, 5, 6, 7, 5, 6]);
    // A bias that leaves the model one token: the dullest text there is.
    let logit_bias = vec![(7, 1000.0)];
    long.sampling =
        SamplingParams { temperature: 0.0, max_tokens: 60, logit_bias, ..Default::default() };
    let steps = |speculative: bool| {
        let mut bench = Bench::new(&speculating(Speculation::Always));
        let answer = bench.answer(&GenerationRequest { speculative, ..long.clone() });
        assert_eq!(answer.tokens(0), [7; 60]);
        bench.stats().steps.load(Relaxed)
    };
    assert_eq!(steps(false), 60);
    assert!(steps(true) < 12, "{}", steps(true));
}

#[test]
fn what_was_guessed_wrong_is_never_found_in_the_prefix_cache() {
    let mut bench = Bench::new(&speculating(Speculation::Always));
    let plain = |bench: &mut Bench<_>, prompt: &[u32]| {
        bench.answer(&GenerationRequest { speculative: false, ..ask(prompt) })
    };
    let mut dice = Dice::new(4);
    for _ in 0..20 {
        let motif = dice.tokens(4);
        let prompt: Vec<u32> = motif.iter().copied().cycle().take(30).collect();
        let mut first = ask(&prompt);
        first.sampling.max_tokens = 40;
        let said = bench.answer(&first).tokens(0);
        let longer = [&prompt[..], &said].concat();
        let cached = plain(&mut bench, &longer);
        let mut fresh = Bench::new(&speculating(Speculation::Off));
        assert_eq!(cached, plain(&mut fresh, &longer));
    }
    assert!(bench.stats().cached_tokens.load(Relaxed) > 0);
}
