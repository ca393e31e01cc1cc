//! The integer kernel with `vpdpbusd`: sixteen rows of `W` advance by four columns at a time.
//!
//! Cost per row and block: eight `vpdpbusd`, a conversion and a fused multiply-add for the weight's
//! scales, which shares the ports of `vpdpbusd`: eight ninths of its peak are the ceiling. In 8 bits the
//! activation's scale takes another product, and 80 % are.

use std::arch::x86_64::*;

use half::f16;

use super::TILE;
use super::packed::{RUN, Weights};
use super::spread::Spread;
use crate::kernels::activations::Q8Block;
use crate::kernels::line::Line;
use crate::kernels::simd::{load_line, load_ps, prefetch, prefetch_second, store_line, store_ps};

/// Lines ahead of the stream: 4 KiB, about the latency of memory at its bandwidth. The hardware stops
/// at the end of a page: at eight rows asking ahead gave 646 Gop/s where 506 had been, at 128 nothing.
const AHEAD: usize = 64;

/// Lines asked for meanwhile with one block, at most.
const MOST_ASKED: usize = 4;

/// Rows whose sums advance side by side: in a chain of `vpdpbusd` each waits four cycles for the one
/// before.
const INTERLEAVED: usize = 4;

/// `MR` rows by 16 columns; see [`super::tile`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub fn tile<const BITS: usize, const MR: usize>(
    (w, next): (Weights<'_, BITS>, &[Line]),
    x: &[Q8Block],
    y: [&mut [f32]; MR],
    add: bool,
) {
    let mut sums = begin(&y, add);
    let (codes, x) = (w.codes.as_chunks().0, x.as_chunks().0);
    let next = Meanwhile::of(next, x.len());
    let runs = codes.chunks(RUN).zip(w.scales.chunks(RUN)).zip(x.chunks(RUN));
    for (start, ((codes, scales), x)) in (0..).step_by(RUN).zip(runs) {
        run::<BITS, MR>((codes, next, start), scales, x, &mut sums);
    }
    for i in 0..MR {
        store_ps(y[i], sums[i]);
    }
}

/// Adds up to [`RUN`] blocks. A function of its own keeps what the loop needs in registers.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn run<const BITS: usize, const MR: usize>(
    (codes, next, start): (&[[Line; BITS]], Meanwhile<'_>, usize),
    scales: &[[f16; TILE]],
    x: &[[Q8Block; MR]],
    sums: &mut [__m512; MR],
) {
    // Of stretches of one block the sums themselves.
    let mut inner = if BITS == 8 { *sums } else { [_mm512_setzero_ps(); MR] };
    for (i, ((codes, scales), x)) in (start..).zip(codes.iter().zip(scales).zip(x)) {
        codes.iter().for_each(|line| prefetch(line, AHEAD));
        prefetch(scales, AHEAD / BITS);
        next.ask(i);
        let (weights, scales) = (unpack::<BITS>(codes), widen(scales));
        match BITS {
            8 => add_block::<128, true, MR>(&weights, scales, x, &mut inner),
            _ => add_block::<8, false, MR>(&weights, scales, x, &mut inner),
        }
    }
    match BITS {
        8 => *sums = inner,
        _ => add_scaled(&inner, &x[0], sums),
    }
}

/// Adds what a stretch of blocks, whose first is `x`, came to.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn add_scaled<const MR: usize>(
    inner: &[__m512; MR],
    x: &[Q8Block; MR],
    sums: &mut [__m512; MR],
) {
    for i in 0..MR {
        sums[i] = _mm512_fmadd_ps(inner[i], _mm512_set1_ps(x[i].scale), sums[i]);
    }
}

/// Adds the inner sums of a block, times the weight's scales and, if `SCALED`, the activation's.
/// `ZERO` is the code that stands for a weight of zero.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
pub fn add_block<const ZERO: i32, const SCALED: bool, const MR: usize>(
    weights: &[__m512i; 8],
    scales: __m512,
    x: &[Q8Block; MR],
    sums: &mut [__m512; MR],
) {
    let mut first = 0;
    while first < MR {
        let rows = INTERLEAVED.min(MR - first);
        let mut dots = [_mm512_setzero_si512(); INTERLEAVED];
        for i in 0..rows {
            dots[i] = _mm512_set1_epi32(x[first + i].minus_sum.wrapping_mul(ZERO));
        }
        for j in 0..weights.len() {
            for i in 0..rows {
                let q = _mm512_set1_epi32(x[first + i].words[j] as i32);
                dots[i] = _mm512_dpbusd_epi32(dots[i], weights[j], q);
            }
        }
        for i in 0..rows {
            let (dot, row) = (_mm512_cvtepi32_ps(dots[i]), first + i);
            let (dot, factors) = match SCALED {
                true => (_mm512_mul_ps(dot, scales), _mm512_set1_ps(x[row].scale)),
                false => (dot, scales),
            };
            sums[row] = _mm512_fmadd_ps(dot, factors, sums[row]);
        }
        first += INTERLEAVED;
    }
}

/// Zeros, or what `y` holds if `add`.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn begin<const MR: usize>(y: &[&mut [f32]; MR], add: bool) -> [__m512; MR] {
    let mut sums = [_mm512_setzero_ps(); MR];
    if add {
        for i in 0..MR {
            sums[i] = load_ps(y[i]);
        }
    }
    sums
}

/// Codes to ask for meanwhile, as many with each block: all at once would wait for each other.
#[derive(Clone, Copy)]
pub struct Meanwhile<'a> {
    lines: &'a [Line],
    per_block: usize,
}

impl<'a> Meanwhile<'a> {
    /// `lines` while `blocks` blocks are multiplied.
    #[inline]
    pub fn of(lines: &'a [Line], blocks: usize) -> Self {
        Self { lines, per_block: lines.len().div_ceil(blocks.max(1)).min(MOST_ASKED) }
    }

    /// Asks for the lines of block `i`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn ask(&self, i: usize) {
        if let Some(first) = self.lines.first() {
            for line in 0..MOST_ASKED {
                if line < self.per_block {
                    prefetch_second(first, i * self.per_block + line);
                }
            }
        }
    }
}

/// Writes blocks for matrix tiles; see [`super::IntegerWeight::spread`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub fn spread<const BITS: usize>(w: Weights<'_, BITS>, to: &mut Spread<'_>) {
    let offset = _mm512_set1_epi8((1u8 << (BITS - 1)) as i8);
    for (i, (codes, scales)) in w.codes.chunks_exact(BITS).zip(w.scales).enumerate() {
        codes.iter().for_each(|line| prefetch(line, AHEAD));
        let (weights, (lines, scale)) = (unpack::<BITS>(codes), to.block(i));
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

#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
#[allow(unsafe_code)]
fn widen(scales: &[f16; TILE]) -> __m512 {
    // SAFETY: `scales` is 32 readable bytes.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(scales.as_ptr().cast()) })
}
