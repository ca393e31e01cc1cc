//! A backend that panics where a test wants it to, and is the reference otherwise.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use crate::backend::reference::ReferenceBackend;
use crate::backend::{
    Activation, AdamStep, AttentionSpec, Backend, CacheShape, HeadsSpec, HostBlocks, HostMoments,
    HostWeight, LossSum, Norm, Places, SequenceRows, WeightFormat,
};

/// Where to panic.
#[derive(Debug)]
pub struct Faults {
    /// Once, in the next attention of serving.
    pub serving: AtomicBool,
    /// Once, in the next backward pass.
    pub training: AtomicBool,
    /// Whether training may have a thread of its own.
    pub beside: AtomicBool,
    /// Whenever this token is embedded.
    pub poison: AtomicU32,
}

impl Faults {
    pub fn none() -> Arc<Self> {
        let [serving, training, beside] = [const { AtomicBool::new(false) }; 3];
        Arc::new(Self { serving, training, beside, poison: AtomicU32::new(u32::MAX) })
    }

    fn at_embed(&self, ids: &[u32]) {
        assert!(!ids.contains(&self.poison.load(SeqCst)), "poison in the batch");
    }

    fn at_serving(&self) {
        assert!(!self.serving.swap(false, SeqCst), "a fault in serving");
    }

    fn at_training(&self) {
        assert!(!self.training.swap(false, SeqCst), "a fault in training");
    }
}

/// See the module.
pub struct FaultyBackend {
    inner: ReferenceBackend,
    faults: Arc<Faults>,
}

impl FaultyBackend {
    pub fn new(faults: &Arc<Faults>) -> Self {
        Self { inner: ReferenceBackend, faults: Arc::clone(faults) }
    }
}

impl Backend for FaultyBackend {
    type Rows = <ReferenceBackend as Backend>::Rows;
    type Weight = <ReferenceBackend as Backend>::Weight;
    type LowRank = ();
    type Cache = <ReferenceBackend as Backend>::Cache;

    fn beside(&self) -> Option<Self> {
        self.faults.beside.load(SeqCst).then(|| Self::new(&self.faults))
    }

    fn zeros(&mut self, rows: usize, width: usize) -> Self::Rows {
        self.inner.zeros(rows, width)
    }

    fn upload(&mut self, values: &[f32], rows: usize, width: usize) -> Self::Rows {
        self.inner.upload(values, rows, width)
    }

    fn download(&self, x: &Self::Rows) -> Vec<f32> {
        self.inner.download(x)
    }

    fn overwrite(&mut self, x: &mut Self::Rows, values: &[f32]) {
        self.inner.overwrite(x, values);
    }

    fn shape(&self, x: &Self::Rows) -> (usize, usize) {
        self.inner.shape(x)
    }

    fn recycle(&mut self, x: Self::Rows) {
        self.inner.recycle(x);
    }

    fn duplicate(&mut self, x: &Self::Rows) -> Self::Rows {
        self.inner.duplicate(x)
    }
    fn halve(&mut self, x: &Self::Rows) -> Self::Rows {
        self.inner.halve(x)
    }
    fn widen(&mut self, x: &Self::Rows, width: usize) -> Self::Rows {
        self.inner.widen(x, width)
    }

    fn pack(&mut self, weight: HostWeight<'_>, format: WeightFormat) -> Self::Weight {
        self.inner.pack(weight, format)
    }

    fn adopt(&mut self, blocks: HostBlocks<'_>, out: usize, inner: usize) -> Self::Weight {
        self.inner.adopt(blocks, out, inner)
    }

    fn weight_bytes(&self, weight: &Self::Weight) -> usize {
        self.inner.weight_bytes(weight)
    }

    fn weight_shape(&self, weight: &Self::Weight) -> (usize, usize) {
        self.inner.weight_shape(weight)
    }

    fn unpack(&self, weight: &Self::Weight) -> Vec<f32> {
        self.inner.unpack(weight)
    }

    fn cache(&mut self, shape: &CacheShape) -> Self::Cache {
        self.inner.cache(shape)
    }

    fn cache_block_bytes(&self, shape: &CacheShape) -> usize {
        self.inner.cache_block_bytes(shape)
    }

    fn copy_block(&mut self, cache: &mut Self::Cache, from: u32, to: u32) {
        self.inner.copy_block(cache, from, to);
    }

    fn embed(&mut self, table: &Self::Weight, ids: &[u32], scale: f32, y: &mut Self::Rows) {
        self.faults.at_embed(ids);
        self.inner.embed(table, ids, scale, y);
    }

    fn matmul(
        &mut self,
        x: &Self::Rows,
        w: &Self::Weight,
        bias: Option<&Self::Rows>,
        y: &mut Self::Rows,
        at: usize,
    ) {
        self.inner.matmul(x, w, bias, y, at);
    }

    fn add_low_rank(
        &mut self,
        x: &Self::Rows,
        rows: Range<usize>,
        a: &Self::Rows,
        b: &Self::Rows,
        scaling: f32,
        y: &mut Self::Rows,
        at: usize,
    ) {
        self.inner.add_low_rank(x, rows, a, b, scaling, y, at);
    }

    fn norm(&mut self, x: &Self::Rows, norm: &Norm<Self::Rows>, y: &mut Self::Rows) {
        self.inner.norm(x, norm, y);
    }

    fn heads(
        &mut self,
        qkv: &Self::Rows,
        spec: &HeadsSpec<Self::Rows>,
        places: &Places,
        q: &mut Self::Rows,
        k: &mut Self::Rows,
        v: &mut Self::Rows,
    ) {
        self.inner.heads(qkv, spec, places, q, k, v);
    }

    fn write_cache(
        &mut self,
        cache: &mut Self::Cache,
        layer: usize,
        sequences: &[SequenceRows],
        k: &Self::Rows,
        v: &Self::Rows,
    ) {
        self.inner.write_cache(cache, layer, sequences, k, v);
    }

    fn attention_cached(
        &mut self,
        cache: &Self::Cache,
        layer: usize,
        sequences: &[SequenceRows],
        spec: &AttentionSpec,
        q: &Self::Rows,
        o: &mut Self::Rows,
    ) {
        self.faults.at_serving();
        self.inner.attention_cached(cache, layer, sequences, spec, q, o);
    }

    fn attention(
        &mut self,
        q: &Self::Rows,
        k: &Self::Rows,
        v: &Self::Rows,
        spans: &[Range<usize>],
        spec: &AttentionSpec,
        o: &mut Self::Rows,
        lse: &mut Self::Rows,
    ) {
        self.inner.attention(q, k, v, spans, spec, o, lse);
    }

    fn mlp_inner(&mut self, up: &Self::Rows, act: Activation, gated: bool, u: &mut Self::Rows) {
        self.inner.mlp_inner(up, act, gated, u);
    }

    fn add(&mut self, x: &Self::Rows, y: &mut Self::Rows) {
        self.inner.add(x, y);
    }

    fn gather(&mut self, x: &Self::Rows, rows: &[usize], y: &mut Self::Rows) {
        self.inner.gather(x, rows, y);
    }

    fn scale_logits(&mut self, z: &mut Self::Rows, scale: f32, softcap: Option<f32>) {
        self.inner.scale_logits(z, scale, softcap);
    }

    fn dropout(&mut self, x: &Self::Rows, key: u64, p: f32, y: &mut Self::Rows) {
        self.inner.dropout(x, key, p, y);
    }

    fn matmul_backward(
        &mut self,
        dy: &Self::Rows,
        at: usize,
        w: &Self::Weight,
        dx: &mut Self::Rows,
    ) {
        self.inner.matmul_backward(dy, at, w, dx);
    }

    fn weight_gradient(
        &mut self,
        dy: &Self::Rows,
        at: usize,
        x: &Self::Rows,
        dw: &mut Self::Rows,
        db: Option<&mut Self::Rows>,
    ) {
        self.inner.weight_gradient(dy, at, x, dw, db);
    }

    fn low_rank_backward(
        &mut self,
        dy: &Self::Rows,
        at: usize,
        x: &Self::Rows,
        a: &Self::Rows,
        b: &Self::Rows,
        scaling: f32,
        da: &mut Self::Rows,
        db: &mut Self::Rows,
        dx: &mut Self::Rows,
    ) {
        self.inner.low_rank_backward(dy, at, x, a, b, scaling, da, db, dx);
    }

    fn norm_backward(
        &mut self,
        dy: &Self::Rows,
        x: &Self::Rows,
        norm: &Norm<Self::Rows>,
        dx: &mut Self::Rows,
        dweight: Option<&mut Self::Rows>,
        dbias: Option<&mut Self::Rows>,
    ) {
        self.inner.norm_backward(dy, x, norm, dx, dweight, dbias);
    }

    fn heads_backward(
        &mut self,
        dq: &Self::Rows,
        dk: &Self::Rows,
        dv: &Self::Rows,
        qkv: &Self::Rows,
        spec: &HeadsSpec<Self::Rows>,
        places: &Places,
        dqkv: &mut Self::Rows,
    ) {
        self.inner.heads_backward(dq, dk, dv, qkv, spec, places, dqkv);
    }

    fn attention_backward(
        &mut self,
        d_o: &Self::Rows,
        q: &Self::Rows,
        k: &Self::Rows,
        v: &Self::Rows,
        o: &Self::Rows,
        lse: &Self::Rows,
        spans: &[Range<usize>],
        spec: &AttentionSpec,
        dq: &mut Self::Rows,
        dk: &mut Self::Rows,
        dv: &mut Self::Rows,
    ) {
        self.inner.attention_backward(d_o, q, k, v, o, lse, spans, spec, dq, dk, dv);
    }

    fn mlp_inner_backward(
        &mut self,
        du: &Self::Rows,
        up: &Self::Rows,
        act: Activation,
        gated: bool,
        dup: &mut Self::Rows,
    ) {
        self.faults.at_training();
        self.inner.mlp_inner_backward(du, up, act, gated, dup);
    }

    fn cross_entropy(&mut self, z: &mut Self::Rows, labels: &[i32], weight: f32) -> LossSum {
        self.inner.cross_entropy(z, labels, weight)
    }

    fn scale_logits_backward(
        &mut self,
        z: &Self::Rows,
        scale: f32,
        softcap: Option<f32>,
        dz: &mut Self::Rows,
    ) {
        self.inner.scale_logits_backward(z, scale, softcap, dz);
    }

    fn scatter_add(&mut self, x: &Self::Rows, rows: &[usize], y: &mut Self::Rows) {
        self.inner.scatter_add(x, rows, y);
    }

    fn embed_backward(&mut self, dy: &Self::Rows, ids: &[u32], scale: f32, de: &mut Self::Rows) {
        self.inner.embed_backward(dy, ids, scale, de);
    }

    fn sum_of_squares(&mut self, x: &Self::Rows) -> f64 {
        self.inner.sum_of_squares(x)
    }

    fn scale(&mut self, x: &mut Self::Rows, factor: f32) {
        self.inner.scale(x, factor);
    }

    fn adamw(
        &mut self,
        p: &mut Self::Rows,
        g: &Self::Rows,
        m: &mut Self::Rows,
        v: &mut Self::Rows,
        step: &AdamStep,
    ) {
        self.inner.adamw(p, g, m, v, step);
    }

    fn scale_columns(
        &mut self,
        y: &mut Self::Rows,
        rows: Range<usize>,
        at: usize,
        factor: &Self::Rows,
        strength: f32,
        bias: Option<&Self::Rows>,
    ) {
        self.inner.scale_columns(y, rows, at, factor, strength, bias);
    }

    fn scale_columns_backward(
        &mut self,
        dy: &Self::Rows,
        at: usize,
        u: &Self::Rows,
        factor: &Self::Rows,
        norm: &Self::Rows,
        du: &mut Self::Rows,
        dmagnitude: &mut Self::Rows,
    ) {
        self.inner.scale_columns_backward(dy, at, u, factor, norm, du, dmagnitude);
    }

    fn adamw_on_host(
        &mut self,
        p: &mut Self::Rows,
        g: &Self::Rows,
        moments: HostMoments<'_>,
        step: &AdamStep,
    ) {
        self.inner.adamw_on_host(p, g, moments, step);
    }
}
