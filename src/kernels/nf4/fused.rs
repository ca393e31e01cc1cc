//! The fused NF4 tile: a code becomes a bf16 weight by one table look-up on its way to the product.
//!
//! `vpermw` looks up 32 weights per instruction and reads five bits of each index. The fifth is the
//! next nibble's lowest bit; a table that holds the sixteen codes twice makes it irrelevant, so
//! a shift is all the unpacking there is.
#![allow(unsafe_code)]

use super::{BLOCK, Code};
use crate::kernels::cpu::Cpu;
use crate::kernels::line::Line;

/// `MR` rows by 32 columns, as in [`crate::kernels::bf16`].
///
/// `codes` holds sixteen lines per block of 64 columns, `absmax` two, `x` two per row.
pub(crate) fn tile<const MR: usize>(
    cpu: Cpu,
    (code, codes): (Code, &[Line]),
    absmax: &[Line],
    x: &[Line],
    y: [&mut [f32]; MR],
    add: bool,
) {
    #[cfg(target_arch = "x86_64")]
    if cpu.bf16 {
        // SAFETY: `bf16` says that AVX-512 F, BW and BF16 were detected.
        return unsafe { avx512::tile((code, codes), absmax, x, y, add) };
    }
    let _ = cpu;
    scalar::tile((code, codes), absmax, x, y, add);
}

/// The levels rounded to bf16, as every product takes them.
#[cfg(target_arch = "x86_64")]
pub(crate) fn rounded(code: Code) -> &'static [f32; 16] {
    static NF4: [f32; 16] = widened(Code::Nf4.levels());
    static FP4: [f32; 16] = widened(Code::Fp4.levels());
    match code {
        Code::Nf4 => &NF4,
        Code::Fp4 => &FP4,
    }
}

#[cfg(target_arch = "x86_64")]
const fn widened(levels: &[f32; 16]) -> [f32; 16] {
    let (mut rounded, mut i) = ([0.0; 16], 0);
    while i < 16 {
        rounded[i] = half::bf16::from_f32_const(levels[i]).to_f32_const();
        i += 1;
    }
    rounded
}

/// Looks the codes of whole blocks up for matrix tiles: two lines of `levels` per pair of columns.
#[cfg(target_arch = "x86_64")]
pub(crate) fn look_up(cpu: Cpu, code: Code, codes: &[Line], levels: &mut [Line]) {
    assert!(cpu.bf16, "tiles come with AVX-512 BF16");
    // SAFETY: `bf16` says that AVX-512 F and BW were detected.
    unsafe { avx512::look_up(code, codes, levels) }
}

mod scalar {
    use super::*;
    use half::bf16;

    /// The specification: per block, products of bf16 values summed in `f32`, then times absmax.
    pub fn tile<const MR: usize>(
        (code, codes): (Code, &[Line]),
        absmax: &[Line],
        x: &[Line],
        mut y: [&mut [f32]; MR],
        add: bool,
    ) {
        let level = code.levels().map(|level| bf16::from_f32(level).to_f32());
        for (i, y) in y.iter_mut().enumerate() {
            for (column, y) in y.iter_mut().enumerate() {
                let (half, lane) = (column / 16, column % 16);
                let mut sum = if add { *y } else { 0.0 };
                for (b, absmax) in absmax.chunks_exact(2).enumerate() {
                    let dot: f32 = (0..BLOCK)
                        .map(|c| {
                            let word = codes[(b * 8 + c / 8) * 2 + half].0[lane];
                            let level =
                                level[(word >> (16 * (c % 2) + 4 * (c % 8 / 2)) & 15) as usize];
                            level * x[(b * 2 + c / 32) * MR + i].bf16(c % 32 / 2, c % 2)
                        })
                        .sum();
                    sum = dot.mul_add(absmax[half].f32(lane), sum);
                }
                *y = sum;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::*;
    use crate::kernels::simd::{
        as_bf16, load_line, load_line_ps, load_tile, prefetch, store_line, store_tile,
    };
    use std::arch::x86_64::*;

    /// Lines ahead of a single row's stream: 4 KiB.
    const AHEAD: usize = 64;

    type Dots<const MR: usize> = [[__m512; 2]; MR];

    #[target_feature(enable = "avx512f,avx512bw")]
    pub fn look_up(code: Code, codes: &[Line], levels: &mut [Line]) {
        let table = table(code);
        for (codes, levels) in codes.as_chunks::<2>().0.iter().zip(levels.as_chunks_mut::<8>().0) {
            for half in 0..2 {
                prefetch(&codes[half], AHEAD);
                let codes = load_line(&codes[half]);
                let level = |codes| _mm512_permutexvar_epi16(codes, table);
                store_line(&mut levels[half], level(codes));
                store_line(&mut levels[2 + half], level(_mm512_srli_epi16::<4>(codes)));
                store_line(&mut levels[4 + half], level(_mm512_srli_epi16::<8>(codes)));
                store_line(&mut levels[6 + half], level(_mm512_srli_epi16::<12>(codes)));
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn table(code: Code) -> __m512i {
        match code {
            Code::Nf4 => load_line(&NF4),
            Code::Fp4 => load_line(&FP4),
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub fn tile<const MR: usize>(
        (code, codes): (Code, &[Line]),
        absmax: &[Line],
        x: &[Line],
        y: [&mut [f32]; MR],
        add: bool,
    ) {
        let table = table(code);
        let mut sums = load_tile(&y, add);
        let blocks = codes.chunks_exact(16).zip(absmax.chunks_exact(2)).zip(x.chunks_exact(2 * MR));
        for ((codes, absmax), x) in blocks {
            let dots = dot_block::<MR>(table, codes, x);
            let absmax = [load_line_ps(&absmax[0]), load_line_ps(&absmax[1])];
            for i in 0..MR {
                sums[i][0] = _mm512_fmadd_ps(dots[i][0], absmax[0], sums[i][0]);
                sums[i][1] = _mm512_fmadd_ps(dots[i][1], absmax[1], sums[i][1]);
            }
        }
        store_tile(y, &sums);
    }

    /// `Σ x · code` over one block of 64 columns.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn dot_block<const MR: usize>(table: __m512i, codes: &[Line], x: &[Line]) -> Dots<MR> {
        let mut dots = [[_mm512_setzero_ps(); 2]; MR];
        for (codes, x) in codes.chunks_exact(8).zip(x.chunks_exact(MR)) {
            for (eight, codes) in codes.chunks_exact(2).enumerate().take(4) {
                if MR == 1 {
                    codes.iter().for_each(|line| prefetch(line, AHEAD));
                }
                let codes = [load_line(&codes[0]), load_line(&codes[1])];
                pair::<0, MR>(&mut dots, table, codes, x, 4 * eight);
                pair::<4, MR>(&mut dots, table, codes, x, 4 * eight + 1);
                pair::<8, MR>(&mut dots, table, codes, x, 4 * eight + 2);
                pair::<12, MR>(&mut dots, table, codes, x, 4 * eight + 3);
            }
        }
        dots
    }

    /// Two columns: the codes `SHIFT` bits up in each half word, times word `p` of each row.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn pair<const SHIFT: u32, const MR: usize>(
        dots: &mut Dots<MR>,
        table: __m512i,
        codes: [__m512i; 2],
        x: &[Line],
        p: usize,
    ) {
        let low = _mm512_permutexvar_epi16(_mm512_srli_epi16::<SHIFT>(codes[0]), table);
        let high = _mm512_permutexvar_epi16(_mm512_srli_epi16::<SHIFT>(codes[1]), table);
        for i in 0..MR {
            let x = as_bf16(_mm512_set1_epi32(x[i].0[p] as i32));
            dots[i][0] = _mm512_dpbf16_ps(dots[i][0], x, as_bf16(low));
            dots[i][1] = _mm512_dpbf16_ps(dots[i][1], x, as_bf16(high));
        }
    }

    static NF4: Line = twice(Code::Nf4.levels());
    static FP4: Line = twice(Code::Fp4.levels());

    /// The sixteen levels in bf16, twice.
    const fn twice(levels: &[f32; 16]) -> Line {
        let (mut words, mut lane) = ([0; 16], 0);
        while lane < 16 {
            let low = half::bf16::from_f32_const(levels[lane * 2 % 16]).to_bits() as u32;
            let high = half::bf16::from_f32_const(levels[lane * 2 % 16 + 1]).to_bits() as u32;
            words[lane] = low | high << 16;
            lane += 1;
        }
        Line(words)
    }
}
