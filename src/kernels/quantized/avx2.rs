//! The integer kernel for machines with AVX2 only: eight rows of `W` at a time, each tile twice.
//!
//! `vpmaddubsw` multiplies unsigned by signed bytes and adds pairs into 16 bits *with saturation*,
//! so the operands are chosen to stay below 2^15: nibbles reach 15 · 127 · 2 · 8 = 30 480 over a
//! whole block; for bytes the sign moves from weight to activation, |w| ≤ 128 gives 32 512.

use std::arch::x86_64::*;

use half::f16;

use super::TILE;
use super::packed::{Weights, stretch};
use crate::kernels::activations::Q8Block;
use crate::kernels::eights::{load_ps, load_words, store_ps};
use crate::kernels::line::Line;

/// `MR` rows by 16 columns; see [`super::tile`].
#[target_feature(enable = "avx2,fma,f16c")]
pub fn tile<const BITS: usize, const MR: usize>(
    w: Weights<'_, BITS>,
    x: &[Q8Block],
    mut y: [&mut [f32]; MR],
    add: bool,
) {
    half_tile::<BITS, MR>(w, x, &mut y, add, 0);
    half_tile::<BITS, MR>(w, x, &mut y, add, 1);
}

/// Columns `8 · half` to `8 · half + 8` of the tile.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn half_tile<const BITS: usize, const MR: usize>(
    w: Weights<'_, BITS>,
    x: &[Q8Block],
    y: &mut [&mut [f32]; MR],
    add: bool,
    half: usize,
) {
    let mut sums = [_mm256_setzero_ps(); MR];
    if add {
        for i in 0..MR {
            sums[i] = load_ps(y[i], half);
        }
    }
    let stretch = stretch::<BITS>();
    let stretches = w.codes.chunks(BITS * stretch).zip(w.scales.chunks(stretch));
    for ((codes, scales), x) in stretches.zip(x.chunks(MR * stretch)) {
        let mut inner = [_mm256_setzero_ps(); MR];
        let blocks = codes.chunks_exact(BITS).zip(scales).zip(x.chunks_exact(MR));
        for ((codes, scales), x) in blocks {
            let (weights, scales) = (unpack::<BITS>(codes, half), widen(scales, half));
            let sizes = sizes::<BITS>(&weights);
            for i in 0..MR {
                let dot = _mm256_cvtepi32_ps(dot_block::<BITS>(&weights, &sizes, &x[i]));
                inner[i] = _mm256_fmadd_ps(dot, scales, inner[i]);
            }
        }
        for i in 0..MR {
            sums[i] = _mm256_fmadd_ps(inner[i], _mm256_set1_ps(x[i].scale), sums[i]);
        }
    }
    for i in 0..MR {
        store_ps(y[i], half, sums[i]);
    }
}

/// One block of eight rows: nibbles as unsigned bytes, bytes as signed ones.
#[inline]
#[target_feature(enable = "avx2")]
pub fn unpack<const BITS: usize>(codes: &[Line], half: usize) -> [__m256i; 8] {
    let mut weights = [_mm256_setzero_si256(); 8];
    if BITS == 8 {
        for (weights, codes) in weights.iter_mut().zip(codes) {
            *weights = _mm256_xor_si256(load_words(codes, half), _mm256_set1_epi8(-128));
        }
    } else {
        let nibble = _mm256_set1_epi8(15);
        for i in 0..4 {
            let both = load_words(&codes[i], half);
            weights[i] = _mm256_and_si256(both, nibble);
            weights[i + 4] = _mm256_and_si256(_mm256_srli_epi16::<4>(both), nibble);
        }
    }
    weights
}

/// Bytes without their signs, which `vpmaddubsw` wants on one side.
#[inline]
#[target_feature(enable = "avx2")]
fn sizes<const BITS: usize>(weights: &[__m256i; 8]) -> [__m256i; 8] {
    let mut sizes = *weights;
    if BITS == 8 {
        for size in &mut sizes {
            *size = _mm256_abs_epi8(*size);
        }
    }
    sizes
}

/// `Σ q_x · (code − 2^(BITS−1))` for each of the eight rows.
#[inline]
#[target_feature(enable = "avx2")]
fn dot_block<const BITS: usize>(
    weights: &[__m256i; 8],
    sizes: &[__m256i; 8],
    x: &Q8Block,
) -> __m256i {
    let ones = _mm256_set1_epi16(1);
    if BITS == 8 {
        let mut sum = _mm256_setzero_si256();
        for ((&weights, &sizes), &q) in weights.iter().zip(sizes).zip(&x.words) {
            let q = _mm256_sign_epi8(_mm256_set1_epi32(q as i32), weights);
            let pairs = _mm256_maddubs_epi16(sizes, q);
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
        }
        sum
    } else {
        let mut pairs = _mm256_setzero_si256();
        for (&weights, &q) in weights.iter().zip(&x.words) {
            let q = _mm256_set1_epi32(q as i32);
            pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(weights, q));
        }
        let offset = _mm256_set1_epi32(x.minus_sum << (BITS - 1));
        _mm256_add_epi32(_mm256_madd_epi16(pairs, ones), offset)
    }
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
#[allow(unsafe_code)]
fn widen(scales: &[f16; TILE], half: usize) -> __m256 {
    let scales: &[f16; 8] = scales.as_chunks().0.get(half).expect("half is 0 or 1");
    // SAFETY: `scales` is 16 readable bytes.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(scales.as_ptr().cast()) })
}
