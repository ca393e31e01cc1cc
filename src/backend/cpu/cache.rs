//! Blocks of keys and values.

use crate::backend::{BLOCK_TOKENS, SequenceRows};
use crate::kernels::attention::write_block;
use crate::kernels::line::{self, Line};

/// Keys and values of all layers: per layer, blocks of `2 · kv · hd · 16` values, the keys of every
/// head `(hd, 16)` before the values of every head `(16, hd)`.
#[derive(Debug)]
pub struct CpuCache {
    lines: Vec<Line>,
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    blocks: usize,
}

impl CpuCache {
    pub(super) fn new(layers: usize, kv_heads: usize, head_dim: usize, blocks: usize) -> Self {
        let values = layers * blocks * 2 * kv_heads * head_dim * BLOCK_TOKENS;
        Self { lines: line::zeroed(values.div_ceil(16)), layers, kv_heads, head_dim, blocks }
    }

    fn block_values(&self) -> usize {
        2 * self.kv_heads * self.head_dim * BLOCK_TOKENS
    }

    /// All blocks of one layer.
    pub(super) fn layer(&self, layer: usize) -> &[f32] {
        let size = self.blocks * self.block_values();
        &line::values(&self.lines)[layer * size..(layer + 1) * size]
    }

    /// Copies block `from` over block `to` in every layer.
    pub(super) fn copy(&mut self, from: u32, to: u32) {
        let (size, blocks) = (self.block_values(), self.blocks);
        assert!((from as usize) < blocks && (to as usize) < blocks, "there is no such block");
        for layer in 0..self.layers {
            let start = |block: u32| (layer * blocks + block as usize) * size;
            let values = line::values_mut(&mut self.lines);
            values.copy_within(start(from)..start(from) + size, start(to));
        }
    }

    /// Writes the rows of `k` and `v` `(t, kv · hd)` into each sequence's blocks.
    pub(super) fn write(&mut self, layer: usize, sequences: &[SequenceRows], k: &[f32], v: &[f32]) {
        let (size, head, hd) = (self.block_values(), self.head_dim * BLOCK_TOKENS, self.head_dim);
        let (kv, layer) = (self.kv_heads, layer * self.blocks * self.block_values());
        for sequence in sequences {
            for (i, row) in sequence.rows.clone().enumerate() {
                let position = sequence.start + i;
                let number = sequence.blocks[position / BLOCK_TOKENS] as usize;
                let block = &mut line::values_mut(&mut self.lines)[layer + number * size..][..size];
                let (keys, values) = block.split_at_mut(kv * head);
                let heads = keys.chunks_exact_mut(head).zip(values.chunks_exact_mut(head));
                for (h, (keys, values)) in heads.enumerate() {
                    let part = (row * kv + h) * hd..(row * kv + h + 1) * hd;
                    let token = position % BLOCK_TOKENS;
                    write_block(keys, values, token, &k[part.clone()], &v[part]);
                }
            }
        }
    }
}
