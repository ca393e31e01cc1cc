//! The bf16 tile with AMX: up to 32 rows by 32 columns, in four tiles.
//!
//! Per 32 columns of the reduction two tiles of `x` and two of `W` are read and multiplied by each
//! other: four products of 16 cycles for 64 lines, about what a second-level cache gives.

#![allow(unsafe_code)]

use crate::kernels::amx::{self, PAIR_ROWS, ROWS, Tiles};
use crate::kernels::line::Line;

/// Bytes of a line.
const LINE: usize = size_of::<Line>();

/// Lines of one chunk that are multiplied at once: sixteen pairs of columns.
const PIECE: usize = 32;

/// Lines ahead of the stream that are asked for: 8 KiB.
const AHEAD: usize = 128;

/// Sums of 32 rows by 32 columns, two lines per row.
#[repr(align(64))]
pub(in crate::kernels) struct Sums([[[f32; 16]; 2]; PAIR_ROWS]);

impl Sums {
    pub fn zero() -> Self {
        Self([[[0.0; 16]; 2]; PAIR_ROWS])
    }

    /// What `row_of` holds, up to 32 columns of each row.
    pub fn of<'a>(rows: usize, row_of: &impl Fn(usize) -> &'a mut [f32]) -> Self {
        let mut sums = Self::zero();
        for (i, sums) in sums.0.iter_mut().enumerate().take(rows) {
            let row = row_of(i);
            sums.as_flattened_mut()[..row.len()].copy_from_slice(row);
        }
        sums
    }

    /// Writes the columns that exist.
    pub fn put<'a>(&self, rows: usize, row_of: &impl Fn(usize) -> &'a mut [f32]) {
        for (i, sums) in self.0.iter().enumerate().take(rows) {
            let row = row_of(i);
            row.copy_from_slice(&sums.as_flattened()[..row.len()]);
        }
    }

    pub fn lines(&mut self) -> &mut [[f32; 16]] {
        self.0.as_flattened_mut()
    }
}

/// Multiplies up to 32 rows by one chunk; see [`super::multiply`].
///
/// # Safety
/// The processor must have AMX.
pub(super) unsafe fn tile<'a>(
    w: &[Line],
    x: &[Line],
    rows: usize,
    row_of: impl Fn(usize) -> &'a mut [f32],
    add: bool,
) {
    let mut sums = if add { Sums::of(rows, &row_of) } else { Sums::zero() };
    // SAFETY: by this function's contract.
    unsafe { add_products(w, x, rows, &mut sums) };
    sums.put(rows, &row_of);
}

/// `sums += x · w`.
///
/// # Safety
/// The processor must have AMX.
pub(in crate::kernels) unsafe fn add_products(
    w: &[Line],
    x: &[Line],
    rows: usize,
    sums: &mut Sums,
) {
    let (upper, lower) = (rows.min(ROWS), rows.saturating_sub(ROWS));
    let (pieces, rest) = w.as_chunks::<PIECE>();
    let mut padded = [Line::ZERO; PIECE];
    padded[..rest.len()].copy_from_slice(rest);
    let last = (!rest.is_empty()).then_some(&padded);
    let pieces = pieces.iter().chain(last).zip(x.chunks_exact(rows));
    let below = lower.max(1);
    // SAFETY: by this function's contract.
    let tiles = unsafe {
        let (c, d, b) = ((upper, LINE), (below, LINE), (ROWS, LINE));
        Tiles::shaped([c, c, d, d, c, d, b, b])
    };
    let sums: *mut u8 = sums.0.as_mut_ptr().cast();
    let sum = |half: usize| sums.wrapping_add(half % 2 * LINE + half / 2 * ROWS * 2 * LINE);
    // SAFETY: all rows of the tiles lie within `sums`, a piece, or a piece's rows of `x`.
    unsafe {
        tiles.load::<0>(sum(0), 2 * LINE);
        tiles.load::<1>(sum(1), 2 * LINE);
        if lower == 0 {
            for (w, x) in pieces {
                w.iter().for_each(|line| prefetch(line));
                tiles.load::<6>(amx::bytes(w), 2 * LINE);
                tiles.load::<7>(amx::bytes(&w[1..]), 2 * LINE);
                tiles.load::<4>(amx::bytes(x), LINE);
                tiles.bf16::<0, 4, 6>();
                tiles.bf16::<1, 4, 7>();
            }
        } else {
            tiles.load::<2>(sum(2), 2 * LINE);
            tiles.load::<3>(sum(3), 2 * LINE);
            for (w, x) in pieces {
                tiles.load::<6>(amx::bytes(w), 2 * LINE);
                tiles.load::<7>(amx::bytes(&w[1..]), 2 * LINE);
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

/// Asks for the line [`AHEAD`], which need not exist.
#[inline(always)]
fn prefetch(line: &Line) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a hint, which never faults.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(line).wrapping_add(AHEAD).cast()) };
}
