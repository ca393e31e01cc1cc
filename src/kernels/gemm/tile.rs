//! The register tile: twelve rows by 32 columns with AVX-512, six by sixteen elsewhere.
#![allow(unsafe_code)]

use crate::kernels::cpu::Cpu;
use crate::kernels::lanes::{LANES, Scalar, Simd};
use crate::kernels::output::ask;
use crate::kernels::rows::{RowGroups, asked_for};

/// One product of blocks in memory: `C (rows, columns) = A (rows, k) · B (k, columns)`.
///
/// Element `(i, p)` of `A` lies at `a + i · a_row + p · a_step`, of `B` at `b + p · b_row + j`, of
/// `C` at `c + i · c_row + j`.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    pub a: *const f32,
    pub a_row: usize,
    pub a_step: usize,
    pub b: *const f32,
    pub b_row: usize,
    pub k: usize,
    pub c: *mut f32,
    pub c_row: usize,
    pub rows: usize,
    pub columns: usize,
    /// Whether to start from what `C` holds instead of zero.
    pub add: bool,
}

/// Computes one block.
///
/// # Safety
/// The addresses named by [`Block`] must be readable, those of `C` writable and nobody else's.
pub(crate) unsafe fn multiply(cpu: Cpu, block: &Block) {
    #[cfg(target_arch = "x86_64")]
    {
        use crate::kernels::lanes::{Avx2, Avx512};
        if let Some(s) = Avx512::detected(cpu) {
            // SAFETY: the token proves the features, the caller the addresses.
            return unsafe { wide(s, block) };
        }
        if let Some(s) = Avx2::detected(cpu) {
            // SAFETY: the token proves the features, the caller the addresses.
            return unsafe { narrow(s, block) };
        }
    }
    let _ = cpu;
    // SAFETY: by this function's contract.
    unsafe { tiles(Scalar, block) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
unsafe fn wide(s: crate::kernels::lanes::Avx512, block: &Block) {
    // SAFETY: by the contract of `multiply`.
    unsafe { tiles(s, block) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn narrow(s: crate::kernels::lanes::Avx2, block: &Block) {
    // SAFETY: by the contract of `multiply`.
    unsafe { tiles(s, block) }
}

/// Cuts a block into tiles that fit the registers.
#[inline(always)]
unsafe fn tiles<S: Simd>(s: S, block: &Block) {
    let width = LANES * S::TILE_VECTORS;
    let groups = RowGroups::new(block.rows, S::TILE_ROWS);
    for index in 0..groups.count() {
        if block.add {
            for row in asked_for(index, groups.count()).flat_map(|soon| groups.get(soon)) {
                ask(block.c.wrapping_add(row * block.c_row), block.columns);
            }
        }
        let rows = groups.get(index);
        let mut column = 0;
        while column < block.columns {
            let part = Block {
                a: block.a.wrapping_add(rows.start * block.a_row),
                b: block.b.wrapping_add(column),
                c: block.c.wrapping_add(rows.start * block.c_row + column),
                rows: rows.end - rows.start,
                columns: (block.columns - column).min(width),
                ..*block
            };
            // SAFETY: a tile is part of its block.
            unsafe {
                if S::TILE_VECTORS == 2 && part.columns > LANES {
                    any_rows::<S, 2, false>(s, &part);
                } else if !S::FREE_MASKS && part.columns == LANES {
                    any_rows::<S, 1, true>(s, &part);
                } else {
                    any_rows::<S, 1, false>(s, &part);
                }
            }
            column += width;
        }
    }
}

/// Up to twelve rows where the registers hold them, else up to six. `WHOLE`: all columns of the tile
/// exist.
#[inline(always)]
unsafe fn any_rows<S: Simd, const NV: usize, const WHOLE: bool>(s: S, t: &Block) {
    // SAFETY: by the contract of `multiply`.
    unsafe {
        if S::TILE_ROWS < 12 {
            return few_rows::<S, NV, WHOLE>(s, t);
        }
        match t.rows {
            7 => tile::<S, 7, NV, WHOLE>(s, t),
            8 => tile::<S, 8, NV, WHOLE>(s, t),
            9 => tile::<S, 9, NV, WHOLE>(s, t),
            10 => tile::<S, 10, NV, WHOLE>(s, t),
            11 => tile::<S, 11, NV, WHOLE>(s, t),
            12 => tile::<S, 12, NV, WHOLE>(s, t),
            _ => few_rows::<S, NV, WHOLE>(s, t),
        }
    }
}

#[inline(always)]
unsafe fn few_rows<S: Simd, const NV: usize, const WHOLE: bool>(s: S, t: &Block) {
    // SAFETY: by the contract of `multiply`.
    unsafe {
        match t.rows {
            1 => tile::<S, 1, NV, WHOLE>(s, t),
            2 => tile::<S, 2, NV, WHOLE>(s, t),
            3 => tile::<S, 3, NV, WHOLE>(s, t),
            4 => tile::<S, 4, NV, WHOLE>(s, t),
            5 => tile::<S, 5, NV, WHOLE>(s, t),
            6 => tile::<S, 6, NV, WHOLE>(s, t),
            _ => unreachable!("a tile has one to twelve rows"),
        }
    }
}

/// Bytes ahead of a single row's stream through `B`, about the latency of memory.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 8192;

#[inline(always)]
unsafe fn load<S: Simd, const WHOLE: bool>(s: S, x: *const f32, mask: S::Mask) -> S::V {
    // SAFETY: by the contract of `multiply`, `x` has the lanes of the mask, or all of them.
    unsafe { if WHOLE { s.load(&*x.cast()) } else { s.load_masked(x, mask) } }
}

#[inline(always)]
unsafe fn store<S: Simd, const WHOLE: bool>(s: S, y: *mut f32, v: S::V, mask: S::Mask) {
    // SAFETY: as in `load`.
    unsafe { if WHOLE { s.store(&mut *y.cast(), v) } else { s.store_masked(y, v, mask) } }
}

#[inline(always)]
unsafe fn tile<S: Simd, const MR: usize, const NV: usize, const WHOLE: bool>(s: S, t: &Block) {
    let mut masks = [s.mask(0); NV];
    for v in 0..NV {
        masks[v] = s.mask(t.columns.saturating_sub(v * LANES).min(LANES));
    }
    let mut sums = [[s.splat(0.0); NV]; MR];
    // SAFETY: the masks cover the columns of the tile, and every address is one of its elements.
    unsafe {
        if t.add {
            for i in 0..MR {
                for v in 0..NV {
                    sums[i][v] = load::<S, WHOLE>(s, t.c.add(i * t.c_row + v * LANES), masks[v]);
                }
            }
        }
        let (mut a, mut b) = (t.a, t.b);
        for _ in 0..t.k {
            #[cfg(target_arch = "x86_64")]
            if MR == 1 {
                use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                for v in 0..NV {
                    _mm_prefetch::<_MM_HINT_T0>(b.cast::<i8>().wrapping_add(AHEAD + 64 * v));
                }
            }
            let mut w = [s.splat(0.0); NV];
            for v in 0..NV {
                w[v] = load::<S, WHOLE>(s, b.add(v * LANES), masks[v]);
            }
            for i in 0..MR {
                let x = s.splat(*a.add(i * t.a_row));
                for v in 0..NV {
                    sums[i][v] = s.fma(x, w[v], sums[i][v]);
                }
            }
            a = a.wrapping_add(t.a_step);
            b = b.wrapping_add(t.b_row);
        }
        for i in 0..MR {
            for v in 0..NV {
                store::<S, WHOLE>(s, t.c.add(i * t.c_row + v * LANES), sums[i][v], masks[v]);
            }
        }
    }
}
