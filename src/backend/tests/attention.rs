//! Attention against the plain twin, and cached, chunked and recomputed attention to the bit.

use super::*;
use crate::backend::{AttentionSpec, BLOCK_TOKENS, CacheShape, KvFormat, SequenceRows};

const FORMATS: [KvFormat; 3] = [KvFormat::F32, KvFormat::Bf16, KvFormat::Int8];

fn cache<B: Backend>(
    b: &mut B,
    spec: &AttentionSpec,
    layers: usize,
    blocks: usize,
    format: KvFormat,
) -> B::Cache {
    let (kv_heads, head_dim) = (spec.kv_heads, spec.head_dim);
    b.cache(&CacheShape { layers, kv_heads, head_dim, blocks, format })
}

fn spec(head_dim: usize) -> AttentionSpec {
    AttentionSpec {
        heads: 4,
        kv_heads: 2,
        head_dim,
        scale: 0.9,
        window: None,
        softcap: None,
        alibi: None,
        causal: true,
    }
}

fn specs() -> Vec<AttentionSpec> {
    vec![
        spec(32),
        AttentionSpec { window: Some(20), ..spec(8) },
        AttentionSpec { softcap: Some(2.0), window: Some(1), ..spec(16) },
        AttentionSpec { softcap: Some(1.5), ..spec(20) },
        AttentionSpec { alibi: Some(vec![0.5, 0.25, 0.125, 0.01]), kv_heads: 4, ..spec(16) },
        AttentionSpec { kv_heads: 1, window: Some(70), ..spec(48) },
    ]
}

struct Spans(AttentionSpec);

impl Case for Spans {
    fn run<B: Backend>(&self, b: &mut B) -> Vec<Vec<f32>> {
        let spec = &self.0;
        let (qw, kw, t) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim, 140);
        let spans = [0..1, 1..38, 38..140];
        let (q, k, v) = (seeded(b, 1, t, qw), seeded(b, 2, t, kw), seeded(b, 3, t, kw));
        let (mut o, mut lse) = (b.zeros(t, qw), b.zeros(t, spec.heads));
        b.attention(&q, &k, &v, &spans, spec, &mut o, &mut lse);
        let d_o = seeded(b, 4, t, qw);
        let (mut dq, mut dk, mut dv) = (seeded(b, 5, t, qw), seeded(b, 6, t, kw), b.zeros(t, kw));
        b.attention_backward(&d_o, &q, &k, &v, &o, &lse, &spans, spec, &mut dq, &mut dk, &mut dv);
        [&o, &lse, &dq, &dk, &dv].map(|x| b.download(x)).into()
    }
}

#[test]
fn attention_over_spans_agrees_forward_and_backward() {
    for spec in specs() {
        agree(1e-5, Spans(spec));
    }
}

/// Every row sees its whole span, as in a vision tower.
struct Whole(AttentionSpec);

impl Case for Whole {
    fn run<B: Backend>(&self, b: &mut B) -> Vec<Vec<f32>> {
        let spec = &self.0;
        let (qw, kw, t) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim, 54);
        let (q, k, v) = (seeded(b, 1, t, qw), seeded(b, 2, t, kw), seeded(b, 3, t, kw));
        let (mut o, mut lse) = (b.zeros(t, qw), b.zeros(t, spec.heads));
        b.attention(&q, &k, &v, &[0..1, 1..18, 18..54], spec, &mut o, &mut lse);
        [&o, &lse].map(|x| b.download(x)).into()
    }
}

#[test]
fn attention_both_ways_agrees() {
    agree(1e-5, Whole(AttentionSpec { causal: false, ..spec(12) }));
    agree(1e-5, Whole(AttentionSpec { causal: false, kv_heads: 4, ..spec(64) }));
}

struct Cached(AttentionSpec, KvFormat);

impl Case for Cached {
    fn run<B: Backend>(&self, b: &mut B) -> Vec<Vec<f32>> {
        let spec = &self.0;
        let (qw, kw, t) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim, 57);
        let mut cache = cache(b, spec, 2, 9, self.1);
        let (k, v) = (seeded(b, 2, t, kw), seeded(b, 3, t, kw));
        let first = SequenceRows { rows: 0..50, start: 0, read: 50, blocks: vec![7, 2, 5, 0] };
        let second = SequenceRows { rows: 50..57, start: 0, read: 7, blocks: vec![1] };
        b.write_cache(&mut cache, 1, &[first.clone(), second.clone()], &k, &v);
        b.copy_block(&mut cache, 5, 8);
        let moved = SequenceRows { blocks: vec![7, 2, 8, 0], ..first.clone() };
        let mut outs = Vec::new();
        for sequences in [[first, second.clone()], [moved, second]] {
            let (q, mut o) = (seeded(b, 1, t, qw), b.zeros(t, qw));
            b.attention_cached(&cache, 1, &sequences, spec, &q, &mut o);
            outs.push(b.download(&o));
        }
        assert_eq!(outs[0], outs[1], "a copied block holds the same keys and values");
        outs
    }
}

#[test]
fn attention_over_the_cache_agrees() {
    for spec in specs() {
        for format in FORMATS {
            agree(1e-5, Cached(spec.clone(), format));
        }
    }
}

/// One sequence of `t` tokens over the cache, cut at `cuts`, the last of which is `t`; the numbers
/// do not depend on where.
fn in_chunks<B: Backend>(
    b: &mut B,
    spec: &AttentionSpec,
    format: KvFormat,
    cuts: &[usize],
) -> Vec<f32> {
    let t = cuts[cuts.len() - 1];
    let (qw, kw) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
    let all = [(1, qw), (2, kw), (3, kw)].map(|(seed, width)| Seeded(seed).values(t * width));
    let blocks = t.div_ceil(BLOCK_TOKENS);
    let mut cache = cache(b, spec, 1, blocks, format);
    let mut out = Vec::new();
    for (&start, &end) in cuts.iter().zip(&cuts[1..]) {
        let rows = end - start;
        let [q, k, v] = [(0, qw), (1, kw), (2, kw)]
            .map(|(i, width)| b.upload(&all[i][start * width..end * width], rows, width));
        let sequence = [SequenceRows {
            rows: 0..rows,
            start,
            read: start + rows,
            blocks: (0..blocks as u32).collect(),
        }];
        b.write_cache(&mut cache, 0, &sequence, &k, &v);
        let mut o = b.zeros(rows, qw);
        b.attention_cached(&cache, 0, &sequence, spec, &q, &mut o);
        out.extend(b.download(&o));
    }
    out
}

#[test]
fn decoding_chunked_prefill_and_recomputation_agree_to_the_bit() {
    for (spec, format) in specs().into_iter().flat_map(|s| FORMATS.map(|f| (s.clone(), f))) {
        let t = 75;
        for cpu in every_cpu() {
            let b = &mut CpuBackend::on(cpu, 2);
            let whole = in_chunks(b, &spec, format, &[0, t]);
            assert_eq!(in_chunks(b, &spec, format, &[0, 5, BLOCK_TOKENS, 50, t]), whole);
            let one_by_one: Vec<usize> = (0..=t).collect();
            assert_eq!(in_chunks(&mut CpuBackend::on(cpu, 1), &spec, format, &one_by_one), whole);
            if format == KvFormat::F32 {
                assert_eq!(in_a_span(b, &spec, t), whole);
            }
        }
        let b = &mut emulator::cuda();
        let whole = in_chunks(b, &spec, format, &[0, t]);
        assert_eq!(in_chunks(b, &spec, format, &[0, 5, 6, BLOCK_TOKENS, 50, t]), whole);
        if format == KvFormat::F32 {
            assert_eq!(in_a_span(b, &spec, t), whole);
        }
    }
}

/// Positions from 256 on are a new segment, which few rows have a block of their own for.
#[test]
fn long_contexts_split_over_blocks_agree_to_the_bit() {
    let (t, b) = (270, &mut emulator::cuda());
    for spec in [spec(8), AttentionSpec { window: Some(100), ..spec(8) }] {
        let whole = in_chunks(b, &spec, KvFormat::F32, &[0, t]);
        let cuts = [0, 250, 256, 257, 258, 269, t];
        assert_eq!(in_chunks(b, &spec, KvFormat::F32, &cuts), whole);
        assert_eq!(in_a_span(b, &spec, t), whole);
    }
}

fn in_a_span<B: Backend>(b: &mut B, spec: &AttentionSpec, t: usize) -> Vec<f32> {
    let (qw, kw) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
    let (q, k, v) = (seeded(b, 1, t, qw), seeded(b, 2, t, kw), seeded(b, 3, t, kw));
    let (mut o, mut lse) = (b.zeros(t, qw), b.zeros(t, spec.heads));
    b.attention(&q, &k, &v, std::slice::from_ref(&(0..t)), spec, &mut o, &mut lse);
    b.download(&o)
}

/// Positions beyond 512 and 1024 are new segments; few rows are split over them.
#[test]
fn long_contexts_split_over_threads_agree_to_the_bit() {
    let t = 1100;
    for spec in [spec(16), AttentionSpec { window: Some(530), ..spec(20) }] {
        for cpu in every_cpu() {
            let whole = in_chunks(&mut CpuBackend::on(cpu, 1), &spec, KvFormat::F32, &[0, t]);
            assert_eq!(in_a_span(&mut CpuBackend::on(cpu, 2), &spec, t), whole);
            for threads in [1, 3] {
                let b = &mut CpuBackend::on(cpu, threads);
                let cuts = [0, 500, 511, 512, 513, 514, 1000, 1023, 1024, 1025, 1090, 1091, t];
                assert_eq!(in_chunks(b, &spec, KvFormat::F32, &cuts), whole);
            }
        }
    }
}

/// What rounding keys and values to int8 may do to an output: a number is off by half a unit, 1/254
/// of its head's largest; a score by `ε = scale · Σ|q| · max|k| / 254`; a weighted mean by
/// `(exp(2ε) − 1) max|v| + max|v| / 254`.
#[test]
fn int8_keeps_outputs_within_the_stated_bound() {
    let spec = AttentionSpec { scale: 0.25, ..spec(32) };
    let (t, b) = (75, &mut CpuBackend::new(2));
    let exact = in_chunks(b, &spec, KvFormat::F32, &[0, t]);
    let rounded = in_chunks(b, &spec, KvFormat::Int8, &[0, t]);
    let (qw, kw) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
    let [q, k, v] = [(1, qw), (2, kw), (3, kw)].map(|(seed, w)| Seeded(seed).values(t * w));
    let largest = |x: &[f32]| x.iter().fold(0f32, |max, x| max.max(x.abs()));
    let q_sum =
        q.chunks(spec.head_dim).map(|q| q.iter().map(|x| x.abs()).sum()).fold(0.0, f32::max);
    let score = spec.scale * q_sum * largest(&k) / 254.0;
    let bound = ((2.0 * score).exp() - 1.0) * largest(&v) + largest(&v) / 254.0;
    let off = exact.iter().zip(&rounded).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
    assert!(0.0 < off && off < bound, "{off} of {bound}");
    assert!(off < 0.02 * largest(&v), "{off}: the bound is a worst case");
}
