//! Keys and values of one sequence and one key-value head, in blocks of sixteen tokens.

use crate::kernels::lanes::LANES;

/// Where the keys and values of one head lie: block `b` starts at `table[b] · stride`; in it, keys
/// are `(hd, 16)` at `key_at` and values `(16, hd)` at `value_at`.
#[derive(Clone, Copy, Debug)]
pub struct KeyBlocks<'a> {
    pub values: &'a [f32],
    /// The block numbers in order of position, or none: block `b` is number `b`.
    pub table: Option<&'a [u32]>,
    pub stride: usize,
    pub key_at: usize,
    pub value_at: usize,
    pub head_dim: usize,
}

impl<'a> KeyBlocks<'a> {
    /// Keys, one run of sixteen tokens per dimension, and values, one row per token.
    #[inline(always)]
    pub(crate) fn get(&self, block: usize) -> (&'a [[f32; LANES]], &'a [f32]) {
        let number = self.table.map_or(block, |table| table[block] as usize);
        let size = self.head_dim * LANES;
        let key = number * self.stride + self.key_at;
        let value = number * self.stride + self.value_at;
        (self.values[key..key + size].as_chunks().0, &self.values[value..value + size])
    }
}

/// Writes one token's key and value for one head into a block: `keys (hd, 16)`, `values (16, hd)`.
pub fn write_block(keys: &mut [f32], values: &mut [f32], token: usize, k: &[f32], v: &[f32]) {
    for (lanes, k) in keys.chunks_exact_mut(LANES).zip(k) {
        lanes[token] = *k;
    }
    values[token * v.len()..(token + 1) * v.len()].copy_from_slice(v);
}
