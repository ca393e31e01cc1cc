//! 4-bit weights written out as bf16 panels, the way bitsandbytes dequantises them.
#![allow(unsafe_code)]

use std::ops::Range;

use super::{BLOCK, PackedNf4};
use crate::kernels::bf16::{Chunk, Panels};
use crate::kernels::cpu::Cpu;
use crate::kernels::line::Line;
use crate::kernels::output::ask_lines;

/// A weight seen as bf16: `bf16(level[q] · absmax)`, with the product in `f32`.
pub(crate) struct Dequantized<'a>(pub &'a PackedNf4);

impl Panels for Dequantized<'_> {
    fn shape(&self) -> (usize, usize) {
        (self.0.n, self.0.k)
    }

    fn chunk<'a>(
        &'a self,
        cpu: Cpu,
        panel: usize,
        k: Range<usize>,
        scratch: &'a mut [Line],
    ) -> Chunk<'a> {
        let (pairs, scratch) = scratch.split_at_mut(k.len());
        let blocks = k.start / BLOCK..k.end.div_ceil(BLOCK);
        let absmax = self.0.absmax.lines(cpu, panel, blocks.clone(), scratch);
        let codes = self.0.codes(panel, k.clone()).chunks_exact(2);
        let levels = self.0.code.levels();
        let eights = (k.start / 8..).zip(codes).zip(pairs.chunks_exact_mut(8));
        for ((eight, codes), pairs) in eights {
            let block = eight / (BLOCK / 8) - blocks.start;
            for half in 0..2 {
                dequantize(cpu, levels, &codes[half], &absmax[block * 2 + half], pairs, half);
            }
        }
        Chunk::Bf16(pairs)
    }

    fn ask(&self, panel: usize, k: Range<usize>) {
        ask_lines(self.0.codes(panel, k));
    }
}

/// Writes eight columns of sixteen rows: four pairs, to every second line of `pairs`.
fn dequantize(
    cpu: Cpu,
    levels: &[f32; 16],
    codes: &Line,
    absmax: &Line,
    pairs: &mut [Line],
    half: usize,
) {
    #[cfg(target_arch = "x86_64")]
    if cpu.bf16 {
        // SAFETY: `bf16` says that AVX-512 F, BW and BF16 were detected.
        return unsafe { avx512::dequantize(levels, codes, absmax, pairs, half) };
    }
    let _ = cpu;
    for (p, pair) in pairs.chunks_exact_mut(2).enumerate() {
        pair[half] = Line::ZERO;
        for (lane, odd) in (0..16).flat_map(|lane| [(lane, 0), (lane, 1)]) {
            let code = codes.0[lane] >> (16 * odd + 4 * p) & 15;
            pair[half].set_bf16(lane, odd, levels[code as usize] * absmax.f32(lane));
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::*;
    use crate::kernels::simd::{load_line, load_line_ps, load_ps, round_pairs, store_line};
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub fn dequantize(
        levels: &[f32; 16],
        codes: &Line,
        absmax: &Line,
        pairs: &mut [Line],
        half: usize,
    ) {
        let (codes, absmax) = (load_line(codes), load_line_ps(absmax));
        let levels = load_ps(levels);
        store_line(&mut pairs[half], pair::<0, 16>(levels, codes, absmax));
        store_line(&mut pairs[2 + half], pair::<4, 20>(levels, codes, absmax));
        store_line(&mut pairs[4 + half], pair::<8, 24>(levels, codes, absmax));
        store_line(&mut pairs[6 + half], pair::<12, 28>(levels, codes, absmax));
    }

    /// The pair whose codes begin at bits `EVEN` and `ODD` of each word.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn pair<const EVEN: u32, const ODD: u32>(
        levels: __m512,
        codes: __m512i,
        absmax: __m512,
    ) -> __m512i {
        let even = look_up(levels, _mm512_srli_epi32::<EVEN>(codes), absmax);
        let odd = look_up(levels, _mm512_srli_epi32::<ODD>(codes), absmax);
        round_pairs(even, odd)
    }

    /// `vpermps` reads the lowest four bits of its index and ignores the others.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn look_up(levels: __m512, codes: __m512i, absmax: __m512) -> __m512 {
        _mm512_mul_ps(_mm512_permutexvar_ps(codes, levels), absmax)
    }
}
