//! 4-bit weights written out as `f32` panels on the way: where they stand for `f32`, and where bf16
//! products do not exist.
#![allow(unsafe_code)]

use std::ops::Range;

use super::{BLOCK, PackedNf4, place};
use crate::kernels::cpu::Cpu;
use crate::kernels::gemm::{PANEL, Panels};
use crate::kernels::line::Line;

/// A weight seen as `f32`: `level[q] · absmax`.
#[derive(Clone, Copy, Debug)]
pub struct Widened<'a>(pub &'a PackedNf4);

impl Panels for Widened<'_> {
    fn shape(&self) -> (usize, usize) {
        (self.0.n, self.0.k)
    }

    fn panel<'a>(
        &'a self,
        cpu: Cpu,
        panel: usize,
        k: Range<usize>,
        to: &'a mut [f32],
    ) -> &'a [f32] {
        let to = &mut to[..k.len() * PANEL];
        let mut scratch = [Line::ZERO; 2];
        for block in k.start / BLOCK..k.end.div_ceil(BLOCK) {
            let columns = k.start.max(block * BLOCK)..k.end.min((block + 1) * BLOCK);
            let absmax = self.0.absmax.lines(cpu, panel, block..block + 1, &mut scratch);
            let (first, _) = place(self.0.k, panel * PANEL, block * BLOCK);
            let codes = &self.0.codes[first..first + BLOCK / 4];
            let to = &mut to[(columns.start - k.start) * PANEL..(columns.end - k.start) * PANEL];
            let within = columns.start % BLOCK;
            widen(cpu, self.0.code.levels(), codes, [&absmax[0], &absmax[1]], within, to);
        }
        to
    }
}

/// Writes columns of one block from its column `first` on, 32 rows each: two lines of `codes` hold
/// eight columns.
fn widen(
    cpu: Cpu,
    levels: &[f32; 16],
    codes: &[Line],
    absmax: [&Line; 2],
    first: usize,
    to: &mut [f32],
) {
    #[cfg(target_arch = "x86_64")]
    if cpu.avx512 {
        // SAFETY: `avx512` says that AVX-512 F was detected.
        return unsafe { avx512::widen(levels, codes, absmax, first, to) };
    }
    #[cfg(target_arch = "x86_64")]
    if cpu.avx2 {
        // SAFETY: `avx2` says that AVX2 was detected.
        return unsafe { avx2::widen(levels, codes, absmax, first, to) };
    }
    let _ = cpu;
    for (column, to) in (first..).zip(to.chunks_exact_mut(PANEL)) {
        let (line, shift) = place(BLOCK, 0, column);
        for (half, to) in to.chunks_exact_mut(16).enumerate() {
            for (lane, to) in to.iter_mut().enumerate() {
                let code = codes[line + half].0[lane] >> shift & 15;
                *to = levels[code as usize] * absmax[half].f32(lane);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::*;
    use crate::kernels::simd::{load_line, load_line_ps, load_ps, store_ps};
    use std::arch::x86_64::*;

    /// `vpermps` reads the lowest four bits of its index and ignores the others.
    #[target_feature(enable = "avx512f")]
    pub fn widen(
        levels: &[f32; 16],
        codes: &[Line],
        absmax: [&Line; 2],
        first: usize,
        to: &mut [f32],
    ) {
        let (levels, absmax) = (load_ps(levels), absmax.map(|line| load_line_ps(line)));
        for (column, to) in (first..).zip(to.chunks_exact_mut(PANEL)) {
            let (line, shift) = place(BLOCK, 0, column);
            let shift = _mm_cvtsi32_si128(shift as i32);
            for (half, to) in to.chunks_exact_mut(16).enumerate() {
                let codes = _mm512_srl_epi32(load_line(&codes[line + half]), shift);
                let values = _mm512_permutexvar_ps(codes, levels);
                store_ps(to, _mm512_mul_ps(values, absmax[half]));
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::*;
    use crate::kernels::eights::{load_ps, load_words, store_ps};
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx2")]
    pub fn widen(
        levels: &[f32; 16],
        codes: &[Line],
        absmax: [&Line; 2],
        first: usize,
        to: &mut [f32],
    ) {
        let (low, high) = (load_ps(levels, 0), load_ps(levels, 1));
        let absmax = absmax.map(|line| line.0.map(f32::from_bits));
        for (column, to) in (first..).zip(to.chunks_exact_mut(PANEL)) {
            let (line, shift) = place(BLOCK, 0, column);
            let shift = _mm_cvtsi32_si128(shift as i32);
            for (eight, to) in to.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let half = eight / 2;
                let words = load_words(&codes[line + half], eight % 2);
                let scale = load_ps(&absmax[half], eight % 2);
                let index = _mm256_srl_epi32(words, shift);
                // Three bits choose among eight levels, the fourth between both halves of them.
                let upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index));
                let low = _mm256_permutevar8x32_ps(low, index);
                let high = _mm256_permutevar8x32_ps(high, index);
                let values = _mm256_blendv_ps(low, high, upper);
                store_ps(to, 0, _mm256_mul_ps(values, scale));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::nf4::{Blocks, Code};
    use crate::kernels::pool::Pool;
    use crate::kernels::testing::Seeded;

    fn cpus() -> impl Iterator<Item = Cpu> {
        [Some(Cpu::SCALAR), Cpu::avx2_only(), Some(Cpu::detect())].into_iter().flatten()
    }

    #[test]
    fn panels_hold_the_weights_on_every_instruction_set() {
        let (n, k) = (41, 192);
        let (pool, values) = (Pool::new(2), Seeded(5).values(n * k));
        for (code, double) in [(Code::Nf4, true), (Code::Nf4, false), (Code::Fp4, true)] {
            let tensor = Blocks::quantize(&pool, (&values).into(), code, BLOCK, double);
            let w = PackedNf4::pack(&pool, tensor, n, k);
            let view = Widened(&w);
            for (cpu, columns) in cpus().flat_map(|cpu| {
                [0..k, 64..128, 8..72, 61..67, 191..192].map(|columns| (cpu, columns))
            }) {
                let mut to = vec![f32::NAN; PANEL * columns.len()];
                let found = view.panel(cpu, 1, columns.clone(), &mut to);
                for (at, &value) in found.iter().enumerate() {
                    let (row, column) = (PANEL + at % PANEL, columns.start + at / PANEL);
                    assert!(row >= n || value == w.weight(row, column), "{row} {column}");
                }
            }
        }
    }
}
