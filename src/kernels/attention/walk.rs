//! The forward walk over key blocks.
#![allow(unsafe_code)]

use std::ops::Range;

use super::{Attention, KeyBlocks, distances, scores, visible, write_block};
use crate::kernels::cpu::Cpu;
use crate::kernels::lanes::{LANES, Simd, kernel};
use crate::kernels::math::exp;
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
    assert!(spec.causal, "a cache holds no tokens to come");
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
    assert!(spec.causal || (spec.window.is_none() && spec.alibi.is_none()));
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
            // Rows that see the whole span walk as if each stood at its end, hence alone.
            let together = if spec.causal { ROWS_PER_WALK } else { 1 };
            for part in 0..span.len().div_ceil(together) {
                let part = piece(span.len(), together, part);
                let position = if spec.causal { part.start } else { span.len() - 1 };
                let rows = span.start + part.start..span.start + part.end;
                let walk = Walk { spec, keys, kv_head, position, rows };
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
    /// All blocks that the rows see, block by block, four rows at a time.
    fn walk_blocks(s, walk: &Walk<'_>, head: usize, q: &[f32], states: &mut [f32]) {
        let (spec, rows) = (walk.spec, walk.rows.len());
        let size = spec.head_dim + STATE_TAIL;
        for state in states.chunks_exact_mut(size) {
            state.fill(0.0);
            state[size - LANES] = f32::NEG_INFINITY;
        }
        let last = walk.position + rows - 1;
        for block in spec.first_visible(walk.position) / LANES..=last / LANES {
            let (keys, values) = walk.keys.get(block);
            let (mut i, end) = walk.rows_that_see(block);
            while i < end {
                let meet = Meeting { spec, head, position: walk.position + i, block, keys, values };
                let q = &q[((walk.rows.start + i) * spec.heads + head) * spec.head_dim..];
                let count = (end - i).min(4);
                let states = &mut states[i * size..(i + count) * size];
                match count {
                    1 => meet.rows::<S, 1>(s, q, states),
                    2 => meet.rows::<S, 2>(s, q, states),
                    3 => meet.rows::<S, 3>(s, q, states),
                    _ => meet.rows::<S, 4>(s, q, states),
                }
                i += count;
            }
        }
    }
}

impl Walk<'_> {
    /// The rows, counted from the walk's first, that see a key of this block.
    fn rows_that_see(&self, block: usize) -> (usize, usize) {
        let first = (block * LANES).saturating_sub(self.position);
        let end = self.spec.window.map_or(self.rows.len(), |window| {
            (block * LANES + LANES - 1).saturating_add(window).saturating_sub(self.position)
        });
        (first, end.min(self.rows.len()))
    }
}

/// Query rows at consecutive positions meet the sixteen keys of one block.
struct Meeting<'a> {
    spec: &'a Attention<'a>,
    head: usize,
    /// Position of the first row.
    position: usize,
    block: usize,
    keys: &'a [[f32; LANES]],
    values: &'a [f32],
}

impl Meeting<'_> {
    /// `R` rows; every row's arithmetic is the same whatever `R`.
    #[inline(always)]
    fn rows<S: Simd, const R: usize>(&self, s: S, q: &[f32], states: &mut [f32]) {
        let hd = self.spec.head_dim;
        let dots = self.dots::<S, R>(s, q);
        let (mut weights, mut shrink) = ([[0.0; LANES]; R], [s.splat(1.0); R]);
        for r in 0..R {
            let tail = &mut states[r * (hd + STATE_TAIL) + hd..][..STATE_TAIL];
            (weights[r], shrink[r]) = self.weigh(s, self.position + r, dots[r], tail);
        }
        self.gather(s, &weights, &shrink, states);
    }

    /// `q · k` of each row with sixteen keys: even and odd dimensions apart, then added.
    #[inline(always)]
    fn dots<S: Simd, const R: usize>(&self, s: S, q: &[f32]) -> [S::V; R] {
        let (hd, stride) = (self.spec.head_dim, self.spec.heads * self.spec.head_dim);
        assert!(q.len() >= (R - 1) * stride + hd && self.keys.len() >= hd);
        let mut sums = [[s.splat(0.0); 2]; R];
        for d in 0..hd / 2 {
            let keys = [s.load(&self.keys[2 * d]), s.load(&self.keys[2 * d + 1])];
            for r in 0..R {
                for odd in 0..2 {
                    // SAFETY: `r · stride + 2 d + odd` is below the length asserted above.
                    let x = unsafe { *q.get_unchecked(r * stride + 2 * d + odd) };
                    sums[r][odd] = s.fma(s.splat(x), keys[odd], sums[r][odd]);
                }
            }
        }
        let mut dots = [s.splat(0.0); R];
        for r in 0..R {
            if hd % 2 == 1 {
                let x = s.splat(q[r * stride + hd - 1]);
                sums[r][0] = s.fma(x, s.load(&self.keys[hd - 1]), sums[r][0]);
            }
            dots[r] = s.add(sums[r][0], sums[r][1]);
        }
        dots
    }

    /// The exponentials of one row's scores, less the running maximum, and what the sums so far
    /// shrink by. `tail` holds the running sums and the maximum.
    #[inline(always)]
    fn weigh<S: Simd>(
        &self,
        s: S,
        position: usize,
        dots: S::V,
        tail: &mut [f32],
    ) -> ([f32; LANES], S::V) {
        let mut score = scores(s, self.spec, dots);
        let first = self.block * LANES;
        let all_visible =
            position >= first + LANES - 1 && self.spec.first_visible(position) <= first;
        if self.spec.alibi.is_some() || !all_visible {
            let distance = distances(s, position, first);
            if self.spec.alibi.is_some() {
                let slope = s.splat(self.spec.slope(self.head));
                score = s.sub(score, s.mul(slope, distance));
            }
            score = visible(s, self.spec, distance, score, f32::NEG_INFINITY);
        }
        let (sums, max) = tail.split_at_mut(LANES);
        let (largest, before) = (s.largest(score), max[0]);
        let mut shrink = s.splat(1.0);
        if largest > before {
            shrink = exp(s, s.splat(before - largest));
            max[0] = largest;
        }
        let weights = exp(s, s.sub(score, s.splat(max[0])));
        let sum = s.fma(s.load_part(sums), shrink, weights);
        s.store_part(sums, sum);
        (s.lanes(weights), shrink)
    }

    /// Adds the weighted values to the accumulators. Tokens that no row sees are left out: their
    /// memory may hold anything; a token that some row does not see has weight 0 there.
    #[inline(always)]
    fn gather<S: Simd, const R: usize>(
        &self,
        s: S,
        weights: &[[f32; LANES]; R],
        shrink: &[S::V; R],
        states: &mut [f32],
    ) {
        let (hd, size) = (self.spec.head_dim, self.spec.head_dim + STATE_TAIL);
        let first = self.block * LANES;
        let from = self.spec.first_visible(self.position).saturating_sub(first);
        let to = (self.position + R - first).min(LANES);
        assert!(states.len() >= R * size && self.values.len() >= LANES * hd && to <= LANES);
        let mut at = 0;
        while at < hd {
            let mask =
                [s.mask((hd - at).min(LANES)), s.mask((hd - at).saturating_sub(LANES).min(LANES))];
            let mut sums = [[s.splat(0.0); 2]; R];
            // SAFETY: the masks end at `hd`, rows and tokens are below the lengths asserted above.
            unsafe {
                for r in 0..R {
                    for v in 0..2 {
                        let acc = states.as_ptr().wrapping_add(r * size + at + v * LANES);
                        sums[r][v] = s.mul(s.load_masked(acc, mask[v]), shrink[r]);
                    }
                }
                for token in from..to {
                    let value = self.values.as_ptr().wrapping_add(token * hd + at);
                    let value = [
                        s.load_masked(value, mask[0]),
                        s.load_masked(value.wrapping_add(LANES), mask[1]),
                    ];
                    for r in 0..R {
                        let weight = s.splat(weights[r][token]);
                        sums[r][0] = s.fma(weight, value[0], sums[r][0]);
                        sums[r][1] = s.fma(weight, value[1], sums[r][1]);
                    }
                }
                for r in 0..R {
                    for v in 0..2 {
                        let acc = states.as_mut_ptr().wrapping_add(r * size + at + v * LANES);
                        s.store_masked(acc, sums[r][v], mask[v]);
                    }
                }
            }
            at += 2 * LANES;
        }
    }
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
