//! Q4_K with `vpdpbusd`: sixteen rows of `W` advance by four columns at a time.

use std::arch::x86_64::*;

use super::{PAIRS, PART_LINES, PARTS, SCALE_LINES, Weights};
use crate::kernels::activations::Q8Block;
use crate::kernels::line::Line;
use crate::kernels::quantized::avx512::{Meanwhile, add_block, add_scaled, begin, unpack};
use crate::kernels::quantized::spread::Spread;
use crate::kernels::simd::{load_line, prefetch, store_line, store_ps};

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
    let mut sums = begin(&y, add);
    let (codes, x) = (w.codes.as_chunks().0.as_chunks().0, x.as_chunks().0.as_chunks().0);
    let next = Meanwhile::of(next, PARTS * x.len());
    let blocks = codes.iter().zip(w.scales.as_chunks().0).zip(x);
    for (start, ((codes, scales), x)) in (0..).step_by(PARTS).zip(blocks) {
        block((codes, next, start), scales, x, &mut sums);
    }
    for i in 0..MR {
        store_ps(y[i], sums[i]);
    }
}

/// Adds a block. A function of its own keeps what its loops need in registers.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn block<const MR: usize>(
    (codes, next, start): (&[[Line; PART_LINES]; PARTS], Meanwhile<'_>, usize),
    scales: &[Line; SCALE_LINES],
    x: &[[Q8Block; MR]; PARTS],
    sums: &mut [__m512; MR],
) {
    scales.iter().for_each(|line| prefetch(line, 2 * SCALE_LINES));
    let scales = Scales::read(scales);
    let mut inner = [_mm512_setzero_ps(); MR];
    let parts = codes.iter().zip(x);
    for (i, (codes, x)) in parts.enumerate() {
        codes.iter().for_each(|line| prefetch(line, AHEAD));
        next.ask(start + i);
        add_block::<0, false, MR>(&unpack::<4>(codes), scales.part(i), x, &mut inner);
    }
    let mins = scales.pairs_of_mins();
    for i in 0..MR {
        let mut offset = _mm512_setzero_si512();
        for j in 0..mins.len() {
            let pair = _mm512_set1_epi32(x[PAIRS[j]][i].minus_sums());
            offset = _mm512_dpwssd_epi32(offset, mins[j], pair);
        }
        let offset = _mm512_mul_ps(_mm512_cvtepi32_ps(offset), scales.dmin);
        inner[i] = _mm512_fmadd_ps(inner[i], scales.d, offset);
    }
    add_scaled(&inner, &x[0], sums);
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
            let (weights, (lines, scale)) = (unpack::<4>(codes), to.block(PARTS * block + part));
            for (line, weights) in lines.iter_mut().zip(weights) {
                store_line(line, weights);
            }
            store_line(scale, _mm512_castps_si512(scales.part(part)));
        }
        let [mins @ .., d, dmin] = to.more_mut(PARTS * block);
        for (line, pair) in mins.iter_mut().zip(scales.pairs_of_mins()) {
            store_line(line, pair);
        }
        store_line(d, _mm512_castps_si512(scales.d));
        store_line(dmin, _mm512_castps_si512(scales.dmin));
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

    /// The scales of one part.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn part(&self, part: usize) -> __m512 {
        let count = _mm_cvtsi32_si128(8 * (part % 4) as i32);
        let byte = _mm512_srl_epi32(self.scales[part / 4], count);
        _mm512_cvtepi32_ps(_mm512_and_si512(byte, _mm512_set1_epi32(255)))
    }

    /// The minima of two parts per word, in the order of [`PAIRS`].
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn pairs_of_mins(&self) -> [__m512i; PAIRS.len()] {
        let low = _mm512_set1_epi32(0x00ff_00ff);
        let [a, b] = self.mins;
        let upper = [_mm512_srli_epi32::<8>(a), _mm512_srli_epi32::<8>(b)];
        [
            _mm512_and_si512(a, low),
            _mm512_and_si512(upper[0], low),
            _mm512_and_si512(b, low),
            _mm512_and_si512(upper[1], low),
        ]
    }
}
