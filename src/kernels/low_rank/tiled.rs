//! `h = scale · x Aᵀ` with matrix tiles: up to 32 rows by sixteen ranks.
#![allow(unsafe_code)]

use std::ops::Range;

use super::RANKS_PER_LINE;
use super::factor::Source;
use crate::kernels::amx::{self, PAIR_ROWS, ROWS, Session, Tiles};
use crate::kernels::bf16::{Bf16Rows, round};
use crate::kernels::cpu::Cpu;
use crate::kernels::line::Line;
use crate::kernels::pool::Pool;
use crate::kernels::rows::{RowGroups, pieces};
use crate::kernels::simd::prefetch;

/// Ranks of one product: the columns of a tile.
const RANKS: usize = 16;

/// Lines ahead of the stream of `A`: 4 KiB.
const AHEAD: usize = 64;

/// `A (r, k)` in groups of up to sixteen ranks; the lines of a block of 32 columns hold its pairs one
/// after the other, each with a word per rank.
pub fn pack(cpu: Cpu, pool: &Pool, a: &[f32], (r, k): (usize, usize)) -> Bf16Rows {
    let mut rows = Bf16Rows::new();
    rows.pack_groups(cpu, pool, a, (r, k), (k, 0), pieces(0..r, RANKS_PER_LINE).flat_map(groups));
    rows.turn_blocks();
    rows
}

/// The groups of the ranks of one line of `h`.
fn groups(ranks: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let groups = RowGroups::new(ranks.len(), RANKS).iter();
    groups.map(move |group| ranks.start + group.start..ranks.start + group.end)
}

/// One line of `h` for each row of `x`: the ranks `ranks`.
pub(super) fn down(
    cpu: Cpu,
    source: &Source<'_>,
    ranks: Range<usize>,
    scale: f32,
    x: &[Line],
    h: &mut [Line],
) {
    assert!(cpu.amx, "there must be tiles");
    let _session = Session::new();
    let mut sums = [[0.0; RANKS_PER_LINE]; PAIR_ROWS];
    for group in groups(ranks.clone()) {
        let mut dots = [[0.0; RANKS]; PAIR_ROWS];
        source.a(&group).with(cpu, |a| {
            // SAFETY: `amx` says that the tiles were detected and granted.
            unsafe { multiply(a, group.len(), x, h.len(), &mut dots) };
        });
        let at = group.start - ranks.start;
        for (sums, dots) in sums.iter_mut().zip(&dots).take(h.len()) {
            for (sum, dot) in sums[at..].iter_mut().zip(&dots[..group.len()]) {
                *sum = dot * scale;
            }
        }
    }
    for (h, sums) in h.iter_mut().zip(&sums) {
        *h = round(cpu, sums);
    }
}

/// `dots = x · aᵀ` for up to sixteen ranks.
///
/// # Safety
/// The processor must have AMX and AVX-512 F.
#[target_feature(enable = "avx512f")]
unsafe fn multiply(
    a: &[Line],
    ranks: usize,
    x: &[Line],
    rows: usize,
    dots: &mut [[f32; RANKS]; PAIR_ROWS],
) {
    const LINE: usize = size_of::<Line>();
    assert!(rows <= PAIR_ROWS, "tiles hold 32 rows");
    let ((upper, lower), words) = (amx::halves(rows), 4 * ranks as u8);
    let (c, d, b) = ((upper, words), (lower, words), (16, words));
    // SAFETY: by this function's contract.
    let tiles = unsafe { Tiles::shaped([c, d, (upper, 64), (lower, 64), b, b, b, b]) };
    let to: *mut u8 = dots.as_mut_ptr().cast();
    tiles.zero::<0>();
    tiles.zero::<1>();
    // SAFETY: a block has a line of `x` per row and a line of `a` per rank, which are sixteen rows of
    // words; `dots` has 32 rows of a line.
    unsafe {
        for (x, a) in x.chunks_exact(rows).zip(a.chunks_exact(ranks)) {
            a.iter().for_each(|line| prefetch(line, AHEAD));
            tiles.load::<4>(amx::bytes(a), 4 * ranks);
            tiles.load::<2>(amx::bytes(x), LINE);
            tiles.bf16::<0, 2, 4>();
            if rows > ROWS {
                tiles.load::<3>(amx::bytes(&x[ROWS..]), LINE);
                tiles.bf16::<1, 3, 4>();
            }
        }
        tiles.store::<0>(to, LINE);
        if rows > ROWS {
            tiles.store::<1>(to.wrapping_add(ROWS * LINE), LINE);
        }
    }
}
