//! Q4_K with `vpdpbusd`: sixteen rows of `W` advance by four columns at a time.

use std::arch::x86_64::*;

use super::{PART_LINES, PARTS, SCALE_LINES, Weights};
use crate::kernels::activations::Q8Block;
use crate::kernels::line::Line;
use crate::kernels::quantized::avx512::unpack;
use crate::kernels::quantized::tiles::Spread;
use crate::kernels::simd::{load_line, load_ps, prefetch, prefetch_lines, store_line, store_ps};

/// Lines ahead of the stream: 4 KiB, about the latency of memory at its bandwidth.
const AHEAD: usize = 64;

/// `MR` rows by 16 columns; see [`super::IntegerWeight::tile`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub fn tile<const MR: usize>(
    (w, next): (Weights<'_>, &[Line]),
    x: &[Q8Block],
    y: [&mut [f32]; MR],
    add: bool,
) {
    let mut next = next.chunks(next.len().div_ceil(w.codes.len() / PART_LINES).max(1));
    let mut sums = [_mm512_setzero_ps(); MR];
    if add {
        for i in 0..MR {
            sums[i] = load_ps(y[i]);
        }
    }
    let blocks = w.codes.chunks_exact(PARTS * PART_LINES).zip(w.scales.chunks_exact(SCALE_LINES));
    for ((codes, scales), x) in blocks.zip(x.chunks_exact(PARTS * MR)) {
        scales.iter().for_each(|line| prefetch(line, 2 * SCALE_LINES));
        let scales = Scales::read(scales);
        let parts = codes.chunks_exact(PART_LINES).zip(x.chunks_exact(MR));
        for (part, (codes, x)) in parts.enumerate() {
            codes.iter().for_each(|line| prefetch(line, AHEAD));
            prefetch_lines(next.next().unwrap_or_default());
            let (scale, min) = scales.part(part);
            let weights = unpack::<4>(codes);
            for i in 0..MR {
                let mut dot = _mm512_setzero_si512();
                for (&weights, &q) in weights.iter().zip(&x[i].words) {
                    dot = _mm512_dpbusd_epi32(dot, weights, _mm512_set1_epi32(q as i32));
                }
                let scale = _mm512_mul_ps(scale, _mm512_set1_ps(x[i].scale));
                sums[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, sums[i]);
                let offset = _mm512_set1_ps(x[i].offset);
                sums[i] = _mm512_fmadd_ps(min, offset, sums[i]);
            }
        }
    }
    for i in 0..MR {
        store_ps(y[i], sums[i]);
    }
}

/// Writes parts for matrix tiles; see [`super::IntegerWeight::spread`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub fn spread(w: Weights<'_>, to: &mut Spread<'_>) {
    let blocks = w.codes.chunks_exact(PARTS * PART_LINES).zip(w.scales.chunks_exact(SCALE_LINES));
    for (block, (codes, scales)) in blocks.enumerate() {
        scales.iter().for_each(|line| prefetch(line, 2 * SCALE_LINES));
        let scales = Scales::read(scales);
        for (part, codes) in codes.chunks_exact(PART_LINES).enumerate() {
            codes.iter().for_each(|line| prefetch(line, AHEAD));
            let (weights, (lines, scale, min)) =
                (unpack::<4>(codes), to.block(PARTS * block + part));
            for (line, weights) in lines.iter_mut().zip(weights) {
                store_line(line, weights);
            }
            let (scales, mins) = scales.part(part);
            store_line(scale, _mm512_castps_si512(scales));
            store_line(min, _mm512_castps_si512(mins));
        }
    }
}

/// The scales and minima of one block of sixteen rows, a byte each: parts 0 to 3, then 4 to 7.
struct Scales {
    scales: [__m512i; 2],
    mins: [__m512i; 2],
    d: __m512,
    dmin: __m512,
}

impl Scales {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn read(lines: &[Line]) -> Self {
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| load_line(&lines[i]));
        let (six, four) = (_mm512_set1_epi8(63), _mm512_set1_epi8(15));
        let high = |word| _mm512_and_si512(_mm512_srli_epi32::<2>(word), _mm512_set1_epi8(0x30));
        let low = _mm512_and_si512(c, four);
        let upper = _mm512_and_si512(_mm512_srli_epi32::<4>(c), four);
        let half = |word| _mm512_cvtph_ps(_mm512_cvtepi32_epi16(word));
        Self {
            scales: [_mm512_and_si512(a, six), _mm512_or_si512(low, high(a))],
            mins: [_mm512_and_si512(b, six), _mm512_or_si512(upper, high(b))],
            d: half(d),
            dmin: half(_mm512_srli_epi32::<16>(d)),
        }
    }

    /// `d · scale` and `dmin · min` of one part.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn part(&self, part: usize) -> (__m512, __m512) {
        let count = _mm_cvtsi32_si128(8 * (part % 4) as i32);
        let byte = |word| {
            let byte = _mm512_and_si512(_mm512_srl_epi32(word, count), _mm512_set1_epi32(255));
            _mm512_cvtepi32_ps(byte)
        };
        (
            _mm512_mul_ps(self.d, byte(self.scales[part / 4])),
            _mm512_mul_ps(self.dmin, byte(self.mins[part / 4])),
        )
    }
}
