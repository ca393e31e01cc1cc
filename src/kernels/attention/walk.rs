//! The forward walk over key blocks.
#![allow(unsafe_code)]

use std::ops::Range;

use super::blocks::{Bf16, Format, HeadBlocks, Number};
use super::meet::{Meeting, Query};
use super::{Attention, state};
use crate::kernels::cpu::Cpu;
use crate::kernels::lanes::{LANES, Simd, kernel};
use crate::kernels::output::Output;
use crate::kernels::rows::piece;

/// Queries that walk the blocks together, so that a block is read once for all of them: the heads
/// of a group first, then the next row.
pub(super) const QUERIES: usize = 32;

/// Blocks per segment. Each segment is seen by itself and the segments are merged in order,
/// wherever they are computed, so that a long context may be split over threads at will.
pub(super) const SEGMENT: usize = 32;

/// Query rows of one sequence at consecutive positions.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    /// Rows of `q` and `o`.
    pub rows: Range<usize>,
    /// Position of the first row.
    pub start: usize,
}

/// Up to [`QUERIES`] queries that share a key-value head of one sequence.
pub(super) struct Walk<'a> {
    spec: &'a Attention<'a>,
    keys: HeadBlocks<'a>,
    queries: [Query; QUERIES],
    count: usize,
    /// The first row, and the queries of it that belong to earlier walks.
    first_row: usize,
    skipped: usize,
}

impl<'a> Walk<'a> {
    /// How many walks the queries of a key-value head in `rows` rows make.
    pub fn count(spec: &Attention<'_>, rows: usize) -> usize {
        (rows * spec.group()).div_ceil(QUERIES)
    }

    /// Walk number `index` over the keys of `kv_head`.
    pub fn new(
        spec: &'a Attention<'a>,
        keys: HeadBlocks<'a>,
        kv_head: usize,
        rows: &Rows,
        index: usize,
    ) -> Self {
        let group = spec.group();
        let part = piece(rows.rows.len() * group, QUERIES, index);
        let (first_row, skipped) = (rows.rows.start + part.start / group, part.start % group);
        let mut queries = [Query::default(); QUERIES];
        for (query, i) in queries.iter_mut().zip(part.clone()) {
            let (row, head) = (rows.rows.start + i / group, kv_head * group + i % group);
            let at = (row * spec.heads + head) * spec.head_dim;
            // Who sees all of a span stands as if at its end.
            let place = if spec.causal { i / group } else { rows.rows.len() - 1 };
            *query = Query { at, position: rows.start + place, head };
        }
        Self { spec, keys, queries, count: part.len(), first_row, skipped }
    }

    /// Numbers in the states of its queries.
    pub fn state_numbers(&self) -> usize {
        self.count * state::size(self.spec.head_dim)
    }

    /// The segments that some query sees.
    pub fn segments(&self) -> Range<usize> {
        let (first, last) = (self.queries[0].position, self.queries[self.count - 1].position);
        self.spec.first_visible(first) / LANES / SEGMENT..last / LANES / SEGMENT + 1
    }

    /// What the queries gather from one segment: `states` is overwritten.
    pub fn segment(&self, cpu: Cpu, segment: usize, q: &[f32], states: &mut [f32]) {
        state::clear(states, state::size(self.spec.head_dim));
        walk_blocks(cpu, self, segment, q, states);
    }

    /// What they gather from all segments; `spare` is as large as `states`.
    pub fn all(&self, cpu: Cpu, q: &[f32], states: &mut [f32], spare: &mut [f32]) {
        let mut segments = self.segments();
        if let Some(first) = segments.next() {
            self.segment(cpu, first, q, states);
        }
        for segment in segments {
            self.segment(cpu, segment, q, spare);
            self.merge(cpu, states, spare);
        }
    }

    /// `states` have also seen what `parts` have.
    pub fn merge(&self, cpu: Cpu, states: &mut [f32], parts: &[f32]) {
        let size = state::size(self.spec.head_dim);
        for (total, part) in states.chunks_exact_mut(size).zip(parts.chunks_exact(size)) {
            state::merge(cpu, total, part);
        }
    }

    /// Writes what was gathered to `o (t, h · hd)`, and the log of each sum to `lse (t, h)`.
    ///
    /// # Safety
    /// No other thread may touch these rows and heads of `o` and `lse` meanwhile.
    pub unsafe fn finish(
        &self,
        cpu: Cpu,
        states: &[f32],
        o: &Output<'_>,
        lse: Option<&Output<'_>>,
    ) {
        let (hd, group) = (self.spec.head_dim, self.spec.group());
        let states = states.chunks_exact(state::size(hd));
        for ((i, query), state) in self.queries[..self.count].iter().enumerate().zip(states) {
            let (row, head) = (self.first_row + (self.skipped + i) / group, query.head);
            // SAFETY: by this function's contract.
            let o = unsafe { o.row(row, head * hd..(head + 1) * hd) };
            let log_sum = state::finish(cpu, state, o);
            if let Some(lse) = lse {
                // SAFETY: by this function's contract.
                let lse = unsafe { lse.row(row, head..head + 1) };
                lse[0] = log_sum;
            }
        }
    }

    /// The queries that see a key of this block.
    #[inline(always)]
    fn that_see(&self, block: usize) -> Range<usize> {
        let (first, last) = (block * LANES, block * LANES + LANES - 1);
        let queries = &self.queries[..self.count];
        let before = queries.partition_point(|query| query.position < first);
        let end = self.spec.window.map_or(self.count, |window| {
            queries.partition_point(|query| query.position < last.saturating_add(window))
        });
        before..end
    }
}

kernel! {
    /// The blocks of one segment, one by one.
    fn walk_blocks(s, walk: &Walk<'_>, segment: usize, q: &[f32], states: &mut [f32]) {
        match walk.keys.layout.format {
            Format::F32 => segment_of::<S, f32>(s, walk, segment, q, states),
            Format::Bf16 => segment_of::<S, Bf16>(s, walk, segment, q, states),
            Format::Int8 => segment_of::<S, i8>(s, walk, segment, q, states),
        }
    }
}

#[inline(always)]
fn segment_of<S: Simd, T: Number>(
    s: S,
    walk: &Walk<'_>,
    segment: usize,
    q: &[f32],
    states: &mut [f32],
) {
    let (spec, queries) = (walk.spec, &walk.queries[..walk.count]);
    let first = spec.first_visible(queries[0].position) / LANES;
    let last = queries[queries.len() - 1].position / LANES;
    let size = state::size(spec.head_dim);
    for block in first.max(segment * SEGMENT)..(last + 1).min((segment + 1) * SEGMENT) {
        let meeting = Meeting { spec, block, stored: walk.keys.get::<T>(block) };
        let seeing = walk.that_see(block);
        let (queries, states) = (&queries[seeing.clone()], &mut states[seeing.start * size..]);
        // As many as have their sums in registers.
        let most = if S::TILE_ROWS < 12 { 3 } else { 4 };
        for (queries, states) in queries.chunks(most).zip(states.chunks_mut(most * size)) {
            match *queries {
                [a] => meeting.with::<S, 1>(s, &[a], q, states),
                [a, b] => meeting.with::<S, 2>(s, &[a, b], q, states),
                [a, b, c] => meeting.with::<S, 3>(s, &[a, b, c], q, states),
                [a, b, c, d] => meeting.with::<S, 4>(s, &[a, b, c, d], q, states),
                _ => unreachable!("a chunk has one to four queries"),
            }
        }
    }
}
