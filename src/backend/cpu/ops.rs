//! The waist on the CPU: each operation splits its rows over the pool and calls one kernel.

use std::ops::Range;
use std::sync::Arc;

use super::buffers::FreeList;
use super::{CpuBackend, CpuCache, CpuRows, CpuWeight, cache, products, specs};
use crate::backend::{
    Activation, AdamStep, AttentionSpec, Backend, CacheShape, HeadsSpec, HostBlocks, HostMoments,
    HostThreads, HostWeight, LossSum, LowRankGradient, LowRankPart, LowRankShape, Norm, Part,
    Places, Product, SequenceRows, SharedMatrix, WeightFormat, dropout_keeps,
};
use crate::kernels::attention::{self, SpanQueries};
use crate::kernels::low_rank::PackedLowRank;
use crate::kernels::optimiser::{self, SQUARES_RUN};
use crate::kernels::scratch::with_values;
use crate::kernels::split::{PerItem, split};
use crate::kernels::{elementwise, heads, line, memory, norm};

/// The rows of `range` in a matrix of this width.
pub(super) fn span(rows: &Range<usize>, width: usize) -> Range<usize> {
    rows.start * width..rows.end * width
}

impl Backend for CpuBackend {
    type Rows = CpuRows;
    type Weight = CpuWeight;
    type LowRank = PackedLowRank;
    type Cache = CpuCache;

    fn beside(&self) -> Option<Self> {
        let alone = self.pool.threads() == 1;
        (!alone).then(|| Self::with(self.cpu, self.pool.beside()))
    }

    fn at_work(&self, works: bool) {
        self.pool.at_work(works);
    }

    fn zeros(&mut self, rows: usize, width: usize) -> CpuRows {
        let began = self.stages.begin();
        let mut x = self.free.take(rows, width);
        x.values_mut().fill(0.0);
        self.stages.end(began, "zeros", (0, 0), (size_of_val(x.values()), 0));
        x
    }

    fn room(&mut self, rows: usize, width: usize) -> CpuRows {
        self.free.take(rows, width)
    }

    fn trim(&mut self) {
        self.free = FreeList::default();
        memory::give_back();
    }

    fn available_bytes(&self) -> Option<usize> {
        memory::available_bytes()
    }

    fn resident_bytes(&self) -> Option<usize> {
        memory::resident_bytes()
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

    fn halve(&mut self, x: &CpuRows) -> CpuRows {
        self.rounded_halves(x)
    }

    fn widen(&mut self, x: &CpuRows, width: usize) -> CpuRows {
        self.out_of_halves(x, width)
    }

    fn pack(&mut self, weight: HostWeight<'_>, format: WeightFormat) -> CpuWeight {
        CpuWeight::pack(&self.pool, weight, format, line::zeroed)
    }

    fn pack_to_stay(&mut self, weight: HostWeight<'_>, format: WeightFormat) -> CpuWeight {
        CpuWeight::pack(&self.pool, weight, format, line::resident)
    }

    fn host_threads(&self) -> Arc<HostThreads> {
        Arc::clone(&self.pool)
    }

    fn adopt(&mut self, blocks: HostBlocks<'_>, out: usize, inner: usize) -> CpuWeight {
        CpuWeight::adopt(&self.pool, blocks, out, inner)
    }

    fn weight_bytes(&self, weight: &CpuWeight) -> usize {
        weight.bytes()
    }

    fn weight_shape(&self, weight: &CpuWeight) -> (usize, usize) {
        weight.shape()
    }

    fn pack_low_rank(
        &mut self,
        a: &[f32],
        b: &[f32],
        shape: LowRankShape,
        format: WeightFormat,
    ) -> Option<PackedLowRank> {
        let LowRankShape { rank, in_features, out_features } = shape;
        let format = specs::low_rank_format(format).filter(|_| self.cpu.has_low_rank())?;
        let shape = (rank, in_features, out_features);
        Some(PackedLowRank::pack(self.cpu, &self.pool, (a, b), shape, format))
    }

    fn low_rank_bytes(&self, weights: &PackedLowRank) -> usize {
        weights.size_bytes()
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
        let began = self.stages.begin();
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
        self.stages.end(began, "embed", (0, 0), (2 * size_of_val(y.values()), 0));
    }

    fn matmul(
        &mut self,
        x: &CpuRows,
        w: &CpuWeight,
        bias: Option<&CpuRows>,
        y: &mut CpuRows,
        at: usize,
    ) {
        self.products(x, &[Product { weight: w, bias, at }], y);
    }

    fn products(
        &mut self,
        x: &CpuRows,
        parts: &[Product<'_, CpuWeight, CpuRows>],
        y: &mut CpuRows,
    ) {
        let began = self.stages.begin();
        self.multiply_all(x, parts, y);
        let (shape, cost) = products::products_cost(x.rows, parts);
        self.stages.end(began, "product", shape, cost);
    }

    fn add_low_ranks(
        &mut self,
        x: &CpuRows,
        parts: &[LowRankPart<'_, PackedLowRank>],
        y: &mut CpuRows,
    ) {
        let began = self.stages.begin();
        self.low_ranks(x, parts, y);
        let bytes = parts.iter().map(|part| part.weights.size_bytes()).sum();
        let values = parts.iter().map(|part| part.rows.len() * part.weights.values());
        self.stages.end(began, "adapters", (0, 0), (bytes, 2 * values.sum::<usize>()));
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
        let began = self.stages.begin();
        self.low_rank(x, rows.clone(), a, b, scaling, y, at);
        self.stages.end(began, "adapter", (a.width, b.rows), products::low_rank_cost(&rows, a, b));
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
        let began = self.stages.begin();
        let (width, row, cpu) = (x.width, specs::norm(norm), self.cpu);
        assert_eq!((y.rows, y.width, row.weight.len()), (x.rows, width, width));
        let y = PerItem::new(y.values_mut(), width);
        split(&self.pool, x.rows, 2 * width, y, |rows, y| {
            norm::forward(cpu, &x.values()[span(&rows, width)], row, y);
        });
        self.stages.end(began, "norm", (0, 0), (2 * size_of_val(x.values()), 0));
    }

    fn heads(
        &mut self,
        qkv: &CpuRows,
        spec: &HeadsSpec<CpuRows>,
        places: &Places,
        q: &mut CpuRows,
        k: &mut CpuRows,
        v: &mut CpuRows,
    ) {
        let began = self.stages.begin();
        let (width, qw, kw) = (qkv.width, q.width, k.width);
        assert_eq!((width, v.width), (qw + 2 * kw, kw), "q, k and v must share qkv");
        let (cpu, all) = (self.cpu, specs::heads(spec, &mut self.turns, places));
        let out = (
            PerItem::new(q.values_mut(), qw),
            PerItem::new(k.values_mut(), kw),
            PerItem::new(v.values_mut(), kw),
        );
        split(&self.pool, places.positions.len(), 2 * width, out, |rows, (q, k, v)| {
            let x = &qkv.values()[span(&rows, width)];
            with_values(all.spare(), |spare| {
                heads::forward(cpu, x, &all, rows, q, k, v, spare);
            });
        });
        self.stages.end(began, "heads", (0, 0), (2 * size_of_val(qkv.values()), 0));
    }

    fn write_cache(
        &mut self,
        cache: &mut CpuCache,
        layer: usize,
        sequences: &[SequenceRows],
        k: &CpuRows,
        v: &CpuRows,
    ) {
        let began = self.stages.begin();
        cache.write(layer, sequences, k.values(), v.values());
        self.stages.end(began, "write cache", (0, 0), (4 * size_of_val(k.values()), 0));
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
        let began = self.stages.begin();
        let queries: Vec<_> = sequences
            .iter()
            .map(|s| SpanQueries { rows: s.rows.clone(), start: s.start, blocks: &s.blocks })
            .collect();
        let (how, blocks) = (specs::attention(spec), cache.layer(layer));
        let (cpu, pool) = (self.cpu, &self.pool);
        attention::attend_cached(cpu, pool, blocks, &queries, &how, q.values(), o.values_mut());
        self.stages.end(began, "attention", (0, 0), specs::attention_cost(sequences, spec));
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
        self.activate(up, kind, gated, u);
    }

    fn add(&mut self, x: &CpuRows, y: &mut CpuRows) {
        let began = self.stages.begin();
        let cpu = self.cpu;
        self.zip(x.values(), y.values_mut(), |x, y| elementwise::add(cpu, x, y));
        self.stages.end(began, "add", (0, 0), (3 * size_of_val(y.values()), 0));
    }

    fn gather(&mut self, x: &CpuRows, rows: &[usize], y: &mut CpuRows) {
        let began = self.stages.begin();
        let width = x.width;
        assert_eq!((y.rows, y.width), (rows.len(), width), "one row per index");
        for (y, &row) in y.values_mut().chunks_exact_mut(width.max(1)).zip(rows) {
            y.copy_from_slice(&x.values()[row * width..(row + 1) * width]);
        }
        self.stages.end(began, "gather", (0, 0), (2 * size_of_val(y.values()), 0));
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
        self.norm_gradients(dy, x, norm, dx, dweight, dbias);
    }

    fn heads_backward(
        &mut self,
        dq: &CpuRows,
        dk: &CpuRows,
        dv: &CpuRows,
        qkv: &CpuRows,
        spec: &HeadsSpec<CpuRows>,
        places: &Places,
        dqkv: &mut CpuRows,
    ) {
        let (width, qw, kw) = (qkv.width, dq.width, dk.width);
        assert_eq!((width, dqkv.width), (qw + 2 * kw, width), "q, k and v must share qkv");
        let (cpu, all) = (self.cpu, specs::heads(spec, &mut self.turns, places));
        let out = PerItem::new(dqkv.values_mut(), width);
        split(&self.pool, places.positions.len(), 2 * width, out, |rows, dx| {
            let x = &qkv.values()[span(&rows, width)];
            let (dq, dk) = (&dq.values()[span(&rows, qw)], &dk.values()[span(&rows, kw)]);
            let dv = &dv.values()[span(&rows, kw)];
            with_values(all.spare(), |spare| {
                heads::backward(cpu, dq, dk, dv, x, &all, rows, dx, spare);
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
        self.activate_backward(du, up, kind, gated, dup);
    }

    fn cross_entropy(&mut self, z: &mut CpuRows, labels: &[i32], weight: f32) -> LossSum {
        self.loss_and_gradient(z, labels, weight)
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
        self.step(p, g, m, v, step);
    }
    fn scale_columns(
        &mut self,
        y: &mut CpuRows,
        rows: Range<usize>,
        at: usize,
        factor: &CpuRows,
        strength: f32,
        bias: Option<&CpuRows>,
    ) {
        self.stretch_columns(y, rows, at, factor, strength, bias);
    }

    fn scale_columns_backward(
        &mut self,
        dy: &CpuRows,
        at: usize,
        u: &CpuRows,
        factor: &CpuRows,
        norm: &CpuRows,
        du: &mut CpuRows,
        dmagnitude: &mut CpuRows,
    ) {
        self.stretch_columns_backward(dy, at, u, factor, norm, du, dmagnitude);
    }

    fn adamw_on_host(
        &mut self,
        p: &mut CpuRows,
        g: &CpuRows,
        moments: HostMoments<'_>,
        step: &AdamStep,
    ) {
        self.step_on_host(p, g, moments, step);
    }
}
