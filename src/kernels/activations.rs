//! Activations as int8 in blocks of 32 values, in the order the integer kernels read them.
//!
//! `x ≈ scale · q` with `q` in −127..=127 and `scale = max|x| / 127` over a stretch of blocks: one for
//! weights of 8 bits, eight for weights of 4 bits, whose own error is far larger. (So does llama.cpp for
//! its Q4_K.) Then inner sums are scaled by the weight's factors alone, and once per stretch by this.
#![allow(unsafe_code)]

use std::ops::Range;

use crate::kernels::cpu::Cpu;
use crate::kernels::lanes::kernel;
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
    /// What one step of `q` is worth, in all blocks of a stretch.
    pub scale: f32,
    /// `−Σ q`. Weights are stored unsigned, `w + 2^(bits−1)`; this undoes the offset.
    pub minus_sum: i32,
    /// See [`Q8Block::minus_sums`].
    minus_sums: [i16; 2],
}

impl Q8Block {
    /// `−Σ q` of this block in the low half of the word, of the next but one of its stretch, if there is
    /// one, in the high half.
    #[inline(always)]
    pub fn minus_sums(&self) -> i32 {
        let [this, other] = self.minus_sums;
        i32::from(other) << 16 | i32::from(this as u16)
    }
}

/// Rows of quantised activations `(m, k)`, reused from call to call.
///
/// Layout: for each row group, for each block of 32, one [`Q8Block`] per row of the group. A kernel
/// walks one stream and finds the rows of its tile side by side.
#[derive(Debug, Default)]
pub struct Q8Rows {
    rows: usize,
    k: usize,
    /// Blocks that share a scale.
    stretch: usize,
    /// Whether groups are those of matrix tiles.
    tiled: bool,
    blocks: Vec<Q8Block>,
}

impl Q8Rows {
    /// Empty rows; the first [`Q8Rows::quantize`] allocates.
    pub fn new() -> Self {
        Self::default()
    }

    /// Quantises `x (m, k)`, row-major and finite, over what was here before, with a scale for so many
    /// blocks of a row.
    ///
    /// # Panics
    /// If `k` is not a multiple of 32, `x` does not hold `m · k` values or `stretch` is zero.
    pub fn quantize(
        &mut self,
        cpu: Cpu,
        pool: &Pool,
        x: &[f32],
        (m, k): (usize, usize),
        stretch: usize,
    ) {
        assert_eq!(k % BLOCK, 0, "k must be a multiple of {BLOCK}");
        assert_eq!(x.len(), m * k, "x must hold m · k values");
        (self.rows, self.k, self.stretch) = (m, k, stretch);
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
                    let mut blocks = blocks.iter_mut().skip(row).step_by(group.len());
                    for x in x.chunks(stretch * BLOCK) {
                        quantize_stretch(cpu, x, &mut blocks);
                    }
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

    /// Blocks that share a scale.
    pub fn stretch(&self) -> usize {
        self.stretch
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

/// Fills a block for each 32 values, which share a scale.
fn quantize_stretch<'a>(cpu: Cpu, x: &[f32], blocks: impl Iterator<Item = &'a mut Q8Block>) {
    let max = largest(cpu, x);
    let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
    let mut before: [Option<&mut Q8Block>; 2] = [None, None];
    for (x, block) in x.as_chunks::<BLOCK>().0.iter().zip(blocks) {
        let (words, minus_sum) = quantize_block(cpu, x, inverse);
        // A sum of 32 values of 8 bits.
        let minus = minus_sum as i16;
        *block = Q8Block { words, scale: max / 127.0, minus_sum, minus_sums: [minus, 0] };
        let [next_but_one, next] = &mut before;
        if let Some(block) = next_but_one {
            block.minus_sums[1] = minus;
        }
        before = [next.take(), Some(block)];
    }
}

kernel! {
    /// The largest magnitude among whole blocks of values.
    fn largest(s, x: &[f32]) -> f32 {
        let mut max = s.splat(0.0);
        for x in x.as_chunks().0 {
            max = s.max(s.abs(s.load(x)), max);
        }
        s.largest(max)
    }
}

/// The words of a block, and `−Σ q`.
fn quantize_block(cpu: Cpu, x: &[f32; BLOCK], inverse: f32) -> ([u32; 8], i32) {
    #[cfg(target_arch = "x86_64")]
    if cpu.vnni {
        // SAFETY: `vnni` says that AVX-512 F, BW and VL were detected.
        return unsafe { avx512::quantize_block(x, inverse) };
    } else if let Some(s) = crate::kernels::lanes::Avx2::detected(cpu) {
        // SAFETY: the token says that AVX2 was detected.
        return unsafe { avx2::quantize_block(s, x, inverse) };
    }
    let _ = cpu;
    scalar::quantize_block(x, inverse)
}

mod scalar {
    use super::*;

    pub fn quantize_block(x: &[f32; BLOCK], inverse: f32) -> ([u32; 8], i32) {
        let (mut words, mut minus_sum) = ([0; 8], 0);
        for (i, x) in x.iter().enumerate() {
            let q = (x * inverse).round_ties_even() as i8;
            words[i / 4] |= u32::from(q as u8) << (8 * (i % 4));
            minus_sum -= i32::from(q);
        }
        (words, minus_sum)
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::*;
    use crate::kernels::lanes::{Avx2, Simd};
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx2")]
    pub fn quantize_block(s: Avx2, x: &[f32; BLOCK], inverse: f32) -> ([u32; 8], i32) {
        let (halves, _) = x.as_chunks();
        let inverse = s.splat(inverse);
        let low = s.mul(s.load(&halves[0]), inverse);
        let high = s.mul(s.load(&halves[1]), inverse);
        let values = [low[0], low[1], high[0], high[1]];
        let (mut q, mut sum) = ([_mm256_setzero_si256(); 4], _mm256_setzero_si256());
        for i in 0..4 {
            q[i] = _mm256_cvtps_epi32(values[i]);
            sum = _mm256_add_epi32(sum, q[i]);
        }
        // Packing goes by halves of registers, so words have to be put in order.
        let halves = [_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3])];
        let bytes = _mm256_packs_epi16(halves[0], halves[1]);
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let ordered = _mm256_permutevar8x32_epi32(bytes, order);
        let mut words = [0; 8];
        // SAFETY: `words` is 32 writable bytes.
        unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), ordered) };
        (words, -sum_of(sum))
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
    pub fn quantize_block(x: &[f32; BLOCK], inverse: f32) -> ([u32; 8], i32) {
        let inverse = _mm512_set1_ps(inverse);
        let low = _mm512_cvtps_epi32(_mm512_mul_ps(load_ps(&x[..16]), inverse));
        let high = _mm512_cvtps_epi32(_mm512_mul_ps(load_ps(&x[16..]), inverse));
        let minus_sum = -_mm512_reduce_add_epi32(_mm512_add_epi32(low, high));
        let mut words = [0u32; 8];
        let to = words.as_mut_ptr().cast::<__m128i>();
        // SAFETY: `words` is 32 writable bytes, filled by two stores of 16.
        unsafe {
            _mm_storeu_si128(to, _mm512_cvtsepi32_epi8(low));
            _mm_storeu_si128(to.add(1), _mm512_cvtsepi32_epi8(high));
        }
        (words, minus_sum)
    }
}

#[cfg(test)]
impl Q8Rows {
    /// What the value at `row`, `column` became.
    pub(crate) fn value(&self, row: usize, column: usize) -> f64 {
        let group = self.groups().iter().find(|group| group.contains(&row)).expect("it exists");
        let block = column / BLOCK;
        let block = &self.chunk(&group, &(block..block + 1))[row - group.start];
        let q = block.words[column % BLOCK / 4].to_le_bytes()[column % 4] as i8;
        f64::from(block.scale) * f64::from(q)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{Seeded, every_cpu};

    #[test]
    fn values_are_within_half_a_step_of_their_stretch() {
        let (m, k, stretch) = (11, 352, 8);
        let x = Seeded(3).values(m * k);
        for cpu in every_cpu() {
            let mut rows = Q8Rows::new();
            rows.quantize(cpu, &Pool::new(2), &x, (m, k), stretch);
            for (row, x) in x.chunks_exact(k).enumerate() {
                for (at, x) in x.chunks(stretch * BLOCK).enumerate() {
                    let max = x.iter().fold(0f32, |max, x| max.max(x.abs()));
                    for (i, &x) in x.iter().enumerate() {
                        let error = rows.value(row, at * stretch * BLOCK + i) - f64::from(x);
                        assert!(error.abs() <= 0.5001 * f64::from(max) / 127.0, "{row}, {i}");
                    }
                }
            }
        }
    }
}
