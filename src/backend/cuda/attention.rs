//! Attention over the cache and within spans, and its backward: who works on what.

use std::ops::Range;

use super::machine::WARPS;
use super::source::Module;
use super::{CudaBackend, CudaCache, CudaRows, float};
use crate::backend::{AttentionSpec, KvFormat, SequenceRows};

/// `SEGMENT` in `attention.cu`.
const SEGMENT: usize = 256;
/// `MOST_HEAD_DIM` in `attend.cu`.
pub(super) const MOST_HEAD_DIM: usize = 256;
const ALL: u32 = u32::MAX;

/// `Work` in `attend.cu`: first row, vectors, first vector, position, base, segment.
type Work = [u32; 6];

/// Work items, and the runs of them that are merged.
#[derive(Default)]
struct Plan {
    work: Vec<Work>,
    /// First item, items.
    runs: Vec<[u32; 2]>,
}

impl Plan {
    /// Rows `rows` of a sequence whose first is at position `start`. Where one block per key-value
    /// head would read more than a segment, each segment has a block of its own.
    fn sequence(&mut self, rows: &Range<usize>, start: usize, base: usize, spec: &AttentionSpec) {
        let vectors = rows.len() * spec.heads / spec.kv_heads;
        let seen = spec.window.map_or(0, |window| (start + 1).saturating_sub(window));
        let segments = seen / SEGMENT..(start + rows.len()).div_ceil(SEGMENT);
        let split = vectors <= WARPS && segments.len() > 1;
        for first in (0..vectors).step_by(WARPS) {
            let item = |segment| {
                [
                    rows.start as u32,
                    vectors as u32,
                    first as u32,
                    start as u32,
                    base as u32,
                    segment,
                ]
            };
            if split {
                self.runs.push([self.work.len() as u32, segments.len() as u32]);
                self.work.extend(segments.clone().map(|segment| item(segment as u32)));
            } else {
                self.work.push(item(ALL));
            }
        }
    }
}

/// The members of `Attention`.
fn spec_words(b: &CudaBackend, spec: &AttentionSpec) -> [u64; 8] {
    assert!(spec.head_dim <= MOST_HEAD_DIM, "heads have at most {MOST_HEAD_DIM} values on a GPU");
    let alibi = spec.alibi.as_ref().map_or(0, |slopes| b.table(slopes));
    let (scale, cap) = (float(spec.scale), float(spec.softcap.unwrap_or(0.0)));
    let [heads, kv_heads, head_dim, window] =
        [spec.heads, spec.kv_heads, spec.head_dim, spec.window.unwrap_or(0)].map(|x| x as u64);
    [heads, kv_heads, head_dim, scale, cap, window, alibi, spec.causal.into()]
}

/// What the backward reads.
pub(super) struct Saved<'a> {
    pub q: &'a CudaRows,
    pub k: &'a CudaRows,
    pub v: &'a CudaRows,
    pub o: &'a CudaRows,
    pub lse: &'a CudaRows,
}

impl CudaBackend {
    /// See [`Backend::attention_cached`](crate::backend::Backend::attention_cached).
    pub(super) fn attend_cached(
        &self,
        cache: &CudaCache,
        layer: usize,
        sequences: &[SequenceRows],
        spec: &AttentionSpec,
        q: &CudaRows,
        o: &CudaRows,
    ) {
        let (mut plan, mut blocks) = (Plan::default(), Vec::new());
        for sequence in sequences {
            plan.sequence(&sequence.rows, sequence.start, blocks.len(), spec);
            blocks.extend_from_slice(&sequence.blocks);
        }
        let places = cache.layer(layer);
        let table = self.table(&blocks);
        self.attend(&plan, cache.shape.format, spec, q, places, table, o, None);
    }

    /// See [`Backend::attention`](crate::backend::Backend::attention).
    #[allow(clippy::too_many_arguments)]
    pub(super) fn attend_spans(
        &self,
        q: &CudaRows,
        k: &CudaRows,
        v: &CudaRows,
        spans: &[Range<usize>],
        spec: &AttentionSpec,
        o: &CudaRows,
        lse: &CudaRows,
    ) {
        let mut plan = Plan::default();
        spans.iter().for_each(|span| plan.sequence(span, 0, span.start, spec));
        let places = [k.at(), v.at(), 0, 0];
        self.attend(&plan, KvFormat::F32, spec, q, places, 0, o, Some(lse));
    }

    #[allow(clippy::too_many_arguments)]
    fn attend(
        &self,
        plan: &Plan,
        format: KvFormat,
        spec: &AttentionSpec,
        q: &CudaRows,
        places: [u64; 4],
        blocks: u64,
        o: &CudaRows,
        lse: Option<&CudaRows>,
    ) {
        let width = spec.heads * spec.head_dim;
        assert!(q.width == width && o.width == width && q.rows == o.rows, "q and o have all heads");
        if plan.work.is_empty() {
            return;
        }
        let states = if plan.runs.is_empty() { 0 } else { plan.work.len() * spec.kv_heads * WARPS };
        let partials = self.rows(states, spec.head_dim + 2);
        let work = self.table(plan.work.as_flattened());
        let rest = [blocks, work, partials.at(), o.at(), lse.map_or(0, CudaRows::at)];
        let mut args = [&spec_words(self, spec)[..], &[q.at()], &places, &rest].concat();
        let module = Module::Attention(format);
        self.launch(module, "attention", [plan.work.len(), spec.kv_heads], &args);
        if !plan.runs.is_empty() {
            args.push(self.table(plan.runs.as_flattened()));
            self.launch(module, "attention_merge", [plan.runs.len(), spec.kv_heads], &args);
        }
    }

    /// See [`Backend::attention_backward`](crate::backend::Backend::attention_backward).
    pub(super) fn attend_back(
        &self,
        d_o: &CudaRows,
        saved: &Saved<'_>,
        spans: &[Range<usize>],
        spec: &AttentionSpec,
        [dq, dk, dv]: [&CudaRows; 3],
    ) {
        assert!(spec.causal, "only causal attention is trained");
        let Saved { q, k, v, o, lse } = saved;
        let delta = self.rows(q.rows, spec.heads);
        let group = spec.heads / spec.kv_heads;
        let items = |group: usize| -> Vec<Work> {
            let of_span = |span: &Range<usize>| {
                let (row, vectors) = (span.start as u32, (span.len() * group) as u32);
                (0..vectors).step_by(WARPS).map(move |first| [row, vectors, first, 0, row, ALL])
            };
            spans.iter().flat_map(of_span).collect()
        };
        let words = |work: u64| {
            let inputs = [q, k, v, o, lse].map(|x| x.at());
            let outputs = [delta.at(), dq.at(), dk.at(), dv.at()];
            let rest = [d_o.at(), q.rows as u64, work];
            [&spec_words(self, spec)[..], &inputs, &rest, &outputs].concat()
        };
        let module = Module::AttentionBackward;
        let vectors = q.rows * spec.heads;
        self.launch(module, "attention_delta", [vectors.div_ceil(WARPS), 1], &words(0));
        for (kernel, items) in [("attention_dq", items(group)), ("attention_dkv", items(1))] {
            let args = words(self.table(items.as_flattened()));
            self.launch(module, kernel, [items.len(), spec.kv_heads], &args);
        }
    }
}
