//! Requests with pictures: seen once, never mixed, in nobody's way.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::harness::{Answer, Bench, ask, roomy, tiny};
use crate::backend::cpu::CpuBackend;
use crate::backend::reference::ReferenceBackend;
use crate::domain::{
    AdapterWeights, BaseInfo, GenerationRequest, Picture, PlacedPicture, SamplingParams,
    SavedModule, Speculation, TensorShape,
};
use crate::model::{LoadOptions, ModelSource};
use crate::worker::{BaseSource, WorkerError, WorkerSettings};

const IMAGE_TOKEN: u32 = 250;
const TOKENS: usize = 16;

fn seeing() -> BaseSource {
    let folder = "tests/golden/llava/clip_default/model";
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let options = LoadOptions { name: "tiny".to_owned(), format: None };
    BaseSource { source: ModelSource::Folder(folder), options }
}

fn bench(settings: &WorkerSettings) -> Bench<CpuBackend> {
    Bench::with(CpuBackend::new(1), &[seeing()], settings)
}

fn picture(number: u8) -> Arc<Picture> {
    let pixel = |i: usize| ((i * (3 + usize::from(number))) % 17) as f32 / 6.0 - 1.4;
    let pixels = (0..3 * 32 * 32).map(pixel).collect();
    Arc::new(Picture { digest: [number; 32], pixels })
}

/// Words, then each picture followed by words.
fn shows(pictures: &[u8], words: usize) -> GenerationRequest {
    let mut request = ask(&[5, 9, 31]);
    for &number in pictures {
        let start = request.prompt.len();
        request.pictures.push(PlacedPicture { start, picture: picture(number) });
        request.prompt.extend([IMAGE_TOKEN; TOKENS]);
        request.prompt.extend((0..words as u32).map(|i| 40 + (i * 7) % 90));
    }
    request.sampling = SamplingParams { logprobs: Some(2), ..request.sampling };
    request
}

fn alone(request: &GenerationRequest) -> Answer {
    let answer = bench(&roomy()).answer(request);
    assert!(answer.is_complete(), "{answer:?}");
    answer
}

#[test]
fn the_prefix_cache_knows_one_picture_from_another() {
    let (first, second) = (shows(&[1], 20), shows(&[2], 20));
    assert_ne!(alone(&first), alone(&second));
    let mut bench = bench(&roomy());
    let mut cached = |request: &GenerationRequest| {
        let before = bench.stats().cached_tokens.load(Relaxed);
        assert_eq!(bench.answer(request), alone(request));
        bench.stats().cached_tokens.load(Relaxed) - before
    };
    assert_eq!(cached(&first), 0);
    assert_eq!(cached(&second), 0, "the same tokens, another picture");
    assert_eq!(cached(&first), 32);
    assert_eq!(cached(&second), 32);
    // The next turn of a conversation shows another picture and begins alike.
    assert_eq!(cached(&shows(&[1, 2], 20)), 32);
    assert_eq!(cached(&shows(&[2, 1], 20)), 32);
    assert_eq!(cached(&ask(&first.prompt)), 0, "no picture at all");
    bench.assert_nothing_is_held();
}

/// An adapter that is a projector of its own and nothing else.
fn with_projector(info: &BaseInfo) -> Arc<AdapterWeights> {
    let projector = info.projector().expect("the model sees");
    let values = |tensor: &TensorShape| {
        (0..tensor.parameters()).map(|i| ((i * 7) % 13) as f32 / 40.0 - 0.15).collect()
    };
    let values = projector.tensors.iter().map(values).collect();
    let saved = vec![SavedModule { module: projector.name.clone(), values }];
    Arc::new(AdapterWeights { key: "projector".to_owned(), sites: Vec::new(), saved, dropout: 0.0 })
}

#[test]
fn adapters_with_their_own_projector_see_the_same_picture_otherwise() {
    let mut bench = bench(&roomy());
    let plain = shows(&[1], 20);
    let adapter = Some(with_projector(&bench.handle.bases()[0]));
    let worn = GenerationRequest { adapter, ..plain.clone() };
    assert_ne!(alone(&plain), alone(&worn), "nothing but the projector differs");
    let words = |request: &GenerationRequest| GenerationRequest {
        prompt: vec![5, 9, 31],
        pictures: Vec::new(),
        ..request.clone()
    };
    assert_eq!(alone(&words(&plain)), alone(&words(&worn)));
    let mut cached = |request: &GenerationRequest| {
        let before = bench.stats().cached_tokens.load(Relaxed);
        assert_eq!(bench.answer(request), alone(request));
        bench.stats().cached_tokens.load(Relaxed) - before
    };
    assert_eq!([cached(&plain), cached(&worn), cached(&plain), cached(&worn)], [0, 0, 32, 32]);
    let mut events = [bench.submit(&plain), bench.submit(&worn)];
    bench.drain();
    let heard = events.each_mut().map(Answer::heard);
    assert_eq!(heard, [alone(&plain), alone(&worn)], "in one batch, each with its own");
    bench.assert_nothing_is_held();
}

#[test]
fn company_chunks_and_preemption_do_not_show() {
    let blocks = |blocks: usize| 2 * 2 * 2 * 16 * 16 * 4 * blocks;
    let asks: Vec<_> = (0..12)
        .map(|i| match i % 4 {
            0 => shows(&[i % 3], usize::from(i)),
            1 => ask(&[7, 8, i.into()]),
            2 => shows(&[3, i, 3], 2),
            _ => GenerationRequest { choices: 2, ..shows(&[i, 4], 5) },
        })
        .collect();
    let expected: Vec<Answer> = asks.iter().map(alone).collect();
    for settings in [
        roomy(),
        WorkerSettings { max_batch_tokens: 7, ..roomy() },
        // Words that were followed by a picture come again: guesses stop before it.
        WorkerSettings { speculation: Speculation::Always, ..roomy() },
        WorkerSettings { kv_cache_bytes: blocks(9), ..roomy() },
        // Features of three pictures: others wait until those are no longer shown.
        WorkerSettings { picture_cache_bytes: 3 * TOKENS * 48 * 4, ..roomy() },
    ] {
        let mut bench = bench(&settings);
        let mut events: Vec<_> = asks.iter().map(|ask| bench.submit(ask)).collect();
        bench.drain();
        for (events, expected) in events.iter_mut().zip(&expected) {
            assert_eq!(&Answer::heard(events), expected);
        }
        bench.assert_nothing_is_held();
    }
}

#[test]
fn who_decodes_is_not_kept_waiting_by_a_picture() {
    let mut bench = bench(&roomy());
    let long = SamplingParams { max_tokens: 60, temperature: 0.0, ..Default::default() };
    let mut talking = bench.submit(&GenerationRequest { sampling: long, ..ask(&[3, 4]) });
    bench.device.turn();
    let mut told = Answer::heard(&mut talking).tokens(0).len();
    let mut looking = bench.submit(&shows(&[1], 4));
    while Answer::heard(&mut looking).choices.is_empty() {
        bench.device.turn();
        let said = Answer::heard(&mut talking).tokens(0).len();
        assert_eq!(said, 1, "every step of the tower goes with a step of decoding");
        told += said;
    }
    assert!(told > 2, "the tower has more than one block");
}

#[test]
fn what_cannot_be_seen_is_refused_and_who_leaves_frees_the_tower() {
    let blind = &mut Bench::with(ReferenceBackend, &[tiny("tiny", 1)], &roomy());
    let mut request = shows(&[1], 3);
    request.prompt.iter_mut().for_each(|token| *token %= 60);
    assert!(matches!(blind.answer(&request).failed, Some(WorkerError::Device(_))));
    let mut bench = bench(&WorkerSettings { picture_cache_bytes: 2 * TOKENS * 48 * 4, ..roomy() });
    let failed = bench.answer(&shows(&[1, 2, 3], 2)).failed;
    assert_eq!(failed, Some(WorkerError::TooManyPictures { pictures: 3, limit: 2 }));
    let elsewhere = GenerationRequest { prompt: vec![5; 40], ..shows(&[1], 3) };
    assert!(matches!(bench.answer(&elsewhere).failed, Some(WorkerError::Device(_))));
    let leaving = bench.submit(&shows(&[1], 3));
    let waiting = bench.submit(&shows(&[2], 3));
    bench.device.turn();
    drop((leaving, waiting));
    bench.assert_nothing_is_held();
    assert!(bench.answer(&shows(&[3], 3)).is_complete());
}
