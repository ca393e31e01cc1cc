//! The register tile: up to twelve rows by 32 columns, or 32 rows where there are matrix tiles.
#![allow(unsafe_code)]

use std::array;

use super::Chunk;
#[cfg(target_arch = "x86_64")]
use super::amx;
use crate::kernels::cpu::Cpu;
use crate::kernels::line::Line;
use crate::kernels::nf4::fused;

/// Multiplies one row group by one chunk. `row_of(i)` is row `i` of the output tile, at most 32
/// columns; `add` says whether to keep what it holds.
pub(crate) fn multiply<'a>(
    cpu: Cpu,
    w: &Chunk<'_>,
    x: &[Line],
    rows: usize,
    row_of: impl Fn(usize) -> &'a mut [f32],
    add: bool,
) {
    #[cfg(target_arch = "x86_64")]
    if cpu.amx {
        // SAFETY: `amx` says that the tiles were detected and granted.
        return unsafe {
            match *w {
                Chunk::Nf4 { code, codes, absmax } => {
                    let levels = fused::rounded(code);
                    amx::tile_of_codes(levels, (codes, absmax), x, rows, row_of, add)
                }
                Chunk::Levels { levels, absmax } => {
                    amx::scaled_tile((levels, absmax), x, rows, row_of, add)
                }
                Chunk::Bf16(w) => amx::tile(w, x, rows, row_of, add),
            }
        };
    }
    match rows {
        1 => tile::<1>(cpu, w, x, array::from_fn(row_of), add),
        2 => tile::<2>(cpu, w, x, array::from_fn(row_of), add),
        3 => tile::<3>(cpu, w, x, array::from_fn(row_of), add),
        4 => tile::<4>(cpu, w, x, array::from_fn(row_of), add),
        5 => tile::<5>(cpu, w, x, array::from_fn(row_of), add),
        6 => tile::<6>(cpu, w, x, array::from_fn(row_of), add),
        7 => tile::<7>(cpu, w, x, array::from_fn(row_of), add),
        8 => tile::<8>(cpu, w, x, array::from_fn(row_of), add),
        9 => tile::<9>(cpu, w, x, array::from_fn(row_of), add),
        10 => tile::<10>(cpu, w, x, array::from_fn(row_of), add),
        11 => tile::<11>(cpu, w, x, array::from_fn(row_of), add),
        12 => tile::<12>(cpu, w, x, array::from_fn(row_of), add),
        _ => unreachable!("a group has one to twelve rows"),
    }
}

fn tile<const MR: usize>(cpu: Cpu, w: &Chunk<'_>, x: &[Line], y: [&mut [f32]; MR], add: bool) {
    match *w {
        Chunk::Nf4 { code, codes, absmax } => {
            fused::tile(cpu, (code, codes), absmax, x, y, add);
        }
        Chunk::Levels { .. } => unreachable!("levels are for matrix tiles"),
        Chunk::Bf16(w) => bf16_tile(cpu, w, x, y, add),
    }
}

fn bf16_tile<const MR: usize>(cpu: Cpu, w: &[Line], x: &[Line], y: [&mut [f32]; MR], add: bool) {
    #[cfg(target_arch = "x86_64")]
    if cpu.bf16 {
        // SAFETY: `bf16` says that AVX-512 F and BF16 were detected.
        return unsafe { avx512::tile(w, x, y, add) };
    } else if cpu.avx2 {
        // SAFETY: `avx2` says that AVX2 and FMA were detected.
        return unsafe { super::avx2::tile(w, x, y, add) };
    }
    let _ = cpu;
    scalar::tile(w, x, y, add);
}

mod scalar {
    use super::*;

    /// The specification: exact products of bf16 values, summed in `f32` along `k`.
    pub fn tile<const MR: usize>(w: &[Line], x: &[Line], mut y: [&mut [f32]; MR], add: bool) {
        for (i, y) in y.iter_mut().enumerate() {
            for (column, y) in y.iter_mut().enumerate() {
                let mut sum = if add { *y } else { 0.0 };
                for (p, pair) in w.chunks_exact(2).enumerate() {
                    let (x, w) = (&x[p / 16 * MR + i], &pair[column / 16]);
                    for half in 0..2 {
                        sum += x.bf16(p % 16, half) * w.bf16(column % 16, half);
                    }
                }
                *y = sum;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::*;
    use crate::kernels::simd::{as_bf16, load_line, load_tile, prefetch, store_tile};
    use std::arch::x86_64::*;

    /// Lines ahead of the stream: 8 KiB.
    const AHEAD: usize = 128;

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn tile<const MR: usize>(w: &[Line], x: &[Line], y: [&mut [f32]; MR], add: bool) {
        let mut sums = load_tile(&y, add);
        for (w, x) in w.chunks(32).zip(x.chunks_exact(MR)) {
            for (p, pair) in w.chunks_exact(2).enumerate().take(16) {
                pair.iter().for_each(|line| prefetch(line, AHEAD));
                let low = as_bf16(load_line(&pair[0]));
                let high = as_bf16(load_line(&pair[1]));
                for i in 0..MR {
                    let x = as_bf16(_mm512_set1_epi32(x[i].0[p] as i32));
                    sums[i][0] = _mm512_dpbf16_ps(sums[i][0], x, low);
                    sums[i][1] = _mm512_dpbf16_ps(sums[i][1], x, high);
                }
            }
        }
        store_tile(y, &sums);
    }
}
