//! 4-bit weights: GGUF's Q4_0, kept as its codes in our order.
//!
//! A block is an f16 scale and 32 nibbles; `w = scale · (nibble − 8)`. Reference:
//! `block_q4_0` and `quantize_row_q4_0_ref` in ggml's `ggml-quants.c`.

use half::f16;

use crate::kernels::activations::BLOCK;
use crate::kernels::cpu::Cpu;
use crate::kernels::lanes::kernel;
use crate::kernels::pool::Pool;
use crate::kernels::quantized::{LaneBlock, PackedQ};
use crate::kernels::values::Values;

/// A weight in 4.5 bits per value.
pub type PackedQ4 = PackedQ<4>;

/// Bytes of one GGUF block: the scale, then byte `i` with value `i` low and value `i + 16` high.
const GGUF_BYTES: usize = 18;

impl PackedQ4 {
    /// Quantises `weights (n, k)`, row-major, on the threads of `pool`.
    ///
    /// # Panics
    /// If `k` is not a multiple of 32 or the slice has another length.
    pub fn quantize(pool: &Pool, weights: Values<'_>, n: usize, k: usize) -> Self {
        let cpu = Cpu::detect();
        Self::quantize_on(pool, weights, (n, k), |values| quantize_block(cpu, values))
    }

    /// Repacks the Q4_0 tensor `(n, k)` of a GGUF file; no value changes.
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

/// GGUF has four values of a word in one order with ours: the words are taken as they are.
#[inline(always)]
fn read_block(block: &[u8; GGUF_BYTES]) -> LaneBlock<4> {
    let [low, high, codes @ ..] = *block;
    let words: [[u8; 4]; 4] = bytemuck::cast(codes);
    (words.map(u32::from_le_bytes), f16::from_le_bytes([low, high]))
}

/// Blocks of Q4_0 for `values`, as GGUF holds them.
///
/// # Panics
/// If the values are no whole blocks.
pub fn quantize(values: &[f32]) -> Vec<u8> {
    assert_eq!(values.len() % BLOCK, 0, "values must be whole blocks");
    let (cpu, mut bytes) = (Cpu::detect(), Vec::new());
    for block in values.as_chunks::<BLOCK>().0 {
        let (codes, scale) = quantize_block(cpu, block);
        bytes.extend(scale.to_le_bytes());
        bytes.extend((0..BLOCK / 2).map(|i| codes[i] | codes[i + BLOCK / 2] << 4));
    }
    bytes
}

kernel! {
    /// The value of largest magnitude becomes −8, the end of the range with one more step.
    fn quantize_block(_s, x: &[f32; BLOCK]) -> ([u8; BLOCK], f16) {
        let (high, low) = x.iter().fold((0f32, 0f32), |(h, l), &x| (h.max(x), l.min(x)));
        let extreme = match x.iter().find(|&&x| x == high || x == low) {
            Some(_) if high > -low => high,
            Some(_) if high < -low => low,
            first => *first.expect("one of the values is the largest"),
        };
        let scale = extreme / -8.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        (x.map(|x| ((x * inverse + 8.5) as i32).clamp(0, 15) as u8), f16::from_f32(scale))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gguf_block_keeps_its_values() {
        let mut bytes = [0u8; GGUF_BYTES];
        bytes[..2].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
        (2..18).for_each(|i| bytes[i] = (i as u8 - 2) | (17 - i as u8) << 4);
        let packed = PackedQ4::from_gguf(&Pool::new(1), &bytes, 1, 32);
        for i in 0..16 {
            assert_eq!(packed.weight(0, i), 0.5 * (i as f32 - 8.0));
            assert_eq!(packed.weight(0, i + 16), 0.5 * (7.0 - i as f32));
        }
    }

    #[test]
    fn quantising_is_within_half_a_step() {
        let x: [f32; 32] = std::array::from_fn(|i| (i as f32 * 0.7).sin());
        let packed = PackedQ4::quantize(&Pool::new(1), Values::F32(&x), 1, 32);
        let step = x.iter().fold(0f32, |max, x| max.max(x.abs())) / 8.0;
        for (i, x) in x.iter().enumerate() {
            // The positive end has no code: +8 is clamped to +7.
            assert!((packed.weight(0, i) - x).abs() <= 1.01 * step);
        }
    }

    #[test]
    fn what_gguf_holds_is_what_quantising_gives() {
        let (n, k) = (37, 96);
        let values = crate::kernels::testing::Seeded(4).values(n * k);
        let pool = Pool::new(2);
        let stored = PackedQ4::from_gguf(&pool, &quantize(&values), n, k);
        let ours = PackedQ4::quantize(&pool, Values::F32(&values), n, k);
        for (row, column) in (0..n).flat_map(|row| (0..k).map(move |column| (row, column))) {
            assert_eq!(stored.weight(row, column), ours.weight(row, column), "{row}, {column}");
        }
    }
}
