//! The bf16 tile with AMX: up to 32 rows by 32 columns, in four tiles.
//!
//! Per 32 columns of the reduction two tiles of `x` and two of `W` are read and multiplied by each
//! other: four products of 16 cycles for 64 lines, about what a second-level cache gives.
#![allow(unsafe_code)]

mod few;
mod sums;

use std::arch::x86_64::*;
use std::array;

use crate::kernels::amx::{self, PAIR_ROWS, ROWS, Tiles};
use crate::kernels::line::Line;
use crate::kernels::simd::{load_line_ps, load_ps, prefetch, store_ps};
use few::{few_rows, few_rows_of_codes};
use sums::Sums;

/// Bytes of a line.
const LINE: usize = size_of::<Line>();

/// Lines of one chunk that are multiplied at once: sixteen pairs of columns.
const PIECE: usize = 32;

/// Lines ahead of the stream that are asked for: 8 KiB.
const AHEAD: usize = 128;

/// Rows that are multiplied without tiles.
pub(super) const FEW_ROWS: usize = 4;

/// Multiplies up to 32 rows by one chunk; see [`super::multiply`].
///
/// # Safety
/// The processor must have AMX and AVX-512 F.
pub(super) unsafe fn tile<'a>(
    w: &[Line],
    x: &[Line],
    rows: usize,
    row_of: impl Fn(usize) -> &'a mut [f32],
    add: bool,
) {
    // SAFETY: by this function's contract; the rows were written if `add`, and then in any case.
    unsafe {
        match rows {
            1 => few_rows::<1>(w, x, array::from_fn(row_of), add),
            2 => few_rows::<2>(w, x, array::from_fn(row_of), add),
            3 => few_rows::<3>(w, x, array::from_fn(row_of), add),
            4 => few_rows::<FEW_ROWS>(w, x, array::from_fn(row_of), add),
            _ => {
                let mut sums = match add {
                    true => Sums::start(rows, &row_of, true),
                    false => Sums::unset(rows, &row_of),
                };
                multiply(&shaped(rows), w, x, rows, add, &mut sums);
                sums.put(rows, &row_of);
            }
        }
    }
}

/// [`tile`] where every 64 columns have a factor per output, `scales`, for their sums.
///
/// A load that follows a tile's store waits until the store has left the core, so each block is
/// scaled after the next is multiplied.
///
/// # Safety
/// The processor must have AMX and AVX-512 F.
pub(super) unsafe fn scaled_tile<'a>(
    (w, scales): (&[Line], &[Line]),
    x: &[Line],
    rows: usize,
    row_of: impl Fn(usize) -> &'a mut [f32],
    add: bool,
) {
    // SAFETY: by this function's contract.
    let tiles = unsafe { shaped(rows) };
    // SAFETY: by this function's contract.
    let mut sums = unsafe { Sums::start(rows, &row_of, add) };
    let (mut dots, mut before) = ([Sums::new(), Sums::new()], None);
    let blocks = w.as_chunks::<{ 2 * PIECE }>().0.iter().zip(x.chunks_exact(2 * rows));
    for (i, ((w, x), scales)) in blocks.zip(scales.as_chunks().0).enumerate() {
        // SAFETY: by this function's contract.
        unsafe { multiply(&tiles, w, x, rows, false, &mut dots[i % 2]) };
        if let Some((dots_at, scales)) = before.replace((i % 2, scales)) {
            // SAFETY: by this function's contract; the rows were multiplied.
            unsafe { add_scaled(&dots[dots_at], scales, rows, &mut sums) };
        }
    }
    if let Some((dots_at, scales)) = before {
        // SAFETY: by this function's contract; the rows were multiplied.
        unsafe { add_scaled(&dots[dots_at], scales, rows, &mut sums) };
    }
    // SAFETY: the rows have a start.
    unsafe { sums.put(rows, &row_of) };
}

/// [`scaled_tile`] for a few rows, of codes instead of what they stand for.
///
/// # Safety
/// The processor must have AVX-512 F.
pub(super) unsafe fn tile_of_codes<'a>(
    levels: &[f32; 16],
    codes: (&[Line], &[Line]),
    x: &[Line],
    rows: usize,
    row_of: impl Fn(usize) -> &'a mut [f32],
    add: bool,
) {
    // SAFETY: by this function's contract.
    unsafe {
        match rows {
            1 => few_rows_of_codes::<1>(levels, codes, x, array::from_fn(row_of), add),
            2 => few_rows_of_codes::<2>(levels, codes, x, array::from_fn(row_of), add),
            3 => few_rows_of_codes::<3>(levels, codes, x, array::from_fn(row_of), add),
            4 => few_rows_of_codes::<FEW_ROWS>(levels, codes, x, array::from_fn(row_of), add),
            _ => unreachable!("for more rows, codes are looked up once"),
        }
    }
}

/// `sums += dots · scales`.
///
/// # Safety
/// The rows of both must have been written.
#[target_feature(enable = "avx512f")]
unsafe fn add_scaled(dots: &Sums, scales: &[Line; 2], rows: usize, sums: &mut Sums) {
    let scales = [load_line_ps(&scales[0]), load_line_ps(&scales[1])];
    for i in 0..rows {
        // SAFETY: by this function's contract.
        let (dots, sums) = unsafe { (dots.row(i), sums.row_mut(i).assume_init_mut()) };
        for half in 0..2 {
            let sum = _mm512_fmadd_ps(load_ps(&dots[half]), scales[half], load_ps(&sums[half]));
            store_ps(&mut sums[half], sum);
        }
    }
}

/// Tiles for the sums of the upper rows and of the lower ones, for both parts of `x`, and two for `W`.
///
/// # Safety
/// The processor must have AMX.
unsafe fn shaped(rows: usize) -> Tiles {
    let (upper, lower) = amx::halves(rows);
    let (c, d, b) = ((upper, 64), (lower, 64), (16, 64));
    // SAFETY: by this function's contract.
    unsafe { Tiles::shaped([c, c, d, d, c, d, b, b]) }
}

/// `sums = x · w`, or `sums += x · w` if `add`: then they must have been written.
#[target_feature(enable = "avx512f")]
fn multiply(tiles: &Tiles, w: &[Line], x: &[Line], rows: usize, add: bool, sums: &mut Sums) {
    assert!(rows <= PAIR_ROWS, "tiles hold 32 rows");
    let (pieces, rest) = w.as_chunks::<PIECE>();
    let last = (!rest.is_empty()).then(|| padded(rest));
    let pieces = pieces.iter().chain(&last).zip(x.chunks_exact(rows));
    let sums: *mut u8 = sums.as_mut_ptr();
    let sum = |i: usize| sums.wrapping_add(i % 2 * LINE + i / 2 * ROWS * 2 * LINE);
    // SAFETY: all rows of the tiles lie within `sums`, a piece, or a piece's rows of `x`.
    unsafe {
        start::<0>(tiles, add, sum(0));
        start::<1>(tiles, add, sum(1));
        if rows <= ROWS {
            for (w, x) in pieces {
                w.iter().for_each(|line| prefetch(line, AHEAD));
                load_weights(tiles, w);
                tiles.load::<4>(amx::bytes(x), LINE);
                tiles.bf16::<0, 4, 6>();
                tiles.bf16::<1, 4, 7>();
            }
        } else {
            start::<2>(tiles, add, sum(2));
            start::<3>(tiles, add, sum(3));
            for (w, x) in pieces {
                load_weights(tiles, w);
                tiles.load::<4>(amx::bytes(x), LINE);
                tiles.load::<5>(amx::bytes(&x[ROWS..]), LINE);
                tiles.bf16::<0, 4, 6>();
                tiles.bf16::<1, 4, 7>();
                tiles.bf16::<2, 5, 6>();
                tiles.bf16::<3, 5, 7>();
            }
            tiles.store::<2>(sum(2), 2 * LINE);
            tiles.store::<3>(sum(3), 2 * LINE);
        }
        tiles.store::<0>(sum(0), 2 * LINE);
        tiles.store::<1>(sum(1), 2 * LINE);
    }
}

/// A piece of these lines and zeros.
fn padded(lines: &[Line]) -> [Line; PIECE] {
    let mut padded = [Line::ZERO; PIECE];
    padded[..lines.len()].copy_from_slice(lines);
    padded
}

/// Zeros in tile `T`, or what lies at `sum` if `add`.
///
/// # Safety
/// Its rows, two lines each, must be readable.
#[inline(always)]
unsafe fn start<const T: u8>(tiles: &Tiles, add: bool, sum: *const u8) {
    if !add {
        return tiles.zero::<T>();
    }
    // SAFETY: by this function's contract.
    unsafe { tiles.load::<T>(sum, 2 * LINE) };
}

/// Both halves of the outputs.
#[inline(always)]
fn load_weights(tiles: &Tiles, w: &[Line; PIECE]) {
    // SAFETY: sixteen lines each, every second one of the piece.
    unsafe {
        tiles.load::<6>(amx::bytes(w), 2 * LINE);
        tiles.load::<7>(amx::bytes(&w[1..]), 2 * LINE);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Bf16Rows, PackedBf16, matmul};
    use crate::kernels::cpu::Cpu;
    use crate::kernels::line;
    use crate::kernels::nf4::{self, Code, PackedNf4};
    use crate::kernels::output::Output;
    use crate::kernels::pool::Pool;
    use crate::kernels::testing::Seeded;

    /// What `product` makes of `x`, added to ones.
    fn added(m: usize, n: usize, product: impl Fn(&Pool, &Output<'_>)) -> Vec<f32> {
        let mut y = vec![1.0; m * n];
        product(&Pool::new(2), &Output::new(&mut y, n, 0).adding(true));
        y
    }

    #[test]
    fn a_row_has_the_bits_it_has_alone_among_few_and_among_many() {
        let (n, k, cpu, pool) = (70, 2240, Cpu::detect(), Pool::new(2));
        let (x, w) = (Seeded(1).values(75 * k), Seeded(2).values(n * k));
        let dense = PackedBf16::pack(&pool, (&w).into(), (n, k), line::zeroed);
        let nf4 = PackedNf4::quantize(&pool, (&w).into(), (n, k), Code::Nf4, true);
        let products = |x: &[f32]| {
            let (m, mut rows) = (x.len() / k, Bf16Rows::new());
            rows.pack(cpu, &pool, x, (m, k), (k, 0));
            let dense = added(m, n, |pool, y| matmul(cpu, pool, &rows, &dense, y));
            let nf4 = added(m, n, |pool, y| nf4::matmuls(cpu, pool, &rows, &[(&nf4, y)]));
            [dense, nf4]
        };
        let all = products(&x);
        for (first, rows) in [(0, 1), (7, 2), (31, 3), (40, 4), (41, 5), (20, 17), (30, 33)] {
            let some = products(&x[first * k..(first + rows) * k]);
            for (some, all) in some.iter().zip(&all) {
                assert_eq!(some[..], all[first * n..(first + rows) * n], "{rows} rows");
            }
        }
    }

    #[test]
    fn tiles_multiply_as_registers_do() {
        let pool = Pool::new(2);
        for (m, n, k) in [(1, 33, 70), (5, 16, 32), (16, 40, 64), (33, 65, 2100), (40, 32, 31)] {
            let (x, w) = (Seeded(3).values(m * k), Seeded(4).values(n * k));
            let dense = PackedBf16::pack(&pool, (&w).into(), (n, k), line::zeroed);
            let product = |cpu| {
                let mut rows = Bf16Rows::new();
                rows.pack(cpu, &pool, &x, (m, k), (k, 0));
                added(m, n, |pool, y| matmul(cpu, pool, &rows, &dense, y))
            };
            let (tiles, registers) = (product(Cpu::detect()), product(Cpu::without_tiles()));
            for (tiles, registers) in tiles.iter().zip(&registers) {
                assert!((tiles - registers).abs() < 1e-4, "{m} {n} {k}: {tiles}, {registers}");
            }
        }
    }
}
