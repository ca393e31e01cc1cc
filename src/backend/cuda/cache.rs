//! Blocks of keys and values: per layer and block the keys of its tokens, then their values, each
//! `(BLOCK_TOKENS, kv · hd)`; in int8, scales lie apart in the same order.

use super::machine::Address;
use super::memory::Memory;
use super::source::Module;
use super::{CudaBackend, CudaRows, done};
use crate::backend::{BLOCK_TOKENS, CacheShape, KvFormat, SequenceRows};

/// Keys and values of all layers.
#[derive(Debug)]
pub struct CudaCache {
    codes: Memory,
    scales: Option<Memory>,
    pub(super) shape: CacheShape,
}

/// Where the keys and values of a layer begin, and their scales.
pub(super) type LayerWords = [u64; 4];

/// A row that goes nowhere.
const NOWHERE: u32 = u32::MAX;

/// Bytes of a number.
fn number_bytes(format: KvFormat) -> usize {
    match format {
        KvFormat::F32 => 4,
        KvFormat::Bf16 => 2,
        KvFormat::Int8 => 1,
    }
}

/// Bytes of the numbers and of the scales of the keys of a block in one layer, or of its values.
fn half_block(shape: &CacheShape) -> [usize; 2] {
    let heads = BLOCK_TOKENS * shape.kv_heads;
    let scales = if shape.format == KvFormat::Int8 { heads * size_of::<f32>() } else { 0 };
    [heads * shape.head_dim * number_bytes(shape.format), scales]
}

/// Bytes that one block takes over all layers.
pub(super) fn block_bytes(shape: &CacheShape) -> usize {
    2 * shape.layers * half_block(shape).iter().sum::<usize>()
}

/// Copies block `from` over block `to` of one layer.
fn copy(b: &CudaBackend, layer: Address, half: usize, [from, to]: [u32; 2]) {
    let at = |block: u32| layer + 2 * half as u64 * u64::from(block);
    done(b.machine.copy(at(from), at(to), 2 * half));
}

impl CudaBackend {
    pub(super) fn new_cache(&self, shape: &CacheShape) -> CudaCache {
        let [codes, scales] =
            half_block(shape).map(|bytes| 2 * bytes * shape.blocks * shape.layers);
        let zeroed = |bytes| {
            let memory = self.memory(bytes);
            done(self.machine.clear(memory.at, bytes));
            memory
        };
        let scales = (scales > 0).then(|| zeroed(scales));
        CudaCache { codes: zeroed(codes), scales, shape: *shape }
    }

    pub(super) fn copied_block(&self, cache: &CudaCache, from: u32, to: u32) {
        let [half, half_scales] = half_block(&cache.shape);
        assert!(from.max(to) < cache.shape.blocks as u32, "there is no such block");
        for layer in 0..cache.shape.layers {
            let [keys, _, scales, _] = cache.layer(layer);
            copy(self, keys, half, [from, to]);
            if half_scales > 0 {
                copy(self, scales, half_scales, [from, to]);
            }
        }
    }

    /// See [`Backend::write_cache`](crate::backend::Backend::write_cache).
    pub(super) fn written(
        &self,
        cache: &CudaCache,
        layer: usize,
        sequences: &[SequenceRows],
        k: &CudaRows,
        v: &CudaRows,
    ) {
        let CacheShape { kv_heads, head_dim, blocks, format, .. } = cache.shape;
        let width = kv_heads * head_dim;
        assert!(k.width == width && v.width == width && k.rows == v.rows, "k and v fit the cache");
        let mut slots = vec![NOWHERE; k.rows];
        for sequence in sequences {
            for (offset, slot) in slots[sequence.rows.clone()].iter_mut().enumerate() {
                let position = sequence.start + offset;
                let block = sequence.blocks[position / BLOCK_TOKENS] as usize;
                assert!(block < blocks, "there is no such block");
                *slot = (2 * block * BLOCK_TOKENS + position % BLOCK_TOKENS) as u32;
            }
        }
        let [keys, values, key_scales, value_scales] = cache.layer(layer);
        let shape = [k.rows, kv_heads, head_dim].map(|count| count as u64);
        let places = [self.table(&slots), keys, values, key_scales, value_scales];
        let args = [&[k.at(), v.at()][..], &shape, &places].concat();
        let grid = [(k.rows * kv_heads).div_ceil(super::machine::WARPS), 2];
        self.launch(Module::Attention(format), "write_cache", grid, &args);
    }
}

impl CudaCache {
    /// Where a layer lies.
    pub(super) fn layer(&self, layer: usize) -> LayerWords {
        assert!(layer < self.shape.layers, "there is no such layer");
        let [half, half_scales] = half_block(&self.shape);
        let before = (2 * layer * self.shape.blocks) as u64;
        let keys = self.codes.at + before * half as u64;
        let scales =
            self.scales.as_ref().map_or(0, |scales| scales.at + before * half_scales as u64);
        [keys, keys + half as u64, scales, scales + half_scales as u64]
    }
}
