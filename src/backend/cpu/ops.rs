//! The waist on the CPU: each operation splits its rows over the pool and calls one kernel.
#![allow(unsafe_code)]

use std::ops::Range;

use super::{CpuBackend, CpuCache, CpuRows, CpuWeight};
use crate::backend::{
    Activation, AdamStep, AttentionSpec, Backend, HeadsSpec, HostWeight, LossSum, Norm, NormKind,
    SequenceRows, WeightFormat, dropout_keeps,
};
use crate::domain::IGNORE_INDEX;
use crate::kernels::attention::{self, Attention, SpanQueries};
use crate::kernels::elementwise;
use crate::kernels::heads::{self, Heads};
use crate::kernels::loss::{self, RowLoss};
use crate::kernels::mlp::{self, Act};
use crate::kernels::norm::{self, NormRow};
use crate::kernels::optimiser::{self, Adam, SQUARES_RUN};
use crate::kernels::scratch::with_values;
use crate::kernels::shared::SharedSlice;

/// The elements of `range`, which no two tasks of one region share.
///
/// Every region below hands each task its own range of rows or columns.
#[allow(clippy::mut_from_ref)]
pub(super) fn part<'a, T>(slice: &'a SharedSlice<'_, T>, range: Range<usize>) -> &'a mut [T] {
    // SAFETY: tasks of a region work on disjoint ranges, and each asks for its own once.
    unsafe { slice.part(range) }
}

/// The rows of `range` in a matrix of this width.
fn span(rows: &Range<usize>, width: usize) -> Range<usize> {
    rows.start * width..rows.end * width
}

fn act(act: Activation) -> Act {
    match act {
        Activation::Silu => Act::Silu,
        Activation::Gelu => Act::Gelu,
        Activation::GeluTanh => Act::GeluTanh,
    }
}

fn norm_row(norm: &Norm<CpuRows>) -> NormRow<'_> {
    NormRow {
        centred: norm.kind == NormKind::Layer,
        eps: norm.eps,
        weight: norm.weight.values(),
        bias: norm.bias.as_ref().map(CpuRows::values),
    }
}

fn attention_of(spec: &AttentionSpec) -> Attention<'_> {
    Attention {
        heads: spec.heads,
        kv_heads: spec.kv_heads,
        head_dim: spec.head_dim,
        scale: spec.scale,
        window: spec.window,
        softcap: spec.softcap,
        alibi: spec.alibi.as_deref(),
    }
}

impl CpuBackend {
    /// Calls `task` with pieces of `x` and the same pieces of `y`.
    fn zip(&self, x: &[f32], y: &mut [f32], task: impl Fn(&[f32], &mut [f32]) + Sync) {
        assert_eq!(x.len(), y.len(), "both matrices must have the same size");
        let (count, y) = (y.len(), SharedSlice::new(y));
        self.pool.split(count.div_ceil(64), 64, &|lines| {
            let values = lines.start * 64..count.min(lines.end * 64);
            task(&x[values.clone()], part(&y, values));
        });
    }

    /// Calls `task` with pieces of `x`.
    fn pieces(&self, x: &mut [f32], task: impl Fn(Range<usize>, &mut [f32]) + Sync) {
        let (count, x) = (x.len(), SharedSlice::new(x));
        self.pool.split(count.div_ceil(64), 64, &|lines| {
            let values = lines.start * 64..count.min(lines.end * 64);
            task(values.clone(), part(&x, values));
        });
    }
}

/// What the kernels need to know of the heads. The table reaches all positions.
macro_rules! heads_spec {
    ($self:ident, $spec:ident, $positions:ident) => {
        Heads {
            heads: $spec.heads,
            kv_heads: $spec.kv_heads,
            head_dim: $spec.head_dim,
            clip: $spec.clip,
            q_norm: $spec.q_norm.as_ref().map(norm_row),
            k_norm: $spec.k_norm.as_ref().map(norm_row),
            rope: match &$spec.rope_frequencies[..] {
                [] => None,
                frequencies => Some($self.ropes.table(frequencies, $spec.rope_scale, $positions)),
            },
        }
    };
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

    fn upload(&mut self, values: &[f32], rows: usize, width: usize) -> CpuRows {
        let mut x = self.free.take(rows, width);
        x.values_mut().copy_from_slice(values);
        x
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
        let target = SharedSlice::new(&mut values);
        self.pool.split(n, k, &|rows| {
            for row in rows {
                weight.row(row, part(&target, row * k..(row + 1) * k));
            }
        });
        values
    }

    fn cache(
        &mut self,
        layers: usize,
        kv_heads: usize,
        head_dim: usize,
        blocks: usize,
    ) -> CpuCache {
        CpuCache::new(layers, kv_heads, head_dim, blocks)
    }

    fn copy_block(&mut self, cache: &mut CpuCache, from: u32, to: u32) {
        cache.copy(from, to);
    }

    fn embed(&mut self, table: &CpuWeight, ids: &[u32], scale: f32, y: &mut CpuRows) {
        let (width, cpu) = (y.width, self.cpu);
        assert_eq!((ids.len(), table.shape().1), (y.rows, width), "one row per id");
        let y = SharedSlice::new(y.values_mut());
        self.pool.split(ids.len(), width, &|rows| {
            for row in rows {
                let y = part(&y, row * width..(row + 1) * width);
                table.row(ids[row] as usize, y);
                if scale != 1.0 {
                    elementwise::scale(cpu, scale, y);
                }
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

    fn norm(&mut self, x: &CpuRows, norm: &Norm<CpuRows>, y: &mut CpuRows) {
        let (width, row, cpu) = (x.width, norm_row(norm), self.cpu);
        assert_eq!((y.rows, y.width, row.weight.len()), (x.rows, width, width));
        let (x_values, y) = (x.values(), SharedSlice::new(y.values_mut()));
        self.pool.split(x.rows, 2 * width, &|rows| {
            let rows = span(&rows, width);
            norm::forward(cpu, &x_values[rows.clone()], row, part(&y, rows));
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
        let (all, cpu) = (heads_spec!(self, spec, positions), self.cpu);
        let q = SharedSlice::new(q.values_mut());
        let (k, v) = (SharedSlice::new(k.values_mut()), SharedSlice::new(v.values_mut()));
        self.pool.split(positions.len(), 2 * width, &|rows| {
            let x = &qkv.values()[span(&rows, width)];
            let (q, k) = (part(&q, span(&rows, qw)), part(&k, span(&rows, kw)));
            let v = part(&v, span(&rows, kw));
            with_values(spec.head_dim, |spare| {
                heads::forward(cpu, x, &all, &positions[rows.clone()], q, k, v, spare);
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
        let (spec, blocks) = (attention_of(spec), cache.layer(layer));
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
        let (o, lse, spec) = (o.values_mut(), lse.values_mut(), attention_of(spec));
        attention::attend_spans(self.cpu, &self.pool, inputs, spans, &spec, o, lse);
    }

    fn mlp_inner(&mut self, up: &CpuRows, kind: Activation, gated: bool, u: &mut CpuRows) {
        let (width, ff, cpu, kind) = (up.width, u.width, self.cpu, act(kind));
        assert_eq!((width, u.rows), (ff * (1 + usize::from(gated)), up.rows));
        let u = SharedSlice::new(u.values_mut());
        self.pool.split(up.rows, 8 * ff, &|rows| {
            let (x, u) = (&up.values()[span(&rows, width)], part(&u, span(&rows, ff)));
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
        let (width, row, cpu) = (x.width, norm_row(norm), self.cpu);
        assert_eq!((dy.rows, dx.rows, dy.width, dx.width), (x.rows, x.rows, width, width));
        let (x_values, dy_values) = (x.values(), dy.values());
        self.work.moments.resize(x.rows, [0.0; 2]);
        let moments = SharedSlice::new(&mut self.work.moments);
        let dx = SharedSlice::new(dx.values_mut());
        self.pool.split(x.rows, 3 * width, &|rows| {
            let (values, moments) = (span(&rows, width), part(&moments, rows));
            let (dy, x) = (&dy_values[values.clone()], &x_values[values.clone()]);
            norm::backward(cpu, dy, x, row, part(&dx, values), moments);
        });
        if dweight.is_none() && dbias.is_none() {
            return;
        }
        let dw = SharedSlice::new(dweight.map_or(&mut [], |dw| dw.values_mut()));
        let db = SharedSlice::new(dbias.map_or(&mut [], |db| db.values_mut()));
        let moments = &self.work.moments;
        self.pool.split(width.div_ceil(16), 16 * x.rows, &|lines| {
            let columns = lines.start * 16..width.min(lines.end * 16);
            let some = |sums: &SharedSlice<'_, f32>| match sums.len() {
                0 => 0..0,
                _ => columns.clone(),
            };
            let (dw, db) = (part(&dw, some(&dw)), part(&db, some(&db)));
            let at = columns.start;
            norm::weight_gradient(cpu, dy_values, x_values, moments, width, at, dw, db);
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
        let (all, cpu) = (heads_spec!(self, spec, positions), self.cpu);
        let dqkv = SharedSlice::new(dqkv.values_mut());
        self.pool.split(positions.len(), 2 * width, &|rows| {
            let (x, dx) = (&qkv.values()[span(&rows, width)], part(&dqkv, span(&rows, width)));
            let (dq, dk) = (&dq.values()[span(&rows, qw)], &dk.values()[span(&rows, kw)]);
            let dv = &dv.values()[span(&rows, kw)];
            with_values(2 * spec.head_dim, |spare| {
                heads::backward(cpu, dq, dk, dv, x, &all, &positions[rows.clone()], dx, spare);
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
        let (cpu, pool, spec) = (self.cpu, &self.pool, attention_of(spec));
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
        let (width, ff, cpu, kind) = (up.width, du.width, self.cpu, act(kind));
        assert_eq!((width, dup.width), (ff * (1 + usize::from(gated)), width));
        let dup = SharedSlice::new(dup.values_mut());
        self.pool.split(up.rows, 8 * ff, &|rows| {
            let (du, x) = (&du.values()[span(&rows, ff)], &up.values()[span(&rows, width)]);
            let dx = part(&dup, span(&rows, width));
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
        let (z, losses) = (SharedSlice::new(z.values_mut()), SharedSlice::new(losses));
        self.pool.split(labels.len(), 2 * width, &|rows| {
            for row in rows {
                let z = part(&z, row * width..(row + 1) * width);
                match labels[row] {
                    IGNORE_INDEX => z.fill(0.0),
                    label => {
                        let loss = loss::cross_entropy(cpu, z, label as usize, weight);
                        part(&losses, row..row + 1)[0] = loss;
                    }
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
        let sums = SharedSlice::new(&mut self.work.sums);
        self.pool.split(runs, SQUARES_RUN, &|range| {
            for run in range {
                let values = run * SQUARES_RUN..x.len().min((run + 1) * SQUARES_RUN);
                part(&sums, run..run + 1)[0] = optimiser::sum_of_squares(&x[values]);
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
        let (adam, cpu, g) = (adam(step), self.cpu, g.values());
        assert!(p.values().len() == g.len() && m.values().len() == g.len());
        assert_eq!(v.values().len(), g.len(), "moments have the size of the parameter");
        let (m, v) = (SharedSlice::new(m.values_mut()), SharedSlice::new(v.values_mut()));
        self.pieces(p.values_mut(), |range, p| {
            let (m, v) = (part(&m, range.clone()), part(&v, range.clone()));
            optimiser::adamw(cpu, adam, p, &g[range], m, v);
        });
    }
}

/// The factors of one step, computed in `f64` and applied in `f32`.
fn adam(step: &AdamStep) -> Adam {
    let power = step.step as i32;
    Adam {
        decay: (1.0 - step.learning_rate * step.weight_decay) as f32,
        beta2: step.beta2 as f32,
        rest1: (1.0 - step.beta1) as f32,
        rest2: (1.0 - step.beta2) as f32,
        rate: (step.learning_rate / (1.0 - step.beta1.powi(power))) as f32,
        correction: (1.0 - step.beta2.powi(power)).sqrt() as f32,
        epsilon: step.epsilon as f32,
    }
}
