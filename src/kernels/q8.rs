//! 8-bit weights: GGUF's Q8_0, kept as its codes plus 128.
//!
//! A block is an f16 scale and 32 int8 values; `w = scale · q`. `vpdpbusd` wants one unsigned
//! operand, so the weight carries an offset and the activations' sum takes it back. Reference:
//! `block_q8_0` and `quantize_row_q8_0_ref` in ggml's `ggml-quants.c`.

use half::f16;

use crate::kernels::activations::BLOCK;
use crate::kernels::cpu::Cpu;
use crate::kernels::lanes::kernel;
use crate::kernels::pool::Pool;
use crate::kernels::quantized::{LaneBlock, PackedQ};
use crate::kernels::values::Values;

/// A weight in 8.5 bits per value.
pub type PackedQ8 = PackedQ<8>;

/// Bytes of one GGUF block: the scale, then the values.
const GGUF_BYTES: usize = 34;

impl PackedQ8 {
    /// Quantises `weights (n, k)`, row-major, on the threads of `pool`.
    ///
    /// # Panics
    /// If `k` is not a multiple of 32 or the slice has another length.
    pub fn quantize(pool: &Pool, weights: Values<'_>, n: usize, k: usize) -> Self {
        let cpu = Cpu::detect();
        Self::quantize_on(pool, weights, (n, k), |values| quantize_block(cpu, values))
    }

    /// Repacks the Q8_0 tensor `(n, k)` of a GGUF file; no value changes.
    ///
    /// # Panics
    /// If `k` is not a multiple of 32 or `bytes` has another length than `n · k / 32` blocks.
    pub fn from_gguf(pool: &Pool, bytes: &[u8], n: usize, k: usize) -> Self {
        assert_eq!(bytes.len(), n * k / BLOCK * GGUF_BYTES, "bytes must hold n · k / 32 blocks");
        let (blocks, _) = bytes.as_chunks::<GGUF_BYTES>();
        Self::pack_on(pool, n, k, |row| {
            let blocks = &blocks[row * (k / BLOCK)..(row + 1) * (k / BLOCK)];
            move |b| read_block(&blocks[b])
        })
    }
}

#[inline(always)]
fn read_block(block: &[u8; GGUF_BYTES]) -> LaneBlock<8> {
    let [low, high, codes @ ..] = *block;
    let words: [[u8; 4]; 8] = bytemuck::cast(codes);
    (words.map(|word| u32::from_le_bytes(word) ^ 0x8080_8080), f16::from_le_bytes([low, high]))
}

/// Blocks of Q8_0 for `values`, as GGUF holds them.
///
/// # Panics
/// If the values are no whole blocks.
pub fn quantize(values: &[f32]) -> Vec<u8> {
    assert_eq!(values.len() % BLOCK, 0, "values must be whole blocks");
    let (cpu, mut bytes) = (Cpu::detect(), Vec::new());
    for block in values.as_chunks::<BLOCK>().0 {
        let (codes, scale) = quantize_block(cpu, block);
        bytes.extend(scale.to_le_bytes());
        bytes.extend(codes.map(|code| code ^ 0x80));
    }
    bytes
}

kernel! {
    fn quantize_block(_s, x: &[f32; BLOCK]) -> ([u8; BLOCK], f16) {
        let scale = x.iter().fold(0f32, |max, x| max.max(x.abs())) / 127.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        (x.map(|x| rounded(x * inverse) as i8 as u8 ^ 0x80), f16::from_f32(scale))
    }
}

/// The nearest integer, halves away from zero, of what an `i32` holds: `f32::round` is a call per
/// value.
#[inline(always)]
fn rounded(x: f32) -> i32 {
    (x + 0.5f32.next_down().copysign(x)) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gguf_block_keeps_its_values() {
        let mut bytes = [0u8; GGUF_BYTES];
        bytes[..2].copy_from_slice(&f16::from_f32(0.25).to_le_bytes());
        (0..32).for_each(|i| bytes[2 + i] = (i as u8 * 8) ^ 0x80);
        let packed = PackedQ8::from_gguf(&Pool::new(1), &bytes, 1, 32);
        for i in 0..32 {
            assert_eq!(packed.weight(0, i), 0.25 * (i as f32 * 8.0 - 128.0));
        }
    }

    #[test]
    fn what_gguf_holds_is_what_quantising_gives() {
        let (n, k) = (37, 96);
        let values = crate::kernels::testing::Seeded(4).values(n * k);
        let pool = Pool::new(2);
        let stored = PackedQ8::from_gguf(&pool, &quantize(&values), n, k);
        let ours = PackedQ8::quantize(&pool, Values::F32(&values), n, k);
        for (row, column) in (0..n).flat_map(|row| (0..k).map(move |column| (row, column))) {
            assert_eq!(stored.weight(row, column), ours.weight(row, column), "{row}, {column}");
        }
    }

    #[test]
    fn halves_are_rounded_away_from_zero() {
        for i in -1024..=1024 {
            let x = i as f32 / 8.0;
            for x in [x.next_down(), x, x.next_up()] {
                assert_eq!(rounded(x), x.round() as i32, "{x}");
            }
        }
    }
}
