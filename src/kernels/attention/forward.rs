//! Attention over cached blocks and over spans of a batch: the same walks over different memory.
#![allow(unsafe_code)]

use std::ops::Range;

use super::Attention;
use super::blocks::{Format, HeadBlocks, Layout};
use super::state;
use super::walk::{QUERIES, Rows, Walk};
use crate::kernels::cpu::Cpu;
use crate::kernels::lanes::LANES;
use crate::kernels::line::Line;
use crate::kernels::output::Output;
use crate::kernels::pool::Pool;
use crate::kernels::scratch::{with_lines, with_values};
use crate::kernels::shared::SharedSlice;

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

/// The blocks of one layer.
#[derive(Clone, Copy, Debug)]
pub struct LayerBlocks<'a> {
    pub layout: Layout,
    pub lines: &'a [Line],
}

/// One walk over one segment by itself, or over all of them.
#[derive(Clone, Copy)]
struct Item {
    sequence: usize,
    kv_head: usize,
    walk: usize,
    /// The segment, and where its states go.
    part: Option<(usize, usize)>,
}

/// A walk whose segments were walked by themselves: where their states lie.
struct Split {
    item: Item,
    parts: Range<usize>,
}

/// Attention over cached keys and values of one layer; `q` and `o` are `(t, h · hd)`.
///
/// A sequence with few queries and a long context is split over its segments, so that one stream
/// occupies every thread.
pub fn attend_cached(
    cpu: Cpu,
    pool: &Pool,
    cache: LayerBlocks<'_>,
    sequences: &[SpanQueries<'_>],
    spec: &Attention<'_>,
    q: &[f32],
    o: &mut [f32],
) {
    assert!(spec.causal, "a cache holds no tokens to come");
    let walk = |item: &Item| {
        let sequence = &sequences[item.sequence];
        let (layout, lines, table) = (cache.layout, cache.lines, Some(sequence.blocks));
        let keys = HeadBlocks { layout, lines, table, kv_head: item.kv_head };
        let rows = Rows { rows: sequence.rows.clone(), start: sequence.start };
        Walk::new(spec, keys, item.kv_head, &rows, item.walk)
    };
    let (items, splits, parts) = items(sequences, spec, &walk);
    let size = QUERIES * state::size(spec.head_dim);
    let output = Output::new(o, spec.heads * spec.head_dim, 0);
    with_values(parts * size, |states| {
        let states = SharedSlice::new(states);
        pool.run(items.len(), &|index| {
            let (item, walk) = (&items[index], walk(&items[index]));
            match item.part {
                Some((segment, part)) => {
                    let used = part * size..part * size + walk.state_numbers();
                    // SAFETY: each part is one item's.
                    walk.segment(cpu, segment, q, unsafe { states.part(used) });
                }
                // SAFETY: walks differ in their rows or heads, hence in their outputs.
                None => unsafe { whole(cpu, &walk, q, &output, None) },
            }
        });
        pool.run(splits.len(), &|index| {
            let Split { item, parts } = &splits[index];
            let walk = walk(item);
            let used = |part: usize| part * size..part * size + walk.state_numbers();
            // SAFETY: the parts of a split are its own, and everybody who wrote them is done.
            let total = unsafe { states.part(used(parts.start)) };
            for part in parts.start + 1..parts.end {
                // SAFETY: as above.
                walk.merge(cpu, total, unsafe { states.part(used(part)) });
            }
            // SAFETY: walks differ in their rows or heads, hence in their outputs.
            unsafe { walk.finish(cpu, total, &output, None) };
        });
    });
}

/// What is to be walked: the items, the walks that were split, and the number of parts.
fn items<'a>(
    sequences: &[SpanQueries<'_>],
    spec: &Attention<'_>,
    walk: &impl Fn(&Item) -> Walk<'a>,
) -> (Vec<Item>, Vec<Split>, usize) {
    let (mut items, mut splits, mut parts) = (Vec::new(), Vec::new(), 0);
    for (sequence, queries) in sequences.iter().enumerate() {
        let walks = Walk::count(spec, queries.rows.len());
        for (index, kv_head) in (0..walks).flat_map(|w| (0..spec.kv_heads).map(move |kv| (w, kv))) {
            let item = Item { sequence, kv_head, walk: index, part: None };
            let segments = walk(&item).segments();
            if walks > 1 || segments.len() == 1 {
                items.push(item);
                continue;
            }
            let first = parts;
            for segment in segments {
                items.push(Item { part: Some((segment, parts)), ..item });
                parts += 1;
            }
            splits.push(Split { item, parts: first..parts });
        }
    }
    (items, splits, parts)
}

/// One walk from its first segment to its outputs.
///
/// # Safety
/// No other thread may touch the outputs of this walk meanwhile.
unsafe fn whole(cpu: Cpu, walk: &Walk<'_>, q: &[f32], o: &Output<'_>, lse: Option<&Output<'_>>) {
    let size = walk.state_numbers();
    with_values(2 * size, |states| {
        let (states, spare) = states.split_at_mut(size);
        walk.all(cpu, q, states, spare);
        // SAFETY: by this function's contract.
        unsafe { walk.finish(cpu, states, o, lse) };
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
    // One head by itself, laid out anew from the batch.
    let layout = Layout { format: Format::F32, kv_heads: 1, head_dim: hd };
    let size = layout.block_lines();
    pool.run(spans.len() * kv, &|item| {
        let (span, kv_head) = (spans[item / kv].clone(), item % kv);
        with_lines(span.len().div_ceil(LANES) * size, |blocks| {
            for (i, row) in span.clone().enumerate() {
                let block = &mut blocks[i / LANES * size..][..size];
                let at = (row * kv + kv_head) * hd;
                layout.write(block, i % LANES, &k[at..at + hd], &v[at..at + hd]);
            }
            let keys = HeadBlocks { layout, lines: blocks, table: None, kv_head: 0 };
            let rows = Rows { rows: span.clone(), start: 0 };
            for index in 0..Walk::count(spec, span.len()) {
                let walk = Walk::new(spec, keys, kv_head, &rows, index);
                // SAFETY: walks differ in their rows or in their key-value head.
                unsafe { whole(cpu, &walk, q, &output, Some(&lse)) };
            }
        });
    });
}
