//! The forward walk over key blocks.
#![allow(unsafe_code)]

use std::ops::Range;

use super::{Attention, KeyBlocks, distances, scores, visible, write_block};
use crate::kernels::cpu::Cpu;
use crate::kernels::lanes::{LANES, Simd, kernel};
use crate::kernels::math::{exp, exp_one};
use crate::kernels::output::Output;
use crate::kernels::pool::Pool;
use crate::kernels::rows::piece;
use crate::kernels::scratch::with_values;

/// Query rows that walk the blocks together, so that a block is read once for all.
const ROWS_PER_WALK: usize = 16;

/// What follows the accumulator of one query: sixteen partial sums, then the maximum.
const STATE_TAIL: usize = 2 * LANES;

/// Queries of one sequence: rows of the batch at consecutive positions.
#[derive(Clone, Debug)]
pub struct SpanQueries<'a> {
    /// Rows of `q` and `o`.
    pub rows: Range<usize>,
    /// Position of the first row.
    pub start: usize,
    /// The sequence's blocks.
    pub blocks: &'a [u32],
}

/// Attention over cached keys and values of one layer.
///
/// `cache` holds blocks of `2 · kv · hd · 16` values: keys of every head, then values of every
/// head. `q` and `o` are `(t, h · hd)`.
pub fn attend_cached(
    cpu: Cpu,
    pool: &Pool,
    cache: &[f32],
    sequences: &[SpanQueries<'_>],
    spec: &Attention<'_>,
    q: &[f32],
    o: &mut [f32],
) {
    let (kv, head) = (spec.kv_heads, spec.head_dim * LANES);
    let walks: Vec<(usize, usize)> = sequences
        .iter()
        .enumerate()
        .flat_map(|(i, s)| (0..s.rows.len().div_ceil(ROWS_PER_WALK)).map(move |w| (i, w)))
        .collect();
    let output = Output::new(o, spec.heads * spec.head_dim, 0);
    pool.run(walks.len() * kv, &|item| {
        let ((index, walk), kv_head) = (walks[item / kv], item % kv);
        let sequence = &sequences[index];
        let part = piece(sequence.rows.len(), ROWS_PER_WALK, walk);
        let keys = KeyBlocks {
            values: cache,
            table: Some(sequence.blocks),
            stride: 2 * kv * head,
            key_at: kv_head * head,
            value_at: (kv + kv_head) * head,
            head_dim: spec.head_dim,
        };
        let walk = Walk {
            spec,
            keys,
            kv_head,
            position: sequence.start + part.start,
            rows: sequence.rows.start + part.start..sequence.rows.start + part.end,
        };
        // SAFETY: walks differ in their rows or in their key-value head, hence in their outputs.
        unsafe { walk.run(cpu, q, &output, None) };
    });
}

/// Attention within spans of rows of one batch; `lse (t, h)` receives the log of each row's sum.
#[allow(clippy::too_many_arguments)]
pub fn attend_spans(
    cpu: Cpu,
    pool: &Pool,
    (q, k, v): (&[f32], &[f32], &[f32]),
    spans: &[Range<usize>],
    spec: &Attention<'_>,
    o: &mut [f32],
    lse: &mut [f32],
) {
    let (kv, hd) = (spec.kv_heads, spec.head_dim);
    let output = Output::new(o, spec.heads * hd, 0);
    let lse = Output::new(lse, spec.heads, 0);
    pool.run(spans.len() * kv, &|item| {
        let (span, kv_head) = (spans[item / kv].clone(), item % kv);
        let stride = 2 * hd * LANES;
        with_values(span.len().div_ceil(LANES) * stride, |blocks| {
            for (i, row) in span.clone().enumerate() {
                let block = &mut blocks[i / LANES * stride..][..stride];
                let (keys, values) = block.split_at_mut(hd * LANES);
                let at = (row * kv + kv_head) * hd;
                write_block(keys, values, i % LANES, &k[at..at + hd], &v[at..at + hd]);
            }
            let keys = KeyBlocks {
                values: blocks,
                table: None,
                stride,
                key_at: 0,
                value_at: hd * LANES,
                head_dim: hd,
            };
            for part in 0..span.len().div_ceil(ROWS_PER_WALK) {
                let part = piece(span.len(), ROWS_PER_WALK, part);
                let rows = span.start + part.start..span.start + part.end;
                let walk = Walk { spec, keys, kv_head, position: part.start, rows };
                // SAFETY: walks differ in their rows or in their key-value head.
                unsafe { walk.run(cpu, q, &output, Some(&lse)) };
            }
        });
    });
}

/// Some rows of one sequence and the query heads of one key-value head.
struct Walk<'a> {
    spec: &'a Attention<'a>,
    keys: KeyBlocks<'a>,
    kv_head: usize,
    /// Position of the first row.
    position: usize,
    rows: Range<usize>,
}

impl Walk<'_> {
    /// # Safety
    /// No other thread may touch these rows and heads of `o` and `lse` meanwhile.
    unsafe fn run(&self, cpu: Cpu, q: &[f32], o: &Output<'_>, lse: Option<&Output<'_>>) {
        let (hd, group) = (self.spec.head_dim, self.spec.group());
        let size = hd + STATE_TAIL;
        with_values(self.rows.len() * size, |states| {
            for g in 0..group {
                let head = self.kv_head * group + g;
                walk_blocks(cpu, self, head, q, states);
                for (i, row) in self.rows.clone().enumerate() {
                    // SAFETY: by this function's contract.
                    let o = unsafe { o.row(row, head * hd..(head + 1) * hd) };
                    let log_sum = finish(cpu, &states[i * size..][..size], o);
                    if let Some(lse) = lse {
                        // SAFETY: by this function's contract.
                        let lse = unsafe { lse.row(row, head..head + 1) };
                        lse[0] = log_sum;
                    }
                }
            }
        });
    }
}

kernel! {
    /// All blocks that the rows see, block by block.
    fn walk_blocks(s, walk: &Walk<'_>, head: usize, q: &[f32], states: &mut [f32]) {
        let (spec, hd) = (walk.spec, walk.spec.head_dim);
        let size = hd + STATE_TAIL;
        for state in states.chunks_exact_mut(size) {
            state.fill(0.0);
            state[size - LANES] = f32::NEG_INFINITY;
        }
        let last = walk.position + walk.rows.len() - 1;
        for block in spec.first_visible(walk.position) / LANES..=last / LANES {
            let (keys, values) = walk.keys.get(block);
            for (i, state) in states.chunks_exact_mut(size).enumerate() {
                let position = walk.position + i;
                if (spec.first_visible(position) / LANES..=position / LANES).contains(&block) {
                    let q = &q[((walk.rows.start + i) * spec.heads + head) * hd..][..hd];
                    one_block(s, spec, spec.slope(head), position, block, q, keys, values, state);
                }
            }
        }
    }
}

/// One query row meets sixteen keys.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn one_block<S: Simd>(
    s: S,
    spec: &Attention<'_>,
    slope: f32,
    position: usize,
    block: usize,
    q: &[f32],
    keys: &[[f32; LANES]],
    values: &[f32],
    state: &mut [f32],
) {
    let hd = q.len();
    let distance = distances(s, position, block * LANES);
    let mut score = scores(s, spec, dots(s, q, keys));
    if slope != 0.0 {
        score = s.sub(score, s.mul(s.splat(slope), distance));
    }
    score = visible(s, spec, distance, score, f32::NEG_INFINITY);

    let (acc, tail) = state.split_at_mut(hd);
    let (sums, max) = tail.split_at_mut(LANES);
    let largest = s.largest(score);
    let mut sum = s.load_part(sums);
    if largest > max[0] {
        let shrink = s.splat(exp_one(s, max[0] - largest));
        sum = s.mul(sum, shrink);
        for acc in acc.chunks_mut(LANES) {
            let value = s.mul(s.load_part(acc), shrink);
            s.store_part(acc, value);
        }
        max[0] = largest;
    }
    let p = exp(s, s.sub(score, s.splat(max[0])));
    s.store_part(sums, s.add(sum, p));

    // Tokens out of sight are left out altogether: their memory may hold anything.
    let from = spec.first_visible(position).saturating_sub(block * LANES);
    let to = (position + 1 - block * LANES).min(LANES);
    let p = s.lanes(p);
    for (c, acc) in acc.chunks_mut(LANES).enumerate() {
        let mut sum = s.load_part(acc);
        for token in from..to {
            let value = &values[token * hd + c * LANES..][..acc.len()];
            sum = s.fma(s.splat(p[token]), s.load_part(value), sum);
        }
        s.store_part(acc, sum);
    }
}

/// `q · k` for sixteen keys: four chains, added in pairs.
#[inline(always)]
fn dots<S: Simd>(s: S, q: &[f32], keys: &[[f32; LANES]]) -> S::V {
    let mut sums = [s.splat(0.0); 4];
    let (fours, rest) = q.as_chunks::<4>();
    let (key_fours, key_rest) = keys.as_chunks::<4>();
    for i in 0..fours.len().min(key_fours.len()) {
        for j in 0..4 {
            sums[j] = s.fma(s.splat(fours[i][j]), s.load(&key_fours[i][j]), sums[j]);
        }
    }
    for i in 0..rest.len().min(key_rest.len()) {
        sums[i] = s.fma(s.splat(rest[i]), s.load(&key_rest[i]), sums[i]);
    }
    s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]))
}

kernel! {
    /// `o = acc / sum`; returns the log of the sum of exponentials.
    fn finish(s, state: &[f32], o: &mut [f32]) -> f32 {
        let (acc, tail) = state.split_at(o.len());
        let sum = s.sum(s.load_part(&tail[..LANES]));
        for (acc, o) in acc.chunks(LANES).zip(o.chunks_mut(LANES)) {
            s.store_part(o, s.div(s.load_part(acc), s.splat(sum)));
        }
        tail[LANES] + sum.ln()
    }
}
