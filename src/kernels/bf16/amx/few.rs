//! A few rows without tiles, with the bits that tiles give them.
//!
//! For these, setting tiles out and fetching sums back takes longer. Values below the smallest normal
//! one are not flushed to zero.

use std::arch::x86_64::*;

use super::{AHEAD, PIECE};
use crate::kernels::line::Line;
use crate::kernels::simd::{load_line, load_line_ps, load_ps, load_tile, prefetch, store_tile};

/// Lines of codes ahead of the stream that are asked for: 4 KiB.
const CODES_AHEAD: usize = 64;

/// Of both halves of 32 columns, a register per row.
type Totals<const MR: usize> = [[__m512; 2]; MR];

/// The chains of sums that begin anew with every 32 columns of the reduction: for each row and half,
/// the even columns of a pair and the odd ones.
type Chains<const MR: usize> = [[[__m512; 2]; 2]; MR];

/// `y = x · w`, or `y += x · w` if `add`, as `Tiles::bf16` adds: up to 32 columns of each row.
#[target_feature(enable = "avx512f")]
pub(super) fn few_rows<const MR: usize>(w: &[Line], x: &[Line], y: [&mut [f32]; MR], add: bool) {
    let mut totals: Totals<MR> = load_tile(&y, add);
    for (w, x) in w.chunks(PIECE).zip(x.chunks_exact(MR)) {
        let mut chains = none();
        for (p, pair) in w.as_chunks::<2>().0.iter().enumerate() {
            pair.iter().for_each(|line| prefetch(line, AHEAD));
            let w = [halves(load_line(&pair[0])), halves(load_line(&pair[1]))];
            add_pair(&mut chains, w, x, p);
        }
        add_chains(&mut totals, &chains);
    }
    store_tile(y, &totals);
}

/// [`few_rows`] of codes whose `levels` are values of bf16: blocks of 64 columns, whose sums count
/// `absmax` times.
#[target_feature(enable = "avx512f")]
pub(super) fn few_rows_of_codes<const MR: usize>(
    levels: &[f32; 16],
    (codes, absmax): (&[Line], &[Line]),
    x: &[Line],
    y: [&mut [f32]; MR],
    add: bool,
) {
    let levels = load_ps(levels);
    let mut totals: Totals<MR> = load_tile(&y, add);
    let blocks = codes.as_chunks::<16>().0.iter().zip(absmax.as_chunks::<2>().0);
    for ((codes, absmax), x) in blocks.zip(x.chunks_exact(2 * MR)) {
        let mut dots = [[_mm512_setzero_ps(); 2]; MR];
        for (codes, x) in codes.as_chunks::<8>().0.iter().zip(x.chunks_exact(MR)) {
            let mut chains = none();
            for (eight, codes) in codes.as_chunks::<2>().0.iter().enumerate() {
                codes.iter().for_each(|line| prefetch(line, CODES_AHEAD));
                let codes = [load_line(&codes[0]), load_line(&codes[1])];
                add_pair(&mut chains, look_up::<0, 16>(levels, codes), x, 4 * eight);
                add_pair(&mut chains, look_up::<4, 20>(levels, codes), x, 4 * eight + 1);
                add_pair(&mut chains, look_up::<8, 24>(levels, codes), x, 4 * eight + 2);
                add_pair(&mut chains, look_up::<12, 28>(levels, codes), x, 4 * eight + 3);
            }
            add_chains(&mut dots, &chains);
        }
        let absmax = [load_line_ps(&absmax[0]), load_line_ps(&absmax[1])];
        for (totals, dots) in totals.iter_mut().zip(dots) {
            for half in 0..2 {
                totals[half] = _mm512_fmadd_ps(dots[half], absmax[half], totals[half]);
            }
        }
    }
    store_tile(y, &totals);
}

/// The pair whose codes begin at bits `EVEN` and `ODD` of each word; `vpermps` reads the lowest four
/// bits of its index and ignores the others.
#[inline]
#[target_feature(enable = "avx512f")]
fn look_up<const EVEN: u32, const ODD: u32>(
    levels: __m512,
    codes: [__m512i; 2],
) -> [[__m512; 2]; 2] {
    [look_up_half::<EVEN, ODD>(levels, codes[0]), look_up_half::<EVEN, ODD>(levels, codes[1])]
}

// Nothing here goes through `map` of an array: its call is not inlined, and registers spill.
#[inline]
#[target_feature(enable = "avx512f")]
fn look_up_half<const EVEN: u32, const ODD: u32>(levels: __m512, codes: __m512i) -> [__m512; 2] {
    [
        _mm512_permutexvar_ps(_mm512_srli_epi32::<EVEN>(codes), levels),
        _mm512_permutexvar_ps(_mm512_srli_epi32::<ODD>(codes), levels),
    ]
}

/// The even values of sixteen pairs, and the odd ones.
#[inline]
#[target_feature(enable = "avx512f")]
fn halves(pairs: __m512i) -> [__m512; 2] {
    let odd = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
    [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(odd)]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn none<const MR: usize>() -> Chains<MR> {
    [[[_mm512_setzero_ps(); 2]; 2]; MR]
}

/// Pair `p` of each row of `x` times a pair of both halves of the columns.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_pair<const MR: usize>(chains: &mut Chains<MR>, w: [[__m512; 2]; 2], x: &[Line], p: usize) {
    for i in 0..MR {
        let x = halves(_mm512_set1_epi32(x[i].0[p] as i32));
        for (half, odd) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            chains[i][half][odd] = _mm512_fmadd_ps(x[odd], w[half][odd], chains[i][half][odd]);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add_chains<const MR: usize>(totals: &mut Totals<MR>, chains: &Chains<MR>) {
    for i in 0..MR {
        for half in 0..2 {
            let [even, odd] = chains[i][half];
            totals[i][half] = _mm512_add_ps(totals[i][half], _mm512_add_ps(even, odd));
        }
    }
}
