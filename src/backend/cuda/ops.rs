//! The operations of the waist.

use std::ops::Range;
use std::sync::Arc;

use super::attention::{MOST_HEAD_DIM, Saved};
use super::cache;
use super::products::{Finish, Side};
use super::source::Module;
use super::{CudaBackend, CudaCache, CudaLowRank, CudaRows, CudaWeight, done, float};
use crate::backend::{
    Activation, AdamStep, AttentionSpec, Backend, CacheShape, HeadsSpec, HostBlocks, HostMoments,
    HostThreads, HostWeight, LossSum, LowRankPart, LowRankShape, Norm, NormKind, Places,
    SequenceRows, WeightFormat,
};
use crate::domain::IGNORE_INDEX;

const ROWS: Module = Module::Rows;

impl CudaBackend {
    /// The values of a matrix.
    pub(super) fn values(&self, x: &CudaRows) -> Vec<f32> {
        let mut values = vec![0f32; x.len()];
        done(self.machine.read(x.at(), bytemuck::cast_slice_mut(&mut values)));
        values
    }

    /// Copies values over those of a matrix.
    pub(super) fn put(&self, x: &CudaRows, values: &[f32]) {
        assert_eq!(x.len(), values.len(), "a matrix holds rows times width numbers");
        done(self.machine.write(x.at(), bytemuck::cast_slice(values)));
    }

    /// Rows of a weight, dequantised; without `ids` all of them.
    fn embedded(&self, w: &CudaWeight, ids: Option<&[u32]>, scale: f32, y: &CudaRows) {
        assert!(y.width == w.k && ids.is_none_or(|ids| ids.len() == y.rows));
        let known = |ids: &[u32]| ids.iter().all(|&id| (id as usize) < w.n);
        assert!(ids.is_none_or(known), "the table has {} rows", w.n);
        let table = ids.map_or(0, |ids| self.table(ids));
        let rest = [table, y.rows as u64, float(scale), y.at()];
        let args = [&w.args()[..], &rest].concat();
        self.each(Module::Product(w.layout), "embed", y.rows * w.k.div_ceil(8), &args);
    }

    /// Row numbers below `most`, on the device.
    fn row_table(&self, rows: &[usize], most: usize) -> u64 {
        assert!(rows.iter().all(|&row| row < most), "there are {most} rows");
        self.table(&rows.iter().map(|&row| row as u32).collect::<Vec<_>>())
    }
}

fn number(act: Activation) -> u64 {
    match act {
        Activation::Silu => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
        Activation::QuickGelu => 3,
        Activation::Relu => 4,
    }
}

fn norm_words(norm: &Norm<CudaRows>) -> [u64; 2] {
    [(norm.kind == NormKind::Layer).into(), float(norm.eps)]
}

impl Backend for CudaBackend {
    type Rows = CudaRows;
    type Weight = CudaWeight;
    type LowRank = CudaLowRank;
    type Cache = CudaCache;

    fn zeros(&mut self, rows: usize, width: usize) -> CudaRows {
        let x = self.rows(rows, width);
        done(self.machine.clear(x.at(), x.len() * size_of::<f32>()));
        x
    }

    fn room(&mut self, rows: usize, width: usize) -> CudaRows {
        self.rows(rows, width)
    }

    fn trim(&mut self) {
        self.pool.trim(&*self.machine);
    }

    fn most_head_values(&self) -> usize {
        MOST_HEAD_DIM
    }

    fn available_bytes(&self) -> Option<usize> {
        Some(self.machine.free_bytes()? + self.pool.unused_bytes())
    }

    fn upload(&mut self, values: &[f32], rows: usize, width: usize) -> CudaRows {
        let x = self.rows(rows, width);
        self.put(&x, values);
        x
    }

    fn download(&self, x: &CudaRows) -> Vec<f32> {
        self.values(x)
    }

    fn overwrite(&mut self, x: &mut CudaRows, values: &[f32]) {
        self.put(x, values);
    }

    fn shape(&self, x: &CudaRows) -> (usize, usize) {
        (x.rows, x.width)
    }

    /// Dropped memory comes back by itself.
    fn recycle(&mut self, _x: CudaRows) {}

    fn duplicate(&mut self, x: &CudaRows) -> CudaRows {
        let y = self.rows(x.rows, x.width);
        done(self.machine.copy(x.at(), y.at(), x.len() * size_of::<f32>()));
        y
    }

    fn halve(&mut self, x: &CudaRows) -> CudaRows {
        let halved = self.rows(x.rows, x.width.div_ceil(2));
        let args = [x.at(), halved.at(), x.rows as u64, x.width as u64];
        self.each(ROWS, "halve", halved.len(), &args);
        halved
    }

    fn widen(&mut self, x: &CudaRows, width: usize) -> CudaRows {
        assert_eq!(x.width, width.div_ceil(2), "rows of this width have so many words");
        let whole = self.rows(x.rows, width);
        let args = [x.at(), whole.at(), x.rows as u64, width as u64];
        self.each(ROWS, "widen", whole.len(), &args);
        whole
    }

    fn host_threads(&self) -> Arc<HostThreads> {
        Arc::clone(&self.host)
    }

    fn pack(&mut self, weight: HostWeight<'_>, format: WeightFormat) -> CudaWeight {
        self.packed(weight, format)
    }

    fn adopt(&mut self, blocks: HostBlocks<'_>, out: usize, inner: usize) -> CudaWeight {
        self.adopted(&blocks, out, inner)
    }

    fn weight_bytes(&self, weight: &CudaWeight) -> usize {
        weight.bytes
    }

    fn weight_shape(&self, weight: &CudaWeight) -> (usize, usize) {
        (weight.n, weight.k)
    }

    fn unpack(&self, weight: &CudaWeight) -> Vec<f32> {
        let y = self.rows(weight.n, weight.k);
        self.embedded(weight, None, 1.0, &y);
        self.values(&y)
    }

    fn pack_low_rank(
        &mut self,
        a: &[f32],
        b: &[f32],
        shape: LowRankShape,
        _format: WeightFormat,
    ) -> Option<CudaLowRank> {
        Some(self.packed_low_rank(a, b, shape))
    }

    fn low_rank_bytes(&self, weights: &CudaLowRank) -> usize {
        weights.bytes()
    }

    fn cache(&mut self, shape: &CacheShape) -> CudaCache {
        self.new_cache(shape)
    }

    fn cache_block_bytes(&self, shape: &CacheShape) -> usize {
        cache::block_bytes(shape)
    }

    fn copy_block(&mut self, cache: &mut CudaCache, from: u32, to: u32) {
        self.copied_block(cache, from, to);
    }

    fn embed(&mut self, table: &CudaWeight, ids: &[u32], scale: f32, y: &mut CudaRows) {
        self.embedded(table, Some(ids), scale, y);
    }

    fn matmul(
        &mut self,
        x: &CudaRows,
        w: &CudaWeight,
        bias: Option<&CudaRows>,
        y: &mut CudaRows,
        at: usize,
    ) {
        let finish = Finish { alpha: 1.0, bias, add: false };
        self.product(self.multiplier(w), w.args(), Side::all(x), Side::columns(y, at), finish);
    }

    fn add_low_ranks(
        &mut self,
        x: &CudaRows,
        parts: &[LowRankPart<'_, CudaLowRank>],
        y: &mut CudaRows,
    ) {
        self.low_ranks(x, parts, y);
    }

    fn add_low_rank(
        &mut self,
        x: &CudaRows,
        rows: Range<usize>,
        a: &CudaRows,
        b: &CudaRows,
        scaling: f32,
        y: &mut CudaRows,
        at: usize,
    ) {
        self.low_rank(x, rows, a, b, scaling, y, at);
    }

    fn scale_columns(
        &mut self,
        y: &mut CudaRows,
        rows: Range<usize>,
        at: usize,
        factor: &CudaRows,
        strength: f32,
        bias: Option<&CudaRows>,
    ) {
        let (n, count) = (factor.len(), rows.len() * factor.len());
        assert!(rows.end <= y.rows && at + n <= y.width && bias.is_none_or(|bias| bias.len() == n));
        let bias = bias.map_or(0, CudaRows::at);
        let [rows_in, width, at, n] = [rows.len(), y.width, at, n].map(|x| x as u64);
        let first = y.row(rows.start);
        let args = [first, rows_in, width, at, n, factor.at(), float(strength), bias];
        self.each(ROWS, "scale_columns", count, &args);
    }

    fn norm(&mut self, x: &CudaRows, norm: &Norm<CudaRows>, y: &mut CudaRows) {
        assert!(norm.weight.len() == x.width && (y.rows, y.width) == (x.rows, x.width));
        let (shape, bias) = ([x.rows as u64, x.width as u64], norm.bias.as_ref());
        let rest = [norm.weight.at(), bias.map_or(0, CudaRows::at), y.at()];
        let args = [&[x.at()][..], &shape, &norm_words(norm), &rest].concat();
        self.launch(Module::Norm, "norm_forward", [x.rows, 1], &args);
    }

    fn heads(
        &mut self,
        qkv: &CudaRows,
        spec: &HeadsSpec<CudaRows>,
        places: &Places,
        q: &mut CudaRows,
        k: &mut CudaRows,
        v: &mut CudaRows,
    ) {
        self.split_heads(qkv, spec, places, [q, k, v]);
    }

    fn write_cache(
        &mut self,
        cache: &mut CudaCache,
        layer: usize,
        sequences: &[SequenceRows],
        k: &CudaRows,
        v: &CudaRows,
    ) {
        self.written(cache, layer, sequences, k, v);
    }

    fn attention_cached(
        &mut self,
        cache: &CudaCache,
        layer: usize,
        sequences: &[SequenceRows],
        spec: &AttentionSpec,
        q: &CudaRows,
        o: &mut CudaRows,
    ) {
        self.attend_cached(cache, layer, sequences, spec, q, o);
    }

    fn attention(
        &mut self,
        q: &CudaRows,
        k: &CudaRows,
        v: &CudaRows,
        spans: &[Range<usize>],
        spec: &AttentionSpec,
        o: &mut CudaRows,
        lse: &mut CudaRows,
    ) {
        self.attend_spans(q, k, v, spans, spec, o, lse);
    }

    fn mlp_inner(&mut self, up: &CudaRows, act: Activation, gated: bool, u: &mut CudaRows) {
        assert!(up.rows == u.rows && up.width == if gated { 2 * u.width } else { u.width });
        let (rows, ff) = (u.rows as u64, u.width as u64);
        let args = [up.at(), rows, ff, gated.into(), number(act), u.at()];
        self.each(Module::Mlp, "mlp_inner", u.len(), &args);
    }

    fn add(&mut self, x: &CudaRows, y: &mut CudaRows) {
        assert_eq!(x.len(), y.len(), "a sum is over equal lengths");
        self.each(ROWS, "add", x.len(), &[x.at(), y.at(), x.len() as u64, float(1.0)]);
    }

    fn gather(&mut self, x: &CudaRows, rows: &[usize], y: &mut CudaRows) {
        assert!(x.width == y.width && rows.len() == y.rows);
        let table = self.row_table(rows, x.rows);
        let args = [x.at(), table, y.rows as u64, y.width as u64, y.at()];
        self.each(ROWS, "gather", y.len(), &args);
    }

    fn scale_logits(&mut self, z: &mut CudaRows, scale: f32, softcap: Option<f32>) {
        let args = [z.at(), z.len() as u64, float(scale), float(softcap.unwrap_or(0.0))];
        self.each(ROWS, "scale_logits", z.len(), &args);
    }

    fn dropout(&mut self, x: &CudaRows, key: u64, p: f32, y: &mut CudaRows) {
        assert_eq!(x.len(), y.len(), "both matrices must have the same size");
        let args = [x.at(), y.at(), x.len() as u64, key, float(p)];
        self.each(ROWS, "dropout", x.len(), &args);
    }

    fn matmul_backward(&mut self, dy: &CudaRows, at: usize, w: &CudaWeight, dx: &mut CudaRows) {
        let side = Side::columns(dy, at);
        self.product_transposed(self.multiplier(w), w.args(), side, dx, 1.0, true);
    }

    fn weight_gradient(
        &mut self,
        dy: &CudaRows,
        at: usize,
        x: &CudaRows,
        dw: &mut CudaRows,
        db: Option<&mut CudaRows>,
    ) {
        self.outer(Side::columns(dy, at), x, 1.0, dw);
        if let Some(db) = db {
            self.column_sums(Side::columns(dy, at), db);
        }
    }

    fn low_rank_backward(
        &mut self,
        dy: &CudaRows,
        at: usize,
        x: &CudaRows,
        a: &CudaRows,
        b: &CudaRows,
        scaling: f32,
        da: &mut CudaRows,
        db: &mut CudaRows,
        dx: &mut CudaRows,
    ) {
        self.low_rank_gradients(Side::columns(dy, at), x, a, b, scaling, da, db, dx);
    }

    fn scale_columns_backward(
        &mut self,
        dy: &CudaRows,
        at: usize,
        u: &CudaRows,
        factor: &CudaRows,
        norm: &CudaRows,
        du: &mut CudaRows,
        dmagnitude: &mut CudaRows,
    ) {
        let n = factor.len();
        assert!(u.rows == dy.rows && u.width == n && at + n <= dy.width && du.len() == u.len());
        assert!(norm.len() == n && dmagnitude.len() == n, "one of each per output");
        let [rows, width, at, columns] = [dy.rows, dy.width, at, n].map(|x| x as u64);
        let inputs = [dy.at(), rows, width, at, columns, u.at(), factor.at(), norm.at()];
        let args = [&inputs[..], &[du.at(), dmagnitude.at()]].concat();
        self.each(ROWS, "scale_columns_backward", n, &args);
    }

    fn norm_backward(
        &mut self,
        dy: &CudaRows,
        x: &CudaRows,
        norm: &Norm<CudaRows>,
        dx: &mut CudaRows,
        dweight: Option<&mut CudaRows>,
        dbias: Option<&mut CudaRows>,
    ) {
        let shape = (x.rows, x.width);
        assert!((dy.rows, dy.width) == shape && (dx.rows, dx.width) == shape);
        assert_eq!(norm.weight.len(), x.width, "one weight per column");
        let (stats, shape) = (self.rows(x.rows, 2), [x.rows as u64, x.width as u64]);
        let ends = [norm.weight.at(), dx.at(), stats.at()];
        let args = [&[dy.at(), x.at()][..], &shape, &norm_words(norm), &ends].concat();
        self.launch(Module::Norm, "norm_backward", [x.rows, 1], &args);
        if dweight.is_some() || dbias.is_some() {
            let ends = [dweight, dbias].map(|d| d.map_or(0, |d| d.at()));
            let args = [&[dy.at(), x.at(), stats.at()][..], &shape, &ends].concat();
            self.each(Module::Norm, "norm_gradient", x.width, &args);
        }
    }

    fn heads_backward(
        &mut self,
        dq: &CudaRows,
        dk: &CudaRows,
        dv: &CudaRows,
        qkv: &CudaRows,
        spec: &HeadsSpec<CudaRows>,
        places: &Places,
        dqkv: &mut CudaRows,
    ) {
        self.join_heads([dq, dk, dv], qkv, spec, places, dqkv);
    }

    fn attention_backward(
        &mut self,
        d_o: &CudaRows,
        q: &CudaRows,
        k: &CudaRows,
        v: &CudaRows,
        o: &CudaRows,
        lse: &CudaRows,
        spans: &[Range<usize>],
        spec: &AttentionSpec,
        dq: &mut CudaRows,
        dk: &mut CudaRows,
        dv: &mut CudaRows,
    ) {
        let saved = Saved { q, k, v, o, lse };
        self.attend_back(d_o, &saved, spans, spec, [dq, dk, dv]);
    }

    fn mlp_inner_backward(
        &mut self,
        du: &CudaRows,
        up: &CudaRows,
        act: Activation,
        gated: bool,
        dup: &mut CudaRows,
    ) {
        assert!(up.width == if gated { 2 * du.width } else { du.width } && dup.len() == up.len());
        let (rows, ff) = (du.rows as u64, du.width as u64);
        let args = [du.at(), up.at(), rows, ff, gated.into(), number(act), dup.at()];
        self.each(Module::Mlp, "mlp_inner_backward", du.len(), &args);
    }

    fn cross_entropy(&mut self, z: &mut CudaRows, labels: &[i32], weight: f32) -> LossSum {
        assert_eq!(labels.len(), z.rows, "one label per row");
        let numbers: Vec<u32> = labels
            .iter()
            .map(|&label| if label == IGNORE_INDEX { u32::MAX } else { label as u32 })
            .collect();
        assert!(numbers.iter().all(|&l| l == u32::MAX || (l as usize) < z.width), "a known label");
        let found = self.rows(z.rows, 2);
        let (rows, width) = (z.rows as u64, z.width as u64);
        let args = [z.at(), rows, width, self.table(&numbers), float(weight), found.at()];
        self.launch(Module::Loss, "cross_entropy", [z.rows, 1], &args);
        let found = self.values(&found);
        LossSum {
            loss: found.iter().step_by(2).map(|&loss| f64::from(loss)).sum(),
            tokens: numbers.iter().filter(|&&label| label != u32::MAX).count(),
            correct: found.iter().skip(1).step_by(2).filter(|&&correct| correct == 1.0).count(),
        }
    }

    fn scale_logits_backward(
        &mut self,
        z: &CudaRows,
        scale: f32,
        softcap: Option<f32>,
        dz: &mut CudaRows,
    ) {
        assert_eq!(z.len(), dz.len(), "a gradient has the size of its matrix");
        let cap = float(softcap.unwrap_or(0.0));
        let args = [z.at(), dz.at(), z.len() as u64, float(scale), cap];
        self.each(ROWS, "scale_logits_backward", z.len(), &args);
    }

    fn scatter_add(&mut self, x: &CudaRows, rows: &[usize], y: &mut CudaRows) {
        assert!(x.width == y.width && rows.len() == x.rows);
        let table = self.row_table(rows, y.rows);
        let args = [x.at(), table, x.rows as u64, x.width as u64, float(1.0), y.at()];
        self.each(ROWS, "scatter_add", x.width, &args);
    }

    fn embed_backward(&mut self, dy: &CudaRows, ids: &[u32], scale: f32, de: &mut CudaRows) {
        assert!(dy.width == de.width && ids.len() == dy.rows);
        assert!(ids.iter().all(|&id| (id as usize) < de.rows), "the table has {} rows", de.rows);
        let args =
            [dy.at(), self.table(ids), dy.rows as u64, dy.width as u64, float(scale), de.at()];
        self.each(ROWS, "scatter_add", dy.width, &args);
    }

    fn sum_of_squares(&mut self, x: &CudaRows) -> f64 {
        self.squares(x)
    }

    fn scale(&mut self, x: &mut CudaRows, factor: f32) {
        self.each(ROWS, "scale", x.len(), &[x.at(), x.len() as u64, float(factor)]);
    }

    fn adamw(
        &mut self,
        p: &mut CudaRows,
        g: &CudaRows,
        m: &mut CudaRows,
        v: &mut CudaRows,
        step: &AdamStep,
    ) {
        self.step(p, g, [m, v], step);
    }

    fn adamw_on_host(
        &mut self,
        p: &mut CudaRows,
        g: &CudaRows,
        moments: HostMoments<'_>,
        step: &AdamStep,
    ) {
        self.step_on_host(p, g, moments, step);
    }
}
