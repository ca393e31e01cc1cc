//! Attention against the plain twin, and cached, chunked and recomputed attention to the bit.

use super::*;
use crate::backend::{AttentionSpec, BLOCK_TOKENS, SequenceRows};

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

struct Cached(AttentionSpec);

impl Case for Cached {
    fn run<B: Backend>(&self, b: &mut B) -> Vec<Vec<f32>> {
        let spec = &self.0;
        let (qw, kw, t) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim, 57);
        let mut cache = b.cache(2, spec.kv_heads, spec.head_dim, 9);
        let (k, v) = (seeded(b, 2, t, kw), seeded(b, 3, t, kw));
        let first = SequenceRows { rows: 0..50, start: 0, blocks: vec![7, 2, 5, 0] };
        let second = SequenceRows { rows: 50..57, start: 0, blocks: vec![1] };
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
        agree(1e-5, Cached(spec));
    }
}

/// All rows at once, or cut at `cuts`, over the cache; the numbers of `q`, `k` and `v` are those
/// of one sequence of 75 tokens.
fn in_chunks(b: &mut CpuBackend, spec: &AttentionSpec, cuts: &[usize]) -> Vec<f32> {
    let (qw, kw, t) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim, 75);
    let all = [(1, qw), (2, kw), (3, kw)].map(|(seed, width)| Seeded(seed).values(t * width));
    let mut cache = b.cache(1, spec.kv_heads, spec.head_dim, 5);
    let mut out = Vec::new();
    for (&start, &end) in cuts.iter().zip(&cuts[1..]) {
        let rows = end - start;
        let [q, k, v] = [(0, qw), (1, kw), (2, kw)]
            .map(|(i, width)| b.upload(&all[i][start * width..end * width], rows, width));
        let sequence =
            [SequenceRows { rows: 0..rows, start, blocks: (0..5).collect::<Vec<u32>>() }];
        b.write_cache(&mut cache, 0, &sequence, &k, &v);
        let mut o = b.zeros(rows, qw);
        b.attention_cached(&cache, 0, &sequence, spec, &q, &mut o);
        out.extend(b.download(&o));
    }
    out
}

#[test]
fn decoding_chunked_prefill_and_recomputation_agree_to_the_bit() {
    for spec in specs() {
        let (qw, kw, t) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim, 75);
        for cpu in every_cpu() {
            let b = &mut CpuBackend::on(cpu, 2);
            let whole = in_chunks(b, &spec, &[0, t]);
            assert_eq!(in_chunks(b, &spec, &[0, 5, BLOCK_TOKENS, 50, t]), whole);
            let one_by_one: Vec<usize> = (0..=t).collect();
            assert_eq!(in_chunks(&mut CpuBackend::on(cpu, 1), &spec, &one_by_one), whole);

            let (q, k, v) = (seeded(b, 1, t, qw), seeded(b, 2, t, kw), seeded(b, 3, t, kw));
            let (mut o, mut lse) = (b.zeros(t, qw), b.zeros(t, spec.heads));
            b.attention(&q, &k, &v, std::slice::from_ref(&(0..t)), &spec, &mut o, &mut lse);
            assert_eq!(b.download(&o), whole);
        }
    }
}
