//! Q4_K with AVX2: eight rows at a time, each tile twice. Nibbles reach 15 · 127 · 2 · 8 = 30 480
//! in 16 bits, so `vpmaddubsw` does not saturate.

use std::arch::x86_64::*;

use super::{PAIRS, PART_LINES, PARTS, SCALE_LINES, Weights};
use crate::kernels::activations::Q8Block;
use crate::kernels::eights::{load_ps, load_words, store_ps};
use crate::kernels::line::Line;
use crate::kernels::quantized::avx2::unpack;

/// `MR` rows by 16 columns; see [`super::IntegerWeight::tile`].
#[target_feature(enable = "avx2,fma,f16c")]
pub fn tile<const MR: usize>(w: Weights<'_>, x: &[Q8Block], mut y: [&mut [f32]; MR], add: bool) {
    for half in 0..2 {
        half_tile(w, x, &mut y, add, half);
    }
}

/// Columns `8 · half` to `8 · half + 8` of the tile.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn half_tile<const MR: usize>(
    w: Weights<'_>,
    x: &[Q8Block],
    y: &mut [&mut [f32]; MR],
    add: bool,
    half: usize,
) {
    let mut sums = [_mm256_setzero_ps(); MR];
    for i in 0..MR {
        sums[i] = if add { load_ps(y[i], half) } else { sums[i] };
    }
    let blocks = w.codes.chunks_exact(PARTS * PART_LINES).zip(w.scales.chunks_exact(SCALE_LINES));
    for ((codes, scales), x) in blocks.zip(x.chunks_exact(PARTS * MR)) {
        let scales = Scales::read(scales, half);
        let mut inner = [_mm256_setzero_ps(); MR];
        let parts = codes.chunks_exact(PART_LINES).zip(x.chunks_exact(MR));
        for (part, (codes, x)) in parts.enumerate() {
            let (scale, weights) = (scales.part(part), unpack::<4>(codes, half));
            for i in 0..MR {
                let dot = _mm256_cvtepi32_ps(dot(&weights, &x[i]));
                inner[i] = _mm256_fmadd_ps(dot, scale, inner[i]);
            }
        }
        let mins = scales.pairs_of_mins();
        for i in 0..MR {
            let mut offset = _mm256_setzero_si256();
            for j in 0..mins.len() {
                let pair = _mm256_set1_epi32(x[PAIRS[j] * MR + i].minus_sums());
                offset = _mm256_add_epi32(offset, _mm256_madd_epi16(mins[j], pair));
            }
            let offset = _mm256_mul_ps(_mm256_cvtepi32_ps(offset), scales.dmin);
            let inner = _mm256_fmadd_ps(inner[i], scales.d, offset);
            sums[i] = _mm256_fmadd_ps(inner, _mm256_set1_ps(x[i].scale), sums[i]);
        }
    }
    for i in 0..MR {
        store_ps(y[i], half, sums[i]);
    }
}

/// The scales and minima of one block of eight rows, a byte each: parts 0 to 3, then 4 to 7.
struct Scales {
    scales: [__m256i; 2],
    mins: [__m256i; 2],
    d: __m256,
    dmin: __m256,
}

impl Scales {
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    fn read(lines: &[Line], half: usize) -> Self {
        let (a, b) = (load_words(&lines[0], half), load_words(&lines[1], half));
        let (c, d) = (load_words(&lines[2], half), load_words(&lines[3], half));
        let (six, four) = (_mm256_set1_epi8(63), _mm256_set1_epi8(15));
        let low = _mm256_and_si256(c, four);
        let upper = _mm256_and_si256(_mm256_srli_epi32::<4>(c), four);
        Self {
            scales: [_mm256_and_si256(a, six), _mm256_or_si256(low, high_bits(a))],
            mins: [_mm256_and_si256(b, six), _mm256_or_si256(upper, high_bits(b))],
            d: low_half(d),
            dmin: low_half(_mm256_srli_epi32::<16>(d)),
        }
    }

    /// The scales of one part.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn part(&self, part: usize) -> __m256 {
        let count = _mm_cvtsi32_si128(8 * (part % 4) as i32);
        let byte = _mm256_srl_epi32(self.scales[part / 4], count);
        _mm256_cvtepi32_ps(_mm256_and_si256(byte, _mm256_set1_epi32(255)))
    }

    /// The minima of two parts per word, in the order of [`PAIRS`].
    #[inline]
    #[target_feature(enable = "avx2")]
    fn pairs_of_mins(&self) -> [__m256i; PAIRS.len()] {
        let low = _mm256_set1_epi32(0x00ff_00ff);
        let [a, b] = self.mins;
        let upper = [_mm256_srli_epi32::<8>(a), _mm256_srli_epi32::<8>(b)];
        [
            _mm256_and_si256(a, low),
            _mm256_and_si256(upper[0], low),
            _mm256_and_si256(b, low),
            _mm256_and_si256(upper[1], low),
        ]
    }
}

/// The two highest bits of each byte, where the upper parts want them.
#[inline]
#[target_feature(enable = "avx2")]
fn high_bits(word: __m256i) -> __m256i {
    _mm256_and_si256(_mm256_srli_epi32::<2>(word), _mm256_set1_epi8(0x30))
}

/// The f16 in the low half of each word.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn low_half(words: __m256i) -> __m256 {
    let words = _mm256_and_si256(words, _mm256_set1_epi32(0xffff));
    let halves = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(words, words));
    _mm256_cvtph_ps(_mm256_castsi256_si128(halves))
}

/// `Σ q_x · code` for each of the eight rows.
#[inline]
#[target_feature(enable = "avx2")]
fn dot(weights: &[__m256i; 8], x: &Q8Block) -> __m256i {
    let mut pairs = _mm256_setzero_si256();
    for (&weights, &q) in weights.iter().zip(&x.words) {
        let q = _mm256_set1_epi32(q as i32);
        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(weights, q));
    }
    _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
}
