//! The integer kernel with AMX: up to 32 rows by 16 columns, four blocks at a time.
//!
//! Each block is unpacked once for all rows and multiplied in two tiles; what they hold is then
//! scaled row by row. Per row and block that takes a conversion, a product and a fused
//! multiply-add, half of what the eight `vpdpbusd` beside them would; they are the limit here.
//! Sums are exact and added in the order of the other kernels, so the bits are theirs.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::{IntegerWeight, TILE};
use crate::kernels::activations::Q8Block;
use crate::kernels::amx::{self, PAIR_ROWS, ROWS, Tiles};
use crate::kernels::line::Line;
use crate::kernels::simd::{load_line, load_line_ps, load_ps, store_line, store_ps};

/// Blocks whose dots wait to be scaled: 8 KiB.
const BATCH: usize = 4;

/// Bytes of a line.
const LINE: usize = size_of::<Line>();

/// One block of sixteen rows of `W`, ready for a tile.
#[derive(Clone, Copy)]
pub struct Unpacked {
    /// Four signed bytes of a row per word.
    pub codes: [Line; 8],
    /// What one step of a code is worth.
    pub scale: Line,
    /// What is taken off every weight, if [`IntegerWeight::HAS_MINIMA`].
    pub min: Line,
}

impl Unpacked {
    const ZERO: Self = Self { codes: [Line::ZERO; 8], scale: Line::ZERO, min: Line::ZERO };
}

/// Exact sums, a line of sixteen columns per row, of each block of a batch.
type Dots = [[Line; PAIR_ROWS]; BATCH];

/// Multiplies up to 32 rows by some blocks of one tile; see [`super::multiply`].
///
/// # Safety
/// The processor must have AMX, and AVX-512 F, BW and VL.
pub unsafe fn tile<'a, W: IntegerWeight>(
    w: W::Chunk<'_>,
    x: &[Q8Block],
    rows: usize,
    row_of: impl Fn(usize) -> &'a mut [f32],
    add: bool,
) {
    let mut sums = [[0.0; TILE]; PAIR_ROWS];
    if add {
        for (i, sums) in sums.iter_mut().enumerate().take(rows) {
            let row = row_of(i);
            sums[..row.len()].copy_from_slice(row);
        }
    }
    let (mut batch, mut dots) = ([Unpacked::ZERO; BATCH], [[Line::ZERO; PAIR_ROWS]; BATCH]);
    // SAFETY: by this function's contract.
    let tiles = unsafe { shaped(rows) };
    for (i, x) in x.chunks(BATCH * rows).enumerate() {
        let batch = &mut batch[..x.len() / rows];
        W::unpack(w, i * BATCH, batch);
        multiply(&tiles, batch, x, rows, &mut dots);
        // SAFETY: by this function's contract.
        unsafe { add_scaled::<W>(batch, x, rows, &dots, &mut sums) };
    }
    for (i, sums) in sums.iter().enumerate().take(rows) {
        let row = row_of(i);
        row.copy_from_slice(&sums[..row.len()]);
    }
}

/// Tiles for the sums of both halves of the rows, twice, then for the rows, then for two blocks.
///
/// # Safety
/// The processor must have AMX.
unsafe fn shaped(rows: usize) -> Tiles {
    let (upper, lower) = (rows.min(ROWS), rows.saturating_sub(ROWS).max(1));
    let (c, d, b) = ((upper, LINE), (lower, LINE), (8, LINE));
    // SAFETY: by this function's contract.
    unsafe { Tiles::shaped([c, d, c, d, (upper, LINE / 2), (lower, LINE / 2), b, b]) }
}

/// `dots = x · W` of each block of a batch; blocks take turns in their tiles.
fn multiply(tiles: &Tiles, batch: &[Unpacked], x: &[Q8Block], rows: usize, dots: &mut Dots) {
    for (i, (w, x)) in batch.iter().zip(x.chunks_exact(rows)).enumerate() {
        match i % 2 {
            0 => block::<0, 1, 6>(tiles, w, x, &mut dots[i]),
            _ => block::<2, 3, 7>(tiles, w, x, &mut dots[i]),
        }
    }
}

#[inline(always)]
fn block<const UPPER: u8, const LOWER: u8, const B: u8>(
    tiles: &Tiles,
    w: &Unpacked,
    x: &[Q8Block],
    dots: &mut [Line; PAIR_ROWS],
) {
    const ROW: usize = size_of::<Q8Block>();
    let to: *mut u8 = dots.as_mut_ptr().cast();
    // SAFETY: the tiles have a row per row of `x`, 32 bytes of its words, eight rows for the lines of
    // `w` and a row per line of `dots`.
    unsafe {
        tiles.load::<B>(amx::bytes(&w.codes), LINE);
        tiles.load::<4>(x.as_ptr().cast(), ROW);
        tiles.zero::<UPPER>();
        tiles.int8::<UPPER, 4, B>();
        if x.len() > ROWS {
            tiles.load::<5>(x[ROWS..].as_ptr().cast(), ROW);
            tiles.zero::<LOWER>();
            tiles.int8::<LOWER, 5, B>();
            tiles.store::<LOWER>(to.wrapping_add(ROWS * LINE), LINE);
        }
        tiles.store::<UPPER>(to, LINE);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn add_scaled<W: IntegerWeight>(
    batch: &[Unpacked],
    x: &[Q8Block],
    rows: usize,
    dots: &Dots,
    sums: &mut [[f32; TILE]; PAIR_ROWS],
) {
    match batch.len() {
        1 => add_blocks::<W, 1>(batch, x, rows, dots, sums),
        2 => add_blocks::<W, 2>(batch, x, rows, dots, sums),
        3 => add_blocks::<W, 3>(batch, x, rows, dots, sums),
        _ => add_blocks::<W, BATCH>(batch, x, rows, dots, sums),
    }
}

/// `sums += x_scale · (scale · dot − min · Σ q_x)` over `N` blocks, in the order of the other kernels.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn add_blocks<W: IntegerWeight, const N: usize>(
    batch: &[Unpacked],
    x: &[Q8Block],
    rows: usize,
    dots: &Dots,
    sums: &mut [[f32; TILE]; PAIR_ROWS],
) {
    let mut scales = [(_mm512_setzero_ps(), _mm512_setzero_ps()); N];
    for (scales, w) in scales.iter_mut().zip(batch) {
        *scales = (load_line_ps(&w.scale), load_line_ps(&w.min));
    }
    for (i, sums) in sums.iter_mut().enumerate().take(rows) {
        let mut sum = load_ps(sums);
        for j in 0..N {
            let (x, (scale, min)) = (&x[j * rows + i], scales[j]);
            let dot = _mm512_cvtepi32_ps(load_line(&dots[j][i]));
            let scale = _mm512_mul_ps(scale, _mm512_set1_ps(x.scale));
            sum = _mm512_fmadd_ps(dot, scale, sum);
            if W::HAS_MINIMA {
                sum = _mm512_fmadd_ps(min, _mm512_set1_ps(x.offset), sum);
            }
        }
        store_ps(sums, sum);
    }
}

/// Writes eight registers of signed bytes.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn put(codes: [__m512i; 8], to: &mut [Line; 8]) {
    for (to, codes) in to.iter_mut().zip(codes) {
        store_line(to, codes);
    }
}
