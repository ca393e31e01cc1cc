//! bf16 values where no instruction multiplies them: widened in registers, summed in `f32`.

use std::arch::x86_64::*;

use crate::kernels::eights::{load_ps, load_words, store_ps, store_words};
use crate::kernels::line::Line;

/// The first values of eight pairs, and the second ones.
#[inline]
#[target_feature(enable = "avx2")]
pub fn halves(pairs: __m256i) -> [__m256; 2] {
    let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
    let (low, high) = (_mm256_slli_epi32::<16>(pairs), _mm256_and_si256(pairs, high));
    [_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)]
}

/// Up to twelve rows by 32 columns; see [`super::tile`]. Rows and columns are summed along `k`, as
/// the plain twin does.
#[target_feature(enable = "avx2,fma")]
pub fn tile<const MR: usize>(w: &[Line], x: &[Line], y: [&mut [f32]; MR], add: bool) {
    for eight in 0..4 {
        let mut sums = [_mm256_setzero_ps(); MR];
        if add {
            for i in 0..MR {
                sums[i] = load_ps(y[i], eight);
            }
        }
        for (w, x) in w.chunks(32).zip(x.chunks_exact(MR)) {
            for (p, pair) in w.as_chunks::<2>().0.iter().enumerate() {
                let [even, odd] = halves(load_words(&pair[eight / 2], eight % 2));
                for i in 0..MR {
                    let [x_even, x_odd] = halves(_mm256_set1_epi32(x[i].0[p % 16] as i32));
                    sums[i] = _mm256_fmadd_ps(x_even, even, sums[i]);
                    sums[i] = _mm256_fmadd_ps(x_odd, odd, sums[i]);
                }
            }
        }
        for i in 0..MR {
            store_ps(y[i], eight, sums[i]);
        }
    }
}

/// Up to 32 values rounded to nearest, ties to even, zeros after them.
#[target_feature(enable = "avx2")]
pub fn round(x: &[f32]) -> Line {
    let mut line = Line::ZERO;
    for half in 0..2 {
        let (low, high) = (round_eight(x, 2 * half), round_eight(x, 2 * half + 1));
        let words = _mm256_permute4x64_epi64::<0b1101_1000>(_mm256_packus_epi32(low, high));
        store_words(&mut line, half, words);
    }
    line
}

#[inline]
#[target_feature(enable = "avx2")]
fn round_eight(x: &[f32], eight: usize) -> __m256i {
    let bits = _mm256_castps_si256(load_ps(x, eight));
    let last = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
    let half = _mm256_add_epi32(last, _mm256_set1_epi32(0x7fff));
    _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, half))
}
