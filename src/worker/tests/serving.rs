//! What runs together never shows in what is answered.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::harness::{
    Answer, BLOCK_BYTES, Bench, CONTEXT, Dice, adapter, ask, block_bytes, roomy, tiny, tiny_as,
    tiny_stretched,
};
use crate::backend::Backend;
use crate::backend::cpu::CpuBackend;
use crate::backend::emulator;
use crate::backend::reference::ReferenceBackend;
use crate::domain::{
    AdapterWeights, FinishReason, GenerationRequest, KvFormat, SamplingParams, Speculation,
    WeightFormat,
};
use crate::worker::{BaseSource, GenerationEvents, WorkerError, WorkerSettings};

type Adapters = Vec<Option<Arc<AdapterWeights>>>;

fn adapters() -> Adapters {
    let bench = Bench::new(&roomy());
    let info = bench.handle.base("tiny").expect("loaded");
    vec![None, Some(adapter(info, 2, 5)), Some(adapter(info, 4, 6)), Some(adapter(info, 3, 7))]
}

/// Each request's answer with nobody else about and nothing cached.
fn alone<B: Backend>(mut bench: Bench<B>, asks: &[GenerationRequest]) -> Vec<Answer> {
    let one = |(number, ask): (usize, &GenerationRequest)| {
        let tenant = format!("alone {number}").into();
        let answer = bench.answer(&GenerationRequest { tenant, ..ask.clone() });
        assert!(answer.is_complete(), "{answer:?}");
        answer
    };
    asks.iter().enumerate().map(one).collect()
}

/// All answers, a new request arriving every few turns.
fn together<B: Backend>(
    bench: &mut Bench<B>,
    asks: &[GenerationRequest],
    dice: &mut Dice,
) -> Vec<Answer> {
    let mut events: Vec<GenerationEvents> = Vec::new();
    for ask in asks {
        events.push(bench.submit(ask));
        (0..dice.below(3)).for_each(|_| bench.device.turn());
    }
    bench.drain();
    events.iter_mut().map(Answer::heard).collect()
}

/// Holds that requests in company, under every kind of pressure, answer as they do alone.
fn assert_company_does_not_show<B: Backend>(
    count: usize,
    base: &BaseSource,
    kv_format: KvFormat,
    make: impl Fn() -> B,
) {
    let roomy = || WorkerSettings { kv_format: Some(kv_format), ..roomy() };
    let adapters = adapters();
    let mut dice = Dice::new(1);
    let asks: Vec<_> = (0..count).map(|_| dice.request(&adapters)).collect();
    let bench =
        |settings: &WorkerSettings| Bench::with(make(), std::slice::from_ref(base), settings);
    let expected =
        alone(bench(&WorkerSettings { speculation: Speculation::Off, ..roomy() }), &asks);
    let two_adapters = 2 * adapters[2].as_ref().expect("an adapter").size_bytes();
    let crowds = [
        roomy(),
        WorkerSettings { max_batch_tokens: 5, max_sequences: 3, ..roomy() },
        WorkerSettings {
            kv_cache_bytes: 9 * block_bytes(kv_format),
            max_batch_tokens: 23,
            ..roomy()
        },
        WorkerSettings {
            kv_cache_bytes: 12 * block_bytes(kv_format),
            speculation: Speculation::Always,
            ..roomy()
        },
        WorkerSettings { adapter_cache_bytes: two_adapters, ..roomy() },
    ];
    for settings in crowds {
        let mut bench = bench(&settings);
        let answers = together(&mut bench, &asks, &mut dice);
        for ((answer, expected), ask) in answers.iter().zip(&expected).zip(&asks) {
            assert_eq!(answer, expected, "{settings:?} {ask:?}");
        }
        bench.assert_nothing_is_held();
        // A small crowd may have come one after the other, and have nothing in common.
        if count < 40 {
            continue;
        }
        if settings.max_batch_tokens == 23 {
            assert!(bench.stats().preemptions.load(Relaxed) > 0, "nothing had to give way");
        }
        assert!(bench.stats().cached_tokens.load(Relaxed) > 0, "nothing was cached");
    }
}

#[test]
fn a_request_in_any_company_answers_as_it_does_alone() {
    assert_company_does_not_show(48, &tiny("tiny", 1), KvFormat::F32, || ReferenceBackend);
}

#[test]
fn a_request_in_any_company_answers_as_it_does_alone_on_the_cpu_in_every_format() {
    let formats = [
        (WeightFormat::F32, KvFormat::F32),
        (WeightFormat::Bf16, KvFormat::Bf16),
        (WeightFormat::Nf4 { double: true }, KvFormat::F32),
        (WeightFormat::Q8_0, KvFormat::Bf16),
        (WeightFormat::Q4_0, KvFormat::Int8),
    ];
    for (format, kv_format) in formats {
        let base = tiny_as(format);
        assert_company_does_not_show(40, &base, kv_format, || CpuBackend::new(2));
    }
}

#[test]
fn a_request_in_any_company_answers_as_it_does_alone_where_long_texts_are_turned_otherwise() {
    for base in tiny_stretched() {
        assert_company_does_not_show(48, &base, KvFormat::F32, || ReferenceBackend);
        assert_company_does_not_show(16, &base, KvFormat::F32, || CpuBackend::new(2));
    }
}

#[test]
fn a_text_that_becomes_long_goes_on_as_if_it_had_been_long() {
    let [longrope, _] = tiny_stretched();
    let bench = || Bench::with(ReferenceBackend, std::slice::from_ref(&longrope), &roomy());
    let prompt = Dice::new(9).tokens(45);
    let of = |prompt: &[u32], max_tokens| GenerationRequest {
        sampling: SamplingParams { temperature: 0.0, max_tokens, ..Default::default() },
        ..ask(prompt)
    };
    let mut long = bench();
    let said = long.answer(&of(&prompt, 30)).tokens(0);
    let [short, longer] = [5, 6].map(|said_before| {
        let prompt = [&prompt, &said[..said_before]].concat();
        bench().answer(&of(&prompt, 30 - said_before)).tokens(0)
    });
    assert_eq!((&short[..], &longer[..]), (&said[5..], &said[6..]));
    assert_eq!(long.stats().preemptions.load(Relaxed), 0, "becoming long is no giving way");
}

#[test]
fn a_request_in_any_company_answers_as_it_does_alone_on_the_emulated_cuda_backend() {
    let base = tiny_as(WeightFormat::Q4_0);
    assert_company_does_not_show(12, &base, KvFormat::Int8, emulator::cuda);
}

#[test]
fn a_cached_prefix_answers_as_an_uncached_one_and_is_counted() {
    let mut bench = Bench::new(&roomy());
    let prompt = Dice::new(3).tokens(40);
    let first = bench.answer(&ask(&prompt));
    assert_eq!(bench.stats().cached_tokens.load(Relaxed), 0);
    assert_eq!(bench.answer(&ask(&prompt)), first);
    assert_eq!(bench.stats().cached_tokens.load(Relaxed), 32);
    let stranger = GenerationRequest { tenant: "stranger".into(), ..ask(&prompt) };
    assert_eq!(bench.answer(&stranger), first);
    assert_eq!(bench.stats().cached_tokens.load(Relaxed), 32, "tenants share nothing");
}

#[test]
fn choices_are_the_requests_of_neighbouring_seeds() {
    let mut bench = Bench::new(&roomy());
    let prompt = Dice::new(4).tokens(21);
    let one = |seed, choices| GenerationRequest {
        choices,
        sampling: SamplingParams { seed, max_tokens: 20, ..Default::default() },
        ..ask(&prompt)
    };
    let forked = bench.answer(&one(9, 4));
    assert_ne!(forked.choices[0], forked.choices[1]);
    for choice in 0..4 {
        let single = bench.answer(&one(9 + choice as u64, 1));
        assert_eq!(forked.choices[choice], single.choices[0]);
    }
    bench.assert_nothing_is_held();
}

#[test]
fn more_choices_than_places_are_answered_one_after_another() {
    let many = GenerationRequest {
        choices: 7,
        sampling: SamplingParams { seed: 2, max_tokens: 9, ..Default::default() },
        ..ask(&[1, 2, 3])
    };
    let wide = Bench::new(&roomy()).answer(&many);
    let mut narrow = Bench::new(&WorkerSettings { max_sequences: 2, ..roomy() });
    assert_eq!(narrow.answer(&many), wide);
    narrow.assert_nothing_is_held();
}

#[test]
fn two_base_models_serve_in_turns_and_do_not_mix() {
    let bases = [tiny("tiny", 1), tiny("other", 2)];
    let on = |base: &str| GenerationRequest { base: base.into(), ..ask(&[4, 5, 6]) };
    let expected = Bench::new(&roomy()).answer(&on("tiny"));
    let mut both = Bench::with(ReferenceBackend, &bases, &roomy());
    let (mut first, mut second) = (both.submit(&on("tiny")), both.submit(&on("other")));
    both.drain();
    let other = Answer::heard(&mut second);
    assert_eq!(Answer::heard(&mut first), expected);
    assert!(other.is_complete() && other != expected);
}

#[test]
fn a_stop_token_is_told_and_ends_the_answer() {
    let mut bench = Bench::new(&roomy());
    let free = bench.answer(&ask(&[7, 8, 9])).tokens(0);
    let at = free.iter().position(|token| *token == free[3]).expect("it is there");
    let stopped = GenerationRequest { stop_tokens: vec![free[3]], ..ask(&[7, 8, 9]) };
    let answer = bench.answer(&stopped);
    assert_eq!(
        (answer.tokens(0), answer.choices[0].1),
        (free[..=at].to_vec(), Some(FinishReason::Stop))
    );
    let mut on = stopped;
    on.sampling.ignore_eos = true;
    assert_eq!(bench.answer(&on).tokens(0), free);
}

#[test]
fn no_tokens_asked_for_scores_the_prompt_alone() {
    let sampling = SamplingParams { max_tokens: 0, prompt_logprobs: Some(1), ..Default::default() };
    let score = GenerationRequest { choices: 2, sampling, ..ask(&[4, 9, 2, 30]) };
    let mut bench = Bench::new(&WorkerSettings { max_batch_tokens: 3, ..roomy() });
    let answer = bench.answer(&score);
    assert_eq!(answer.choices, vec![(Vec::new(), Some(FinishReason::Length)); 2]);
    let tokens: Vec<u32> = answer.prompt.iter().map(|scored| scored.token).collect();
    let scored: Vec<bool> = answer.prompt.iter().map(|scored| scored.logprob.is_some()).collect();
    assert_eq!((tokens, scored), (score.prompt.clone(), vec![false, true, true, true]));
    // What the prompt is scored with is what the answer is drawn with.
    let mut greedy = ask(&[4, 9, 2, 30]);
    greedy.sampling.logprobs = Some(0);
    let drawn = bench.answer(&greedy).choices[0].0[0].clone();
    let mut longer = score;
    longer.prompt.push(drawn.token);
    assert_eq!(bench.answer(&longer).prompt[4].logprob, drawn.logprob);
}

#[test]
fn the_end_of_the_context_ends_the_answer() {
    let mut bench = Bench::new(&roomy());
    let mut long = ask(&Dice::new(8).tokens(CONTEXT - 3));
    long.sampling.max_tokens = 50;
    let answer = bench.answer(&long);
    assert_eq!((answer.tokens(0).len(), answer.choices[0].1), (3, Some(FinishReason::Length)));
    let full = bench.answer(&ask(&Dice::new(8).tokens(CONTEXT)));
    assert_eq!(full.choices, [(Vec::new(), Some(FinishReason::Length))]);
    let over = bench.answer(&ask(&Dice::new(8).tokens(CONTEXT + 1)));
    assert!(matches!(over.failed, Some(WorkerError::TooLarge { .. })));
}

#[test]
fn the_context_is_cut_to_what_the_cache_holds() {
    let mut bench = Bench::new(&WorkerSettings { kv_cache_bytes: 3 * BLOCK_BYTES, ..roomy() });
    assert_eq!(bench.handle.base("tiny").map(|info| info.context_length), Some(48));
    let mut long = ask(&Dice::new(8).tokens(40));
    long.sampling.max_tokens = 50;
    let answer = bench.answer(&long);
    assert_eq!((answer.tokens(0).len(), answer.choices[0].1), (8, Some(FinishReason::Length)));
}

#[test]
fn what_can_never_run_is_refused_at_once() {
    let mut bench = Bench::new(&WorkerSettings { kv_cache_bytes: 3 * BLOCK_BYTES, ..roomy() });
    let long = ask(&Dice::new(8).tokens(49));
    let too_large = WorkerError::TooLarge { needed_tokens: 49, capacity_tokens: 48 };
    assert_eq!(bench.answer(&long).failed, Some(too_large));
    assert!(matches!(bench.answer(&ask(&[60, 61])).failed, Some(WorkerError::Device(_))));
    let unknown = bench.handle.generate(GenerationRequest { base: "no".into(), ..ask(&[1]) });
    assert_eq!(unknown.err(), Some(WorkerError::UnknownBase("no".into())));
    let info = Arc::clone(bench.handle.base("tiny").expect("loaded"));
    let mut odd = (*adapter(&info, 2, 1)).clone();
    odd.sites[0].module = "model.layers.9.self_attn.q_proj".into();
    let misfit = GenerationRequest { adapter: Some(Arc::new(odd)), ..ask(&[1]) };
    assert!(matches!(bench.answer(&misfit).failed, Some(WorkerError::Adapter(_))));
    bench.assert_nothing_is_held();
}

#[test]
fn one_request_too_many_is_told_to_come_back() {
    let bench = Bench::new(&WorkerSettings { max_waiting: 2, ..roomy() });
    let _held = [bench.submit(&ask(&[1])), bench.submit(&ask(&[2]))];
    let refused = bench.handle.generate(ask(&[3])).err();
    assert!(matches!(refused, Some(WorkerError::Overloaded { waiting: 2, .. })), "{refused:?}");
}

#[test]
fn tenants_take_turns() {
    let mut bench = Bench::new(&WorkerSettings { max_sequences: 1, ..roomy() });
    let by = |tenant: &str| GenerationRequest { tenant: tenant.into(), ..ask(&[1, 2]) };
    let mut greedy: Vec<_> = (0..6).map(|_| bench.submit(&by("greedy"))).collect();
    let mut modest = bench.submit(&by("modest"));
    while !Answer::heard(&mut modest).choices.iter().any(|(_, reason)| reason.is_some()) {
        bench.device.turn();
    }
    let served = greedy.iter_mut().map(Answer::heard).filter(Answer::is_complete).count();
    assert!(served <= 2, "{served} requests of another tenant went first");
}

#[test]
fn a_tenant_of_many_adapters_gets_no_more_turns() {
    let mut bench = Bench::new(&WorkerSettings { max_sequences: 1, ..roomy() });
    let worn = adapters();
    let by = |tenant: &str, adapter: usize| {
        let adapter = worn[adapter].clone();
        GenerationRequest { tenant: tenant.into(), adapter, ..ask(&[1, 2]) }
    };
    let mut many: Vec<_> = (0..8).map(|i| bench.submit(&by("many", i % 4))).collect();
    let mut modest: Vec<_> = (0..2).map(|_| bench.submit(&by("modest", 0))).collect();
    while !modest.iter_mut().map(Answer::heard).any(|answer| answer.is_complete()) {
        bench.device.turn();
    }
    let served = many.iter_mut().map(Answer::heard).filter(Answer::is_complete).count();
    assert!(served <= 2, "{served} requests of another tenant went first");
    bench.drain();
}

#[test]
fn a_caller_who_leaves_or_stops_frees_everything_at_the_next_turn() {
    let mut bench = Bench::new(&roomy());
    let mut endless = ask(&Dice::new(5).tokens(20));
    endless.sampling.max_tokens = 100;
    endless.choices = 2;
    let (gone, mut stopped) = (bench.submit(&endless), bench.submit(&endless));
    (0..4).for_each(|_| bench.device.turn());
    assert_eq!(bench.stats().running.load(Relaxed), 4);
    drop(gone);
    stopped.stop(1);
    bench.device.turn();
    assert_eq!(bench.stats().running.load(Relaxed), 1);
    stopped.stop(0);
    bench.device.turn();
    let answer = Answer::heard(&mut stopped);
    assert!(answer.choices.iter().all(|(_, reason)| *reason == Some(FinishReason::Stop)));
    bench.assert_nothing_is_held();
}

#[test]
fn a_stop_ends_what_waits_and_finishes_what_runs() {
    let mut bench = Bench::new(&WorkerSettings { max_sequences: 1, ..roomy() });
    let (mut runs, mut waits) = (bench.submit(&ask(&[1, 2])), bench.submit(&ask(&[3])));
    bench.device.turn();
    bench.stopping.store(true, Relaxed);
    let mut late = bench.submit(&ask(&[4]));
    bench.drain();
    assert!(Answer::heard(&mut runs).is_complete());
    assert_eq!(Answer::heard(&mut waits).failed, Some(WorkerError::Stopped));
    assert_eq!(Answer::heard(&mut late).failed, Some(WorkerError::Stopped));
    bench.assert_nothing_is_held();
}

#[test]
fn ten_thousand_random_operations_leave_nothing_behind() {
    let mut adapters = adapters();
    let two_adapters = 2 * adapters[2].as_ref().expect("an adapter").size_bytes();
    let settings = WorkerSettings {
        kv_cache_bytes: 14 * BLOCK_BYTES,
        adapter_cache_bytes: two_adapters,
        max_batch_tokens: 24,
        max_sequences: 6,
        speculation: Speculation::Always,
        ..roomy()
    };
    let mut bench = Bench::new(&settings);
    let mut dice = Dice::new(77);
    let mut open: Vec<GenerationEvents> = Vec::new();
    let info = Arc::clone(bench.handle.base("tiny").expect("loaded"));
    for generation in 0..10_000 {
        match dice.below(32) {
            0..=6 => open.push(bench.submit(&dice.request(&adapters))),
            7..=9 if !open.is_empty() => drop(open.swap_remove(dice.below(open.len()))),
            10..=12 if !open.is_empty() => open[dice.below(open.len())].stop(0),
            // A name gets another generation, or a new name or none: those who run keep theirs.
            13 => adapters[1] = Some(adapter(&info, 1 + dice.below(4), 1000 + generation)),
            14 if adapters.len() < 6 => adapters.push(adapters[1].clone()),
            15 if adapters.len() > 2 => drop(adapters.pop()),
            16 if open.len() > 40 => open.clear(),
            _ => bench.device.turn(),
        }
    }
    bench.drain();
    for events in &mut open {
        let answer = Answer::heard(events);
        assert!(answer.is_complete() && answer.failed.is_none(), "{answer:?}");
    }
    assert!(bench.stats().preemptions.load(Relaxed) > 0);
    bench.assert_nothing_is_held();
}
