//! Q4_K with AVX2: eight rows at a time, each tile twice. Nibbles reach 15 · 127 · 2 · 8 = 30 480
//! in 16 bits, so `vpmaddubsw` does not saturate.

use std::arch::x86_64::*;

use super::{PART_LINES, PARTS, SCALE_LINES, Weights, scale_and_min};
use crate::kernels::activations::Q8Block;
use crate::kernels::line::Line;
use crate::kernels::quantized::avx2::{load, store, unpack};

/// `MR` rows by 16 columns; see [`super::IntegerWeight::tile`].
#[target_feature(enable = "avx2,fma")]
pub fn tile<const MR: usize>(w: Weights<'_>, x: &[Q8Block], y: [&mut [f32]; MR], add: bool) {
    for half in 0..2 {
        let mut sums = [_mm256_setzero_ps(); MR];
        for i in 0..MR {
            sums[i] = if add { load(y[i], half) } else { sums[i] };
        }
        for (at, (codes, x)) in w.codes.chunks_exact(PART_LINES).zip(x.chunks_exact(MR)).enumerate()
        {
            let scales = &w.scales[at / PARTS * SCALE_LINES..];
            let (scale, min) = lanes(scales, at % PARTS, half);
            let weights = unpack::<4>(codes, half);
            for i in 0..MR {
                let dot = _mm256_cvtepi32_ps(dot(&weights, &x[i]));
                let scale = _mm256_mul_ps(scale, _mm256_set1_ps(x[i].scale));
                sums[i] = _mm256_fmadd_ps(dot, scale, sums[i]);
                let offset = _mm256_set1_ps(x[i].offset);
                sums[i] = _mm256_fmadd_ps(min, offset, sums[i]);
            }
        }
        for i in 0..MR {
            store(y[i], half, sums[i]);
        }
    }
}

/// `d · scale` and `dmin · min` of eight rows.
#[inline]
#[target_feature(enable = "avx2")]
#[allow(unsafe_code)]
fn lanes(scales: &[Line], part: usize, half: usize) -> (__m256, __m256) {
    let both: [(f32, f32); 8] =
        std::array::from_fn(|lane| scale_and_min(scales, part, 8 * half + lane));
    let (scale, min) = (both.map(|(scale, _)| scale), both.map(|(_, min)| min));
    // SAFETY: both arrays are 32 readable bytes.
    unsafe { (_mm256_loadu_ps(scale.as_ptr()), _mm256_loadu_ps(min.as_ptr())) }
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
