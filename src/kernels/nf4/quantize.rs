//! From values to codes of four bits: the level nearest to each.
#![allow(unsafe_code)]

use super::Code;
use crate::kernels::cpu::Cpu;
use crate::kernels::line::Line;

/// The levels of a code by size.
#[derive(Debug)]
pub(super) struct Ladder {
    /// What lies halfway between each two levels; the last is above every value.
    midpoints: [f32; 16],
    /// The code of each level, one to a word.
    order: Line,
}

impl Ladder {
    pub fn of(code: Code) -> Self {
        let (order, levels) = (code.order(), code.levels());
        let level = |i: usize| levels[usize::from(order[i])];
        let between = |i| if i == 15 { f32::INFINITY } else { (level(i) + level(i + 1)) / 2.0 };
        Self { midpoints: std::array::from_fn(between), order: Line(order.map(u32::from)) }
    }
}

/// Writes the codes of one block, two per byte, the first high, and returns its absmax. A value on a
/// midpoint falls to the level below.
///
/// # Panics
/// If `bytes` are not as many as the codes need.
pub(super) fn quantize_block(cpu: Cpu, x: &[f32], ladder: &Ladder, bytes: &mut [u8]) -> f32 {
    assert_eq!(bytes.len(), x.len().div_ceil(2), "two codes per byte");
    #[cfg(target_arch = "x86_64")]
    if cpu.avx512 {
        // SAFETY: `avx512` says that AVX-512 F was detected.
        return unsafe { avx512::quantize_block(x, ladder, bytes) };
    }
    let _ = cpu;
    scalar::quantize_block(x, ladder, bytes)
}

/// What a block is multiplied with before its levels are found.
fn inverse(absmax: f32) -> f32 {
    1.0 / absmax.max(1e-38)
}

mod scalar {
    use super::{Ladder, inverse};

    /// Values that are looked at side by side.
    const RUN: usize = 16;

    pub fn quantize_block(x: &[f32], ladder: &Ladder, bytes: &mut [u8]) -> f32 {
        let absmax = x.iter().fold(0f32, |max, x| max.max(x.abs()));
        let inverse = inverse(absmax);
        for (x, bytes) in x.chunks(RUN).zip(bytes.chunks_mut(RUN / 2)) {
            let (mut run, mut below) = ([0f32; RUN], [0u8; RUN]);
            run.iter_mut().zip(x).for_each(|(to, x)| *to = (x * inverse).clamp(-1.0, 1.0));
            for midpoint in &ladder.midpoints {
                for i in 0..RUN {
                    below[i] = below[i].wrapping_add(u8::from(*midpoint < run[i]));
                }
            }
            let code = |i: usize| match i < x.len() {
                true => ladder.order.0[usize::from(below[i])] as u8,
                false => 0,
            };
            for (i, byte) in bytes.iter_mut().enumerate() {
                *byte = code(2 * i) << 4 | code(2 * i + 1);
            }
        }
        absmax
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{Ladder, inverse};
    use crate::kernels::simd::{load_line, load_ps};
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f")]
    pub fn quantize_block(x: &[f32], ladder: &Ladder, bytes: &mut [u8]) -> f32 {
        let mut largest = _mm512_setzero_ps();
        for x in x.chunks(16) {
            largest = _mm512_max_ps(largest, _mm512_abs_ps(load_ps(x)));
        }
        let absmax = _mm512_reduce_max_ps(largest);
        let inverse = _mm512_set1_ps(inverse(absmax));
        let (one, minus_one) = (_mm512_set1_ps(1.0), _mm512_set1_ps(-1.0));
        let (midpoints, order) = (load_ps(&ladder.midpoints), load_line(&ladder.order));
        for (x, bytes) in x.chunks(16).zip(bytes.chunks_mut(8)) {
            let scaled = _mm512_mul_ps(load_ps(x), inverse);
            let level = below(_mm512_max_ps(_mm512_min_ps(scaled, one), minus_one), midpoints);
            let codes = _mm512_permutexvar_epi32(level, order);
            let there = (u16::MAX as u32 >> (16 - x.len())) as u16;
            let codes = side_by_side(_mm512_maskz_mov_epi32(there, codes));
            bytes.copy_from_slice(&codes.to_le_bytes()[..bytes.len()]);
        }
        absmax
    }

    /// How many midpoints lie below each value: half of those left are passed at a time.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn below(x: __m512, midpoints: __m512) -> __m512i {
        let mut passed = _mm512_setzero_si512();
        for half in [8, 4, 2, 1] {
            let at = _mm512_add_epi32(passed, _mm512_set1_epi32(half - 1));
            let midpoint = _mm512_permutexvar_ps(at, midpoints);
            let above = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(midpoint, x);
            passed = _mm512_mask_add_epi32(passed, above, passed, _mm512_set1_epi32(half));
        }
        passed
    }

    /// Sixteen codes as eight bytes, the first of two high.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn side_by_side(codes: __m512i) -> u64 {
        let first = _mm512_slli_epi64::<4>(codes);
        let both = _mm512_or_si512(first, _mm512_srli_epi64::<32>(codes));
        _mm_cvtsi128_si64(_mm512_cvtepi64_epi8(both)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{Seeded, every_cpu};

    #[test]
    fn every_instruction_set_gives_the_same_codes() {
        for code in [Code::Nf4, Code::Fp4] {
            let ladder = Ladder::of(code);
            let midpoints = ladder.midpoints.iter().take(15).flat_map(|&m| [m, m.next_up()]);
            let mut edges: Vec<f32> = midpoints.chain([1.0, -1.0, 0.0, -0.0]).collect();
            edges.resize(64, 0.0);
            let seeded = |len: usize| Seeded(len as u64).values(len);
            let blocks = [64, 128, 1, 2, 15, 17, 50].map(seeded);
            for x in blocks.into_iter().chain([edges, vec![0.0; 64], vec![f32::MAX; 20]]) {
                let found = every_cpu().into_iter().map(|cpu| {
                    let mut bytes = vec![0xaa; x.len().div_ceil(2)];
                    let absmax = quantize_block(cpu, &x, &ladder, &mut bytes);
                    (absmax, bytes)
                });
                let found: Vec<_> = found.collect();
                assert!(found.iter().all(|codes| *codes == found[0]), "{code:?} {x:?}");
            }
        }
    }
}
