//! The waist on the CPU: each operation splits its rows over the pool and calls one kernel.

use std::ops::Range;

use super::buffers::FreeList;
use super::{CpuBackend, CpuCache, CpuRows, CpuWeight, cache, specs};
use crate::backend::{
    Activation, AdamStep, AttentionSpec, Backend, CacheShape, HeadsSpec, HostWeight, LossSum,
    LowRankGradient, Norm, Part, SequenceRows, SharedMatrix, WeightFormat, dropout_keeps,
};
use crate::domain::IGNORE_INDEX;
use crate::kernels::attention::{self, SpanQueries};
use crate::kernels::loss::{self, RowLoss};
use crate::kernels::optimiser::{self, SQUARES_RUN};
use crate::kernels::scratch::with_values;
use crate::kernels::split::{PerItem, split};
use crate::kernels::{elementwise, heads, memory, mlp, norm};

/// Values that elementwise work takes at a time, at least.
const PIECE: usize = 64;

/// The rows of `range` in a matrix of this width.
fn span(rows: &Range<usize>, width: usize) -> Range<usize> {
    rows.start * width..rows.end * width
}

impl CpuBackend {
    /// Calls `task` with pieces of `x` and the same pieces of `y`.
    fn zip(&self, x: &[f32], y: &mut [f32], task: impl Fn(&[f32], &mut [f32]) + Sync) {
        assert_eq!(x.len(), y.len(), "both matrices must have the same size");
        self.pieces(y, |range, y| task(&x[range], y));
    }

    /// Calls `task` with pieces of `x` and where they lie.
    fn pieces(&self, x: &mut [f32], task: impl Fn(Range<usize>, &mut [f32]) + Sync) {
        let count = x.len().div_ceil(PIECE);
        split(&self.pool, count, PIECE, PerItem::new(x, PIECE), |pieces, x| {
            task(pieces.start * PIECE..pieces.start * PIECE + x.len(), x);
        });
    }
}

impl Backend for CpuBackend {
    type Rows = CpuRows;
    type Weight = CpuWeight;
    type Cache = CpuCache;

    fn zeros(&mut self, rows: usize, width: usize) -> CpuRows {
        let mut x = self.free.take(rows, width);
        x.values_mut().fill(0.0);
        x
    }

    fn room(&mut self, rows: usize, width: usize) -> CpuRows {
        self.free.take(rows, width)
    }

    fn trim(&mut self) {
        self.free = FreeList::default();
    }

    fn available_bytes(&self) -> Option<usize> {
        memory::available_bytes()
    }

    fn upload(&mut self, values: &[f32], rows: usize, width: usize) -> CpuRows {
        let mut x = self.free.take(rows, width);
        x.values_mut().copy_from_slice(values);
        x
    }

    fn share(&mut self, values: SharedMatrix, rows: usize, width: usize) -> CpuRows {
        CpuRows::shared(values, rows, width)
    }

    fn download(&self, x: &CpuRows) -> Vec<f32> {
        x.values().to_vec()
    }

    fn overwrite(&mut self, x: &mut CpuRows, values: &[f32]) {
        x.values_mut().copy_from_slice(values);
    }

    fn shape(&self, x: &CpuRows) -> (usize, usize) {
        (x.rows, x.width)
    }

    fn recycle(&mut self, x: CpuRows) {
        self.free.give(x);
    }

    fn duplicate(&mut self, x: &CpuRows) -> CpuRows {
        self.upload(x.values(), x.rows, x.width)
    }

    fn pack(&mut self, weight: HostWeight<'_>, format: WeightFormat) -> CpuWeight {
        CpuWeight::pack(weight, format)
    }

    fn weight_bytes(&self, weight: &CpuWeight) -> usize {
        weight.bytes()
    }

    fn weight_shape(&self, weight: &CpuWeight) -> (usize, usize) {
        weight.shape()
    }

    fn unpack(&self, weight: &CpuWeight) -> Vec<f32> {
        let (n, k) = weight.shape();
        let mut values = vec![0.0; n * k];
        split(&self.pool, n, k, PerItem::new(&mut values, k), |rows, values| {
            for (row, to) in rows.zip(values.chunks_exact_mut(k.max(1))) {
                weight.row(row, to);
            }
        });
        values
    }

    fn cache(&mut self, shape: &CacheShape) -> CpuCache {
        CpuCache::new(shape)
    }

    fn cache_block_bytes(&self, shape: &CacheShape) -> usize {
        shape.layers * cache::block_bytes(shape)
    }

    fn copy_block(&mut self, cache: &mut CpuCache, from: u32, to: u32) {
        cache.copy(from, to);
    }

    fn embed(&mut self, table: &CpuWeight, ids: &[u32], scale: f32, y: &mut CpuRows) {
        let (width, cpu) = (y.width, self.cpu);
        assert_eq!((ids.len(), table.shape().1), (y.rows, width), "one row per id");
        split(&self.pool, ids.len(), width, PerItem::new(y.values_mut(), width), |rows, y| {
            for (&id, y) in ids[rows].iter().zip(y.chunks_exact_mut(width.max(1))) {
                table.row(id as usize, y);
            }
            if scale != 1.0 {
                elementwise::scale(cpu, scale, y);
            }
        });
    }

    fn matmul(
        &mut self,
        x: &CpuRows,
        w: &CpuWeight,
        bias: Option<&CpuRows>,
        y: &mut CpuRows,
        at: usize,
    ) {
        self.product(x, w, bias, y, at);
    }

    fn add_low_rank(
        &mut self,
        x: &CpuRows,
        rows: Range<usize>,
        a: &CpuRows,
        b: &CpuRows,
        scaling: f32,
        y: &mut CpuRows,
        at: usize,
    ) {
        self.low_rank(x, rows, a, b, scaling, y, at);
    }

    fn project(&mut self, x: &CpuRows, parts: &[Part<'_, Self>], y: &mut CpuRows) {
        self.project_adapted(x, parts, y);
    }

    fn project_backward(
        &mut self,
        dy: &CpuRows,
        x: &CpuRows,
        parts: &[Part<'_, Self>],
        gradients: &mut [Option<LowRankGradient<'_, CpuRows>>],
        dx: Option<&mut CpuRows>,
    ) {
        self.project_adapted_backward(dy, x, parts, gradients, dx);
    }

    fn norm(&mut self, x: &CpuRows, norm: &Norm<CpuRows>, y: &mut CpuRows) {
        let (width, row, cpu) = (x.width, specs::norm(norm), self.cpu);
        assert_eq!((y.rows, y.width, row.weight.len()), (x.rows, width, width));
        let y = PerItem::new(y.values_mut(), width);
        split(&self.pool, x.rows, 2 * width, y, |rows, y| {
            norm::forward(cpu, &x.values()[span(&rows, width)], row, y);
        });
    }

    fn heads(
        &mut self,
        qkv: &CpuRows,
        spec: &HeadsSpec<CpuRows>,
        positions: &[u32],
        q: &mut CpuRows,
        k: &mut CpuRows,
        v: &mut CpuRows,
    ) {
        let (width, qw, kw) = (qkv.width, q.width, k.width);
        assert_eq!((width, v.width), (qw + 2 * kw, kw), "q, k and v must share qkv");
        let (cpu, all) = (self.cpu, specs::heads(spec, &mut self.ropes, positions));
        let out = (
            PerItem::new(q.values_mut(), qw),
            PerItem::new(k.values_mut(), kw),
            PerItem::new(v.values_mut(), kw),
        );
        split(&self.pool, positions.len(), 2 * width, out, |rows, (q, k, v)| {
            let x = &qkv.values()[span(&rows, width)];
            with_values(spec.head_dim, |spare| {
                heads::forward(cpu, x, &all, &positions[rows], q, k, v, spare);
            });
        });
    }

    fn write_cache(
        &mut self,
        cache: &mut CpuCache,
        layer: usize,
        sequences: &[SequenceRows],
        k: &CpuRows,
        v: &CpuRows,
    ) {
        cache.write(layer, sequences, k.values(), v.values());
    }

    fn attention_cached(
        &mut self,
        cache: &CpuCache,
        layer: usize,
        sequences: &[SequenceRows],
        spec: &AttentionSpec,
        q: &CpuRows,
        o: &mut CpuRows,
    ) {
        let queries: Vec<_> = sequences
            .iter()
            .map(|s| SpanQueries { rows: s.rows.clone(), start: s.start, blocks: &s.blocks })
            .collect();
        let (spec, blocks) = (specs::attention(spec), cache.layer(layer));
        let (cpu, pool) = (self.cpu, &self.pool);
        attention::attend_cached(cpu, pool, blocks, &queries, &spec, q.values(), o.values_mut());
    }

    fn attention(
        &mut self,
        q: &CpuRows,
        k: &CpuRows,
        v: &CpuRows,
        spans: &[Range<usize>],
        spec: &AttentionSpec,
        o: &mut CpuRows,
        lse: &mut CpuRows,
    ) {
        let inputs = (q.values(), k.values(), v.values());
        let (o, lse, spec) = (o.values_mut(), lse.values_mut(), specs::attention(spec));
        attention::attend_spans(self.cpu, &self.pool, inputs, spans, &spec, o, lse);
    }

    fn mlp_inner(&mut self, up: &CpuRows, kind: Activation, gated: bool, u: &mut CpuRows) {
        let (width, ff, cpu, kind) = (up.width, u.width, self.cpu, specs::act(kind));
        assert_eq!((width, u.rows), (ff * (1 + usize::from(gated)), up.rows));
        split(&self.pool, up.rows, 8 * ff, PerItem::new(u.values_mut(), ff), |rows, u| {
            let x = &up.values()[span(&rows, width)];
            match gated {
                true => mlp::gated(cpu, kind, x, ff, u),
                false => mlp::activate(cpu, kind, x, u),
            }
        });
    }

    fn add(&mut self, x: &CpuRows, y: &mut CpuRows) {
        let cpu = self.cpu;
        self.zip(x.values(), y.values_mut(), |x, y| elementwise::add(cpu, x, y));
    }

    fn gather(&mut self, x: &CpuRows, rows: &[usize], y: &mut CpuRows) {
        let width = x.width;
        assert_eq!((y.rows, y.width), (rows.len(), width), "one row per index");
        for (y, &row) in y.values_mut().chunks_exact_mut(width.max(1)).zip(rows) {
            y.copy_from_slice(&x.values()[row * width..(row + 1) * width]);
        }
    }

    fn scale_logits(&mut self, z: &mut CpuRows, scale: f32, softcap: Option<f32>) {
        let cpu = self.cpu;
        match softcap {
            Some(cap) => {
                self.pieces(z.values_mut(), |_, z| elementwise::soft_cap(cpu, scale, cap, z));
            }
            None if scale != 1.0 => self.scale(z, scale),
            None => {}
        }
    }

    fn dropout(&mut self, x: &CpuRows, key: u64, p: f32, y: &mut CpuRows) {
        let x = x.values();
        self.pieces(y.values_mut(), |range, y| {
            for ((index, y), x) in range.clone().zip(y).zip(&x[range.clone()]) {
                *y = if dropout_keeps(key, index, p) { x / (1.0 - p) } else { 0.0 };
            }
        });
    }

    fn matmul_backward(&mut self, dy: &CpuRows, at: usize, w: &CpuWeight, dx: &mut CpuRows) {
        self.product_backward(dy, at, w, dx);
    }

    fn weight_gradient(
        &mut self,
        dy: &CpuRows,
        at: usize,
        x: &CpuRows,
        dw: &mut CpuRows,
        db: Option<&mut CpuRows>,
    ) {
        self.full_gradient(dy, at, x, dw, db);
    }

    fn low_rank_backward(
        &mut self,
        dy: &CpuRows,
        at: usize,
        x: &CpuRows,
        a: &CpuRows,
        b: &CpuRows,
        scaling: f32,
        da: &mut CpuRows,
        db: &mut CpuRows,
        dx: &mut CpuRows,
    ) {
        self.low_rank_gradients(dy, at, x, a, b, scaling, da, db, dx);
    }

    fn norm_backward(
        &mut self,
        dy: &CpuRows,
        x: &CpuRows,
        norm: &Norm<CpuRows>,
        dx: &mut CpuRows,
        dweight: Option<&mut CpuRows>,
        dbias: Option<&mut CpuRows>,
    ) {
        let (width, row, cpu) = (x.width, specs::norm(norm), self.cpu);
        assert_eq!((dy.rows, dx.rows, dy.width, dx.width), (x.rows, x.rows, width, width));
        let (rows, x, dy) = (x.rows, x.values(), dy.values());
        self.work.moments.resize(rows, [0.0; 2]);
        let moments = PerItem::new(&mut self.work.moments, 1);
        let out = (PerItem::new(dx.values_mut(), width), moments);
        split(&self.pool, rows, 3 * width, out, |rows, (dx, moments)| {
            let values = span(&rows, width);
            norm::backward(cpu, &dy[values.clone()], &x[values], row, dx, moments);
        });
        if dweight.is_none() && dbias.is_none() {
            return;
        }
        let moments = &self.work.moments;
        let dw = PerItem::new(dweight.map_or(&mut [], |dw| dw.values_mut()), 16);
        let db = PerItem::new(dbias.map_or(&mut [], |db| db.values_mut()), 16);
        split(&self.pool, width.div_ceil(16), 16 * rows, (dw, db), |lines, (dw, db)| {
            norm::weight_gradient(cpu, dy, x, moments, width, lines.start * 16, dw, db);
        });
    }

    fn heads_backward(
        &mut self,
        dq: &CpuRows,
        dk: &CpuRows,
        dv: &CpuRows,
        qkv: &CpuRows,
        spec: &HeadsSpec<CpuRows>,
        positions: &[u32],
        dqkv: &mut CpuRows,
    ) {
        let (width, qw, kw) = (qkv.width, dq.width, dk.width);
        assert_eq!((width, dqkv.width), (qw + 2 * kw, width), "q, k and v must share qkv");
        let (cpu, all) = (self.cpu, specs::heads(spec, &mut self.ropes, positions));
        let out = PerItem::new(dqkv.values_mut(), width);
        split(&self.pool, positions.len(), 2 * width, out, |rows, dx| {
            let x = &qkv.values()[span(&rows, width)];
            let (dq, dk) = (&dq.values()[span(&rows, qw)], &dk.values()[span(&rows, kw)]);
            let dv = &dv.values()[span(&rows, kw)];
            with_values(2 * spec.head_dim, |spare| {
                heads::backward(cpu, dq, dk, dv, x, &all, &positions[rows], dx, spare);
            });
        });
    }

    fn attention_backward(
        &mut self,
        d_o: &CpuRows,
        q: &CpuRows,
        k: &CpuRows,
        v: &CpuRows,
        o: &CpuRows,
        lse: &CpuRows,
        spans: &[Range<usize>],
        spec: &AttentionSpec,
        dq: &mut CpuRows,
        dk: &mut CpuRows,
        dv: &mut CpuRows,
    ) {
        let saved = attention::Saved {
            d_o: d_o.values(),
            q: q.values(),
            k: k.values(),
            v: v.values(),
            o: o.values(),
            lse: lse.values(),
        };
        let (dq, dk, dv) = (dq.values_mut(), dk.values_mut(), dv.values_mut());
        let (cpu, pool, spec) = (self.cpu, &self.pool, specs::attention(spec));
        attention::backward(cpu, pool, &saved, spans, &spec, dq, dk, dv);
    }

    fn mlp_inner_backward(
        &mut self,
        du: &CpuRows,
        up: &CpuRows,
        kind: Activation,
        gated: bool,
        dup: &mut CpuRows,
    ) {
        let (width, ff, cpu, kind) = (up.width, du.width, self.cpu, specs::act(kind));
        assert_eq!((width, dup.width), (ff * (1 + usize::from(gated)), width));
        let out = PerItem::new(dup.values_mut(), width);
        split(&self.pool, up.rows, 8 * ff, out, |rows, dx| {
            let (du, x) = (&du.values()[span(&rows, ff)], &up.values()[span(&rows, width)]);
            match gated {
                true => mlp::gated_backward(cpu, kind, du, x, ff, dx),
                false => mlp::activate_backward(cpu, kind, du, x, dx),
            }
        });
    }

    fn cross_entropy(&mut self, z: &mut CpuRows, labels: &[i32], weight: f32) -> LossSum {
        let (width, cpu) = (z.width, self.cpu);
        assert_eq!(labels.len(), z.rows, "one label per row");
        let losses = &mut self.work.losses;
        losses.clear();
        losses.resize(labels.len(), RowLoss::default());
        let out = (PerItem::new(z.values_mut(), width), PerItem::new(losses, 1));
        split(&self.pool, labels.len(), 2 * width, out, |rows, (z, losses)| {
            let rows = labels[rows].iter().zip(z.chunks_exact_mut(width)).zip(losses);
            for ((&label, z), row) in rows {
                match label {
                    IGNORE_INDEX => z.fill(0.0),
                    label => *row = loss::cross_entropy(cpu, z, label as usize, weight),
                }
            }
        });
        let tokens = labels.iter().filter(|&&label| label != IGNORE_INDEX).count();
        let losses = &self.work.losses;
        LossSum {
            loss: losses.iter().map(|row| row.loss).sum(),
            tokens,
            correct: losses.iter().filter(|row| row.correct).count(),
        }
    }

    fn scale_logits_backward(
        &mut self,
        z: &CpuRows,
        scale: f32,
        softcap: Option<f32>,
        dz: &mut CpuRows,
    ) {
        let cpu = self.cpu;
        match softcap {
            Some(cap) => self.zip(z.values(), dz.values_mut(), |z, dz| {
                elementwise::soft_cap_backward(cpu, z, scale, cap, dz);
            }),
            None if scale != 1.0 => self.scale(dz, scale),
            None => {}
        }
    }

    fn scatter_add(&mut self, x: &CpuRows, rows: &[usize], y: &mut CpuRows) {
        let (width, cpu) = (x.width, self.cpu);
        assert_eq!((x.rows, y.width), (rows.len(), width), "one row per index");
        let y = y.values_mut();
        for (x, &row) in x.values().chunks_exact(width.max(1)).zip(rows) {
            elementwise::add(cpu, x, &mut y[row * width..(row + 1) * width]);
        }
    }

    fn embed_backward(&mut self, dy: &CpuRows, ids: &[u32], scale: f32, de: &mut CpuRows) {
        let (width, cpu) = (dy.width, self.cpu);
        assert_eq!((dy.rows, de.width), (ids.len(), width), "one row per id");
        let de = de.values_mut();
        for (dy, &id) in dy.values().chunks_exact(width.max(1)).zip(ids) {
            let row = &mut de[id as usize * width..(id as usize + 1) * width];
            elementwise::add_scaled(cpu, scale, dy, row);
        }
    }

    fn sum_of_squares(&mut self, x: &CpuRows) -> f64 {
        let x = x.values();
        let runs = x.len().div_ceil(SQUARES_RUN);
        self.work.sums.resize(runs, 0.0);
        let sums = PerItem::new(&mut self.work.sums, 1);
        split(&self.pool, runs, SQUARES_RUN, sums, |range, sums| {
            for (run, sum) in range.zip(sums) {
                let values = run * SQUARES_RUN..x.len().min((run + 1) * SQUARES_RUN);
                *sum = optimiser::sum_of_squares(&x[values]);
            }
        });
        self.work.sums.iter().sum()
    }

    fn scale(&mut self, x: &mut CpuRows, factor: f32) {
        let cpu = self.cpu;
        self.pieces(x.values_mut(), |_, x| elementwise::scale(cpu, factor, x));
    }

    fn adamw(
        &mut self,
        p: &mut CpuRows,
        g: &CpuRows,
        m: &mut CpuRows,
        v: &mut CpuRows,
        step: &AdamStep,
    ) {
        let (adam, cpu, g) = (specs::adam(step), self.cpu, g.values());
        assert!(p.values().len() == g.len() && m.values().len() == g.len());
        assert_eq!(v.values().len(), g.len(), "moments have the size of the parameter");
        let count = g.len().div_ceil(PIECE);
        let out = (
            PerItem::new(p.values_mut(), PIECE),
            PerItem::new(m.values_mut(), PIECE),
            PerItem::new(v.values_mut(), PIECE),
        );
        split(&self.pool, count, 4 * PIECE, out, |pieces, (p, m, v)| {
            let g = &g[pieces.start * PIECE..pieces.start * PIECE + p.len()];
            optimiser::adamw(cpu, adam, p, g, m, v);
        });
    }
}
