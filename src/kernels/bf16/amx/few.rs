//! A few rows without tiles, with the bits that tiles give them.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::sums::Sums;
use super::{AHEAD, PIECE};
use crate::kernels::amx;
use crate::kernels::line::Line;
use crate::kernels::simd::{load_line, load_ps, store_ps};

/// `sums += x · w` for a few rows without tiles, as `Tiles::bf16` adds: for these, setting out tiles
/// and fetching sums back takes longer. Values below the smallest normal one are not flushed to zero.
///
/// # Safety
/// The rows of `sums` must have been written.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn few_rows<const MR: usize>(w: &[Line], x: &[Line], sums: &mut Sums) {
    let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    let halves = |words| {
        let low = _mm512_slli_epi32::<16>(words);
        [low, _mm512_and_si512(words, high)].map(|half| _mm512_castsi512_ps(half))
    };
    let mut totals = [[_mm512_setzero_ps(); 2]; MR];
    for i in 0..MR {
        // SAFETY: by this function's contract.
        totals[i] = unsafe { sums.row(i) }.each_ref().map(|line| load_ps(line));
    }
    for (w, x) in w.chunks(PIECE).zip(x.chunks_exact(MR)) {
        let mut dots = [[[_mm512_setzero_ps(); 2]; 2]; MR];
        for (p, pair) in w.as_chunks::<2>().0.iter().enumerate() {
            pair.iter().for_each(|line| amx::prefetch(line, AHEAD));
            let w = [halves(load_line(&pair[0])), halves(load_line(&pair[1]))];
            for i in 0..MR {
                let x = halves(_mm512_set1_epi32(x[i].0[p] as i32));
                for (column, half) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    let dot = dots[i][column][half];
                    dots[i][column][half] = _mm512_fmadd_ps(x[half], w[column][half], dot);
                }
            }
        }
        for i in 0..MR {
            for column in 0..2 {
                let [even, odd] = dots[i][column];
                totals[i][column] = _mm512_add_ps(totals[i][column], _mm512_add_ps(even, odd));
            }
        }
    }
    for i in 0..MR {
        // SAFETY: by this function's contract.
        let row = unsafe { sums.row_mut(i).assume_init_mut() };
        row.iter_mut().zip(totals[i]).for_each(|(line, total)| store_ps(line, total));
    }
}
