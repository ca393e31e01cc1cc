//! The integer kernel with `vpdpbusd`: sixteen rows of `W` advance by four columns at a time.
//!
//! Cost per row and block: eight `vpdpbusd`, and a conversion, a product and a fused multiply-add
//! for the scales. Those two share the ports of `vpdpbusd`, so 80 % of its peak is the ceiling.

use std::arch::x86_64::*;

use half::f16;

use super::TILE;
use super::packed::Weights;
use super::tiles::Spread;
use crate::kernels::activations::Q8Block;
use crate::kernels::line::Line;
use crate::kernels::simd::{load_line, load_ps, prefetch, prefetch_lines, store_line, store_ps};

/// Lines ahead of the stream: 4 KiB, about the latency of memory at its bandwidth. The hardware stops
/// at the end of a page: at eight rows asking ahead gave 646 Gop/s where 506 had been, at 128 nothing.
const AHEAD: usize = 64;

/// `MR` rows by 16 columns; see [`super::tile`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub fn tile<const BITS: usize, const MR: usize>(
    (w, next): (Weights<'_, BITS>, &[Line]),
    x: &[Q8Block],
    y: [&mut [f32]; MR],
    add: bool,
) {
    let mut next = next.chunks(next.len().div_ceil(w.scales.len()).max(1));
    let mut sums = [_mm512_setzero_ps(); MR];
    if add {
        for i in 0..MR {
            sums[i] = load_ps(y[i]);
        }
    }
    let blocks = w.codes.chunks_exact(BITS).zip(w.scales).zip(x.chunks_exact(MR));
    for ((codes, scales), x) in blocks {
        codes.iter().for_each(|line| prefetch(line, AHEAD));
        prefetch(scales, AHEAD / BITS);
        prefetch_lines(next.next().unwrap_or_default());
        let (weights, scales) = (unpack::<BITS>(codes), widen(scales));
        for i in 0..MR {
            let dot = _mm512_cvtepi32_ps(dot_block::<BITS>(&weights, &x[i]));
            let scale = _mm512_mul_ps(scales, _mm512_set1_ps(x[i].scale));
            sums[i] = _mm512_fmadd_ps(dot, scale, sums[i]);
        }
    }
    for i in 0..MR {
        store_ps(y[i], sums[i]);
    }
}

/// Writes blocks for matrix tiles; see [`super::IntegerWeight::spread`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub fn spread<const BITS: usize>(w: Weights<'_, BITS>, to: &mut Spread<'_>) {
    let offset = _mm512_set1_epi8((1u8 << (BITS - 1)) as i8);
    for (i, (codes, scales)) in w.codes.chunks_exact(BITS).zip(w.scales).enumerate() {
        codes.iter().for_each(|line| prefetch(line, AHEAD));
        let (weights, (lines, scale, _)) = (unpack::<BITS>(codes), to.block(i));
        for (line, weights) in lines.iter_mut().zip(weights) {
            store_line(line, _mm512_sub_epi8(weights, offset));
        }
        store_line(scale, _mm512_castps_si512(widen(scales)));
    }
}

/// One block as eight registers of unsigned bytes, four consecutive columns per lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub fn unpack<const BITS: usize>(codes: &[Line]) -> [__m512i; 8] {
    let mut weights = [_mm512_setzero_si512(); 8];
    if BITS == 8 {
        for (weights, codes) in weights.iter_mut().zip(codes) {
            *weights = load_line(codes);
        }
    } else {
        let nibble = _mm512_set1_epi8(15);
        for i in 0..4 {
            let both = load_line(&codes[i]);
            weights[i] = _mm512_and_si512(both, nibble);
            weights[i + 4] = _mm512_and_si512(_mm512_srli_epi16::<4>(both), nibble);
        }
    }
    weights
}

/// `Σ q_x · (code − 2^(BITS−1))` for each of the sixteen rows. The offset is the start value.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dot_block<const BITS: usize>(weights: &[__m512i; 8], x: &Q8Block) -> __m512i {
    let mut sum = _mm512_set1_epi32(x.minus_sum << (BITS - 1));
    for (&weights, &q) in weights.iter().zip(&x.words) {
        sum = _mm512_dpbusd_epi32(sum, weights, _mm512_set1_epi32(q as i32));
    }
    sum
}

#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
#[allow(unsafe_code)]
fn widen(scales: &[f16; TILE]) -> __m512 {
    // SAFETY: `scales` is 32 readable bytes.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(scales.as_ptr().cast()) })
}
