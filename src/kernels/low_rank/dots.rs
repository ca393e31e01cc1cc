//! Dot products of a few rows with four ranks: lanes run along the columns and are folded at the end.
#![allow(unsafe_code)]

use super::RANKS;
use super::factor::Part;
use crate::kernels::cpu::Cpu;
use crate::kernels::line::Line;

/// The dot products of `MR` rows with four ranks, handed to `keep` row by row.
pub(super) fn dots<const MR: usize>(
    cpu: Cpu,
    x: &[Line],
    a: Part<'_>,
    keep: &mut impl FnMut(usize, [f32; RANKS]),
) {
    #[cfg(target_arch = "x86_64")]
    if cpu.bf16 {
        // SAFETY: `bf16` says that AVX-512 F and BF16 were detected.
        let dots = unsafe {
            match a {
                Part::Bf16(a) => avx512::dots::<MR>(x, a),
                Part::Int8(a) => avx512::dots_of_bytes::<MR>(x, a),
            }
        };
        return dots.into_iter().enumerate().for_each(|(row, dots)| keep(row, dots));
    }
    a.with(cpu, |a| {
        #[cfg(target_arch = "x86_64")]
        if let Some(s) = crate::kernels::lanes::Avx2::detected(cpu) {
            for row in 0..MR {
                // SAFETY: the token says that AVX2 and FMA were detected.
                keep(row, unsafe { avx2::dots::<MR>(s, x, a, row) });
            }
            return;
        }
        for row in 0..MR {
            keep(row, std::array::from_fn(|rank| scalar::dot::<MR>(x, a, row, rank)));
        }
    });
}

mod scalar {
    use super::*;

    /// The specification: one dot product of bf16 values, summed in `f32`.
    pub fn dot<const MR: usize>(x: &[Line], a: &[Line], row: usize, rank: usize) -> f32 {
        let blocks = x.chunks_exact(MR).zip(a.chunks_exact(RANKS));
        let dot_line = |(x, a): (&[Line], &[Line])| -> f32 {
            let places = (0..16).flat_map(|word| [(word, 0), (word, 1)]);
            places.map(|(word, half)| x[row].bf16(word, half) * a[rank].bf16(word, half)).sum()
        };
        blocks.map(dot_line).sum()
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::*;
    use crate::kernels::bf16::avx2::halves;
    use crate::kernels::eights::load_words;
    use crate::kernels::lanes::{Avx2, Simd};
    use std::arch::x86_64::*;

    /// The dot products of row `row` of `MR` with four ranks.
    #[target_feature(enable = "avx2,fma")]
    pub fn dots<const MR: usize>(s: Avx2, x: &[Line], a: &[Line], row: usize) -> [f32; RANKS] {
        let mut sums = [[_mm256_setzero_ps(); 2]; RANKS];
        for (x, a) in x.chunks_exact(MR).zip(a.as_chunks::<RANKS>().0) {
            for half in 0..2 {
                let [x_even, x_odd] = halves(load_words(&x[row], half));
                for rank in 0..RANKS {
                    let [a_even, a_odd] = halves(load_words(&a[rank], half));
                    sums[rank][0] = _mm256_fmadd_ps(x_even, a_even, sums[rank][0]);
                    sums[rank][1] = _mm256_fmadd_ps(x_odd, a_odd, sums[rank][1]);
                }
            }
        }
        let mut dots = [0.0; RANKS];
        for rank in 0..RANKS {
            dots[rank] = s.sum(sums[rank]);
        }
        dots
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::*;
    use crate::kernels::low_rank::bytes::Stretch;
    use crate::kernels::low_rank::bytes::avx512::{ask, widened};
    use crate::kernels::simd::{as_bf16, load_line, prefetch};
    use std::arch::x86_64::*;

    /// Lines ahead of the stream of `A`: 4 KiB.
    const AHEAD: usize = 64;

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn dots<const MR: usize>(x: &[Line], a: &[Line]) -> [[f32; RANKS]; MR] {
        let mut sums = [[_mm512_setzero_ps(); RANKS]; MR];
        for (x, a) in x.chunks_exact(MR).zip(a.chunks_exact(RANKS)) {
            a.iter().for_each(|line| prefetch(line, AHEAD));
            for i in 0..MR {
                let x = as_bf16(load_line(&x[i]));
                for rank in 0..RANKS {
                    let a = as_bf16(load_line(&a[rank]));
                    sums[i][rank] = _mm512_dpbf16_ps(sums[i][rank], x, a);
                }
            }
        }
        folded(sums)
    }

    /// The same, `A` widened in registers.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn dots_of_bytes<const MR: usize>(x: &[Line], a: Stretch<'_>) -> [[f32; RANKS]; MR] {
        let mut sums = [[_mm512_setzero_ps(); RANKS]; MR];
        let blocks = a.bytes.as_chunks::<RANKS>().0.iter().zip(a.scales.as_chunks::<RANKS>().0);
        for (x, (bytes, scales)) in x.chunks_exact(MR).zip(blocks) {
            ask(bytes);
            for rank in 0..RANKS {
                let a = widened(&bytes[rank], scales[rank]);
                for i in 0..MR {
                    let x = as_bf16(load_line(&x[i]));
                    sums[i][rank] = _mm512_dpbf16_ps(sums[i][rank], x, a);
                }
            }
        }
        folded(sums)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn folded<const MR: usize>(sums: [[__m512; RANKS]; MR]) -> [[f32; RANKS]; MR] {
        let mut dots = [[0.0; RANKS]; MR];
        for i in 0..MR {
            for rank in 0..RANKS {
                dots[i][rank] = _mm512_reduce_add_ps(sums[i][rank]);
            }
        }
        dots
    }
}
