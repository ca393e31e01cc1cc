//! Blocks of keys and values.

use std::ops::Range;

use crate::backend::{BLOCK_TOKENS, CacheShape, KvFormat, SequenceRows};
use crate::kernels::attention::{Format, LayerBlocks, Layout};
use crate::kernels::line::{self, Line, Lines};

/// Keys and values of all layers, layer by layer, in blocks of a [`Layout`].
#[derive(Debug)]
pub struct CpuCache {
    lines: Lines,
    layout: Layout,
    layers: usize,
    blocks: usize,
}

impl CpuCache {
    pub(super) fn new(shape: &CacheShape) -> Self {
        let &CacheShape { layers, blocks, .. } = shape;
        let layout = layout(shape);
        let lines = line::zeroed(layers * blocks * layout.block_lines());
        Self { lines, layout, layers, blocks }
    }

    /// All blocks of one layer.
    pub(super) fn layer(&self, layer: usize) -> LayerBlocks<'_> {
        let size = self.blocks * self.layout.block_lines();
        let lines = &self.lines[layer * size..(layer + 1) * size];
        LayerBlocks { layout: self.layout, lines }
    }

    fn block(&self, layer: usize, number: u32) -> Range<usize> {
        let (number, size) = (number as usize, self.layout.block_lines());
        assert!(number < self.blocks, "there is no such block");
        let start = (layer * self.blocks + number) * size;
        start..start + size
    }

    /// Copies block `from` over block `to` in every layer.
    pub(super) fn copy(&mut self, from: u32, to: u32) {
        for layer in 0..self.layers {
            let (from, to) = (self.block(layer, from), self.block(layer, to));
            self.lines.copy_within(from, to.start);
        }
    }

    /// Writes the rows of `k` and `v` `(t, kv · hd)` into each sequence's blocks.
    pub(super) fn write(&mut self, layer: usize, sequences: &[SequenceRows], k: &[f32], v: &[f32]) {
        let width = self.layout.kv_heads * self.layout.head_dim;
        for sequence in sequences {
            for (i, row) in sequence.rows.clone().enumerate() {
                let position = sequence.start + i;
                let block = self.block(layer, sequence.blocks[position / BLOCK_TOKENS]);
                let part = row * width..(row + 1) * width;
                let (token, lines) = (position % BLOCK_TOKENS, &mut self.lines[block]);
                self.layout.write(lines, token, &k[part.clone()], &v[part]);
            }
        }
    }
}

/// Bytes that one block of one layer takes.
pub(super) fn block_bytes(shape: &CacheShape) -> usize {
    layout(shape).block_lines() * size_of::<Line>()
}

fn layout(shape: &CacheShape) -> Layout {
    let format = match shape.format {
        KvFormat::F32 => Format::F32,
        KvFormat::Bf16 => Format::Bf16,
        KvFormat::Int8 => Format::Int8,
    };
    Layout { format, kv_heads: shape.kv_heads, head_dim: shape.head_dim }
}
