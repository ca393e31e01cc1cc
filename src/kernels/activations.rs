//! Activations as int8, one scale per 32 values, in the order the integer kernels read them.
//!
//! `x ≈ scale · q` with `q` in −127..=127 and `scale = max|x| / 127` over each block.
#![allow(unsafe_code)]

use std::ops::Range;

use crate::kernels::cpu::Cpu;
use crate::kernels::pool::Pool;
use crate::kernels::rows::RowGroups;
use crate::kernels::shared::SharedSlice;

/// Values per block, in activations and in weights.
pub const BLOCK: usize = 32;

/// Rows one tile of registers holds.
pub const LARGEST_GROUP: usize = 8;

/// Rows one matrix tile holds.
pub(crate) const LARGEST_TILED_GROUP: usize = 16;

/// Rows up to which tiles of registers are as fast: matrix tiles need weights spread out for them.
const FEW_ROWS: usize = 32;

/// Thirty-two quantised values of one row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct Q8Block {
    /// Four int8 values per word, the first in the lowest byte.
    pub words: [u32; 8],
    /// What one step of `q` is worth.
    pub scale: f32,
    /// `−Σ q`. Weights are stored unsigned, `w + 2^(bits−1)`; this undoes the offset.
    pub minus_sum: i32,
    /// `−Σ scale · q`: what an offset of one in all weights of the block takes back.
    pub offset: f32,
}

/// Rows of quantised activations `(m, k)`, reused from call to call.
///
/// Layout: for each row group, for each block of 32, one [`Q8Block`] per row of the group. A kernel
/// walks one stream and finds the rows of its tile side by side.
#[derive(Debug, Default)]
pub struct Q8Rows {
    rows: usize,
    k: usize,
    /// Whether groups are those of matrix tiles.
    tiled: bool,
    blocks: Vec<Q8Block>,
}

impl Q8Rows {
    /// Empty rows; the first [`Q8Rows::quantize`] allocates.
    pub fn new() -> Self {
        Self::default()
    }

    /// Quantises `x (m, k)`, row-major and finite, over what was here before.
    ///
    /// # Panics
    /// If `k` is not a multiple of 32 or `x` does not hold `m · k` values.
    pub fn quantize(&mut self, cpu: Cpu, pool: &Pool, x: &[f32], m: usize, k: usize) {
        assert_eq!(k % BLOCK, 0, "k must be a multiple of {BLOCK}");
        assert_eq!(x.len(), m * k, "x must hold m · k values");
        (self.rows, self.k) = (m, k);
        self.tiled = cpu.amx && m > FEW_ROWS;
        if self.blocks.len() < m * k / BLOCK {
            self.blocks.resize(m * k / BLOCK, Q8Block::default());
        }
        let (groups, target) = (self.groups(), SharedSlice::new(&mut self.blocks));
        pool.split(groups.count(), LARGEST_GROUP * k, &|indices| {
            for group in indices.map(|index| groups.get(index)) {
                let part = group.start * k / BLOCK..group.end * k / BLOCK;
                // SAFETY: groups are disjoint, and so are their blocks.
                let blocks = unsafe { target.part(part) };
                for (row, x) in x[group.start * k..group.end * k].chunks_exact(k).enumerate() {
                    quantize_row(cpu, x, blocks.iter_mut().skip(row).step_by(group.len()));
                }
            }
        });
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values per row.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Whether there are matrix tiles, and rows enough for them.
    pub(crate) fn tiled(&self) -> bool {
        self.tiled
    }

    /// How the rows are grouped.
    pub fn groups(&self) -> RowGroups {
        let largest = if self.tiled { LARGEST_TILED_GROUP } else { LARGEST_GROUP };
        RowGroups::new(self.rows, largest)
    }

    /// The blocks `blocks` of the rows `group`: per block, one entry for each row.
    pub(crate) fn chunk(&self, group: &Range<usize>, blocks: &Range<usize>) -> &[Q8Block] {
        let start = group.start * self.k / BLOCK;
        &self.blocks[start + blocks.start * group.len()..start + blocks.end * group.len()]
    }
}

fn quantize_row<'a>(cpu: Cpu, row: &[f32], blocks: impl Iterator<Item = &'a mut Q8Block>) {
    let (x, []) = row.as_chunks::<BLOCK>() else { unreachable!("k is a multiple of the block") };
    for (x, block) in x.iter().zip(blocks) {
        *block = quantize_block(cpu, x);
    }
}

fn quantize_block(cpu: Cpu, x: &[f32; BLOCK]) -> Q8Block {
    #[cfg(target_arch = "x86_64")]
    if cpu.vnni {
        // SAFETY: `vnni` says that AVX-512 F, BW and VL were detected.
        return unsafe { avx512::quantize_block(x) };
    } else if let Some(s) = crate::kernels::lanes::Avx2::detected(cpu) {
        // SAFETY: the token says that AVX2 was detected.
        return unsafe { avx2::quantize_block(s, x) };
    }
    let _ = cpu;
    scalar::quantize_block(x)
}

mod scalar {
    use super::*;

    pub fn quantize_block(x: &[f32; BLOCK]) -> Q8Block {
        let max = x.iter().fold(0f32, |max, x| max.max(x.abs()));
        let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
        let mut block = Q8Block { scale: max / 127.0, ..Q8Block::default() };
        for (i, x) in x.iter().enumerate() {
            let q = (x * inverse).round_ties_even() as i8;
            block.words[i / 4] |= u32::from(q as u8) << (8 * (i % 4));
            block.minus_sum -= i32::from(q);
        }
        block.offset = block.scale * block.minus_sum as f32;
        block
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::*;
    use crate::kernels::lanes::{Avx2, Simd};
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx2")]
    pub fn quantize_block(s: Avx2, x: &[f32; BLOCK]) -> Q8Block {
        let (halves, _) = x.as_chunks();
        let (low, high) = (s.load(&halves[0]), s.load(&halves[1]));
        let max = s.largest(s.max(s.abs(low), s.abs(high)));
        let inverse = s.splat(if max > 0.0 { 127.0 / max } else { 0.0 });
        let (low, high) = (s.mul(low, inverse), s.mul(high, inverse));
        let values = [low[0], low[1], high[0], high[1]];
        let (mut q, mut sum) = ([_mm256_setzero_si256(); 4], _mm256_setzero_si256());
        for i in 0..4 {
            q[i] = _mm256_cvtps_epi32(values[i]);
            sum = _mm256_add_epi32(sum, q[i]);
        }
        let minus_sum = -sum_of(sum);
        let scale = max / 127.0;
        let offset = scale * minus_sum as f32;
        let mut block = Q8Block { words: [0; 8], scale, minus_sum, offset };
        // Packing goes by halves of registers, so words have to be put in order.
        let halves = [_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3])];
        let bytes = _mm256_packs_epi16(halves[0], halves[1]);
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let words = _mm256_permutevar8x32_epi32(bytes, order);
        // SAFETY: `words` is 32 writable bytes.
        unsafe { _mm256_storeu_si256(block.words.as_mut_ptr().cast(), words) };
        block
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn sum_of(x: __m256i) -> i32 {
        let four = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
        let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b1110>(four));
        _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two)))
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::*;
    use crate::kernels::simd::load_ps;
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub fn quantize_block(x: &[f32; BLOCK]) -> Q8Block {
        let (low, high) = (load_ps(&x[..16]), load_ps(&x[16..]));
        let max = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
        let inverse = _mm512_set1_ps(if max > 0.0 { 127.0 / max } else { 0.0 });
        let low = _mm512_cvtps_epi32(_mm512_mul_ps(low, inverse));
        let high = _mm512_cvtps_epi32(_mm512_mul_ps(high, inverse));
        let minus_sum = -_mm512_reduce_add_epi32(_mm512_add_epi32(low, high));
        let scale = max / 127.0;
        let offset = scale * minus_sum as f32;
        let mut block = Q8Block { words: [0; 8], scale, minus_sum, offset };
        let words = block.words.as_mut_ptr().cast::<__m128i>();
        // SAFETY: `words` is 32 writable bytes, filled by two stores of 16.
        unsafe {
            _mm_storeu_si128(words, _mm512_cvtsepi32_epi8(low));
            _mm_storeu_si128(words.add(1), _mm512_cvtsepi32_epi8(high));
        }
        block
    }
}
