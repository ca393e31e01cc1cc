//! Integer products: weights of 4 or 8 bits times int8 activations.
//!
//! One generic type serves both widths, and one layout serves a single row (decode, limited by
//! memory) and many rows (prefill, limited by arithmetic). [`crate::kernels::q4`] and [`crate::kernels::q8`] say how
//! each width is filled; the kernels are in `scalar`, `avx2` and `avx512`, and in `tiles` for
//! more than 32 rows where there are matrix tiles.
//!
//! `y[i, r] = Σ over stretches s: x_scale[i, s] · Σ over their blocks b: w_scale[r, b] · Σ q_x · q_w`, where
//! the innermost sum is exact. All versions add blocks and stretches in the same order with fused
//! multiply-adds, so their results are equal bit for bit.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
mod packed;
mod scalar;
#[cfg(target_arch = "x86_64")]
pub(super) mod spread;
#[cfg(target_arch = "x86_64")]
mod tiles;

use std::array;
use std::ops::Range;

use crate::kernels::activations::{BLOCK, Q8Block, Q8Rows};
use crate::kernels::cpu::Cpu;
use crate::kernels::line::Line;
use crate::kernels::output::Output;
use crate::kernels::pool::Pool;
use crate::kernels::rows::{asked_for, piece, pieces};
pub(crate) use packed::LaneBlock;
pub use packed::PackedQ;

/// Weight rows per tile: the lanes of one register.
pub const TILE: usize = 16;

/// Blocks per pass, 6144 columns: outputs on their way in and out cost more than activations of eight
/// rows that come from the second-level cache. With 64 blocks a product over 5632 columns was 7 % slower.
const BLOCKS_PER_PASS: usize = 192;

/// Rows that are multiplied in a single pass along `k`.
const STREAMED_ROWS: usize = 16;

/// Tiles per work item, at most.
const TILES_PER_ITEM: usize = 8;

/// Row groups per work item: 16 × 8 rows × 2048 columns are 352 KiB, a third of a 1 MiB L2.
const GROUPS_PER_ITEM: usize = 16;

/// Row groups up to which memory is what limits a tile, so that the next is asked for meanwhile.
const GROUPS_THAT_ASK: usize = 4;

/// A weight that int8 activations are multiplied with, sixteen rows by some blocks at a time.
pub trait IntegerWeight: Sync {
    /// Some blocks of sixteen rows.
    type Chunk<'a>: Copy
    where
        Self: 'a;

    /// Blocks whose activations share a scale.
    const STRETCH: usize;

    /// Whether a block of a row adds something per unit of its activations' offset.
    const HAS_MINS: bool;

    /// Lines of codes per block of sixteen rows.
    const LINES: usize;

    /// `(n, k)`.
    fn shape(&self) -> (usize, usize);

    /// The blocks `blocks` of 32 columns, starting and ending at a multiple of eight or at the end.
    fn chunk(&self, tile: usize, blocks: &Range<usize>) -> Self::Chunk<'_>;

    /// The codes of [`IntegerWeight::chunk`].
    fn codes(&self, tile: usize, blocks: &Range<usize>) -> &[Line];

    /// One register tile: `MR` rows by 16 columns, added to `y` if `add`. With the weight come codes that
    /// are needed next and may be asked for meanwhile.
    fn tile<const MR: usize>(
        cpu: Cpu,
        w: (Self::Chunk<'_>, &[Line]),
        x: &[Q8Block],
        y: [&mut [f32]; MR],
        add: bool,
    );

    /// Writes the blocks of `w` as matrix tiles multiply them.
    #[cfg(target_arch = "x86_64")]
    fn spread(w: Self::Chunk<'_>, to: &mut spread::Spread<'_>);
}

/// `y = x · Wᵀ`. Shapes: `x (m, k)`, `W (n, k)`, `y (m, n)`.
///
/// # Panics
/// If the shapes do not fit.
pub fn matmul<W: IntegerWeight>(cpu: Cpu, pool: &Pool, x: &Q8Rows, w: &W, y: &Output<'_>) {
    matmuls(cpu, pool, x, &[(w, y)]);
}

/// [`matmul`] with several weights of one input, in one region: `(W, y)` of each.
///
/// # Panics
/// If the shapes do not fit.
pub fn matmuls<W: IntegerWeight>(cpu: Cpu, pool: &Pool, x: &Q8Rows, parts: &[(&W, &Output<'_>)]) {
    let tiles_of = |w: &W| w.shape().0.div_ceil(TILE);
    let (all, groups) = (parts.iter().map(|(w, _)| tiles_of(w)).sum(), x.groups().count());
    let grain = pool.grain(all, TILES_PER_ITEM);
    let share = groups_per_item(x);
    let counts = parts.iter().map(|(w, y)| {
        let (n, k) = w.shape();
        assert_eq!(x.k(), k, "x and W must agree on k");
        assert_eq!(x.stretch(), W::STRETCH, "x must be quantised for W");
        y.check(x.rows(), n);
        tiles_of(w).div_ceil(grain) * groups.div_ceil(share)
    });
    pool.run_all(&counts.collect::<Vec<_>>(), &|part, item| {
        let (w, y) = parts[part];
        let columns = tiles_of(w).div_ceil(grain);
        let tiles = piece(tiles_of(w), grain, item % columns);
        let groups = piece(groups, share, item / columns);
        // SAFETY: items of one part differ in their tiles or in their row groups, and parts write
        // to columns of their own, so no two share outputs; rows are tiled only where there is AMX.
        unsafe {
            match x.tiled() {
                #[cfg(target_arch = "x86_64")]
                true => tiles::work_item(x, w, tiles, groups, y),
                _ => work_item(cpu, x, w, tiles, groups, y),
            }
        };
    });
}

/// Row groups per work item, at most.
fn groups_per_item(x: &Q8Rows) -> usize {
    #[cfg(target_arch = "x86_64")]
    if x.tiled() {
        return tiles::groups_per_item(x);
    }
    GROUPS_PER_ITEM
}

/// Fills the outputs of `tiles` × `groups`.
///
/// # Safety
/// No other thread may touch those outputs meanwhile.
unsafe fn work_item<W: IntegerWeight>(
    cpu: Cpu,
    x: &Q8Rows,
    w: &W,
    tiles: Range<usize>,
    groups: Range<usize>,
    y: &Output<'_>,
) {
    let (n, k) = w.shape();
    // A few rows stay near whatever their length, and the weight streams best in one run.
    let per_pass = if x.rows() <= STREAMED_ROWS { k / BLOCK } else { BLOCKS_PER_PASS };
    let rows: [Range<usize>; GROUPS_PER_ITEM] = array::from_fn(|i| match groups.start + i {
        group if group < groups.end => x.groups().get(group),
        _ => 0..0,
    });
    let rows = &rows[..groups.len()];
    for blocks in pieces(0..k / BLOCK, per_pass.max(1)) {
        for tile in tiles.clone() {
            let weights = w.chunk(tile, &blocks);
            // The first group streams the weight; while later ones find it near, memory would rest.
            let next = match rows.len() {
                ..=GROUPS_THAT_ASK => next_tile(w, tile, &blocks),
                _ => &[],
            };
            let mut shares = next.chunks(next.len().div_ceil(rows.len()).max(1));
            let columns = tile * TILE..n.min((tile + 1) * TILE);
            for (i, group) in rows.iter().enumerate() {
                for soon in &rows[asked_for(i, rows.len())] {
                    y.ask(soon.clone(), columns.clone());
                }
                let weights = (weights, shares.next().unwrap_or_default());
                let row_of = |i: usize| {
                    // SAFETY: by this function's contract, and each row is taken once.
                    unsafe { y.row(group.start + i, columns.clone()) }
                };
                let add = y.add || blocks.start > 0;
                multiply::<W>(cpu, weights, x.chunk(group, &blocks), group.len(), row_of, add);
            }
        }
    }
}

/// The codes of the tile after `tile`, if there is one.
fn next_tile<'a, W: IntegerWeight>(w: &'a W, tile: usize, blocks: &Range<usize>) -> &'a [Line] {
    match (tile + 1) * TILE < w.shape().0 {
        true => w.codes(tile + 1, blocks),
        false => &[],
    }
}

/// Picks the kernel for this many rows. `row_of(i)` is row `i` of the output tile; `add` says
/// whether it already holds the blocks before these.
fn multiply<'a, W: IntegerWeight>(
    cpu: Cpu,
    w: (W::Chunk<'_>, &[Line]),
    x: &[Q8Block],
    rows: usize,
    row_of: impl Fn(usize) -> &'a mut [f32],
    add: bool,
) {
    match rows {
        1 => W::tile::<1>(cpu, w, x, array::from_fn(row_of), add),
        2 => W::tile::<2>(cpu, w, x, array::from_fn(row_of), add),
        3 => W::tile::<3>(cpu, w, x, array::from_fn(row_of), add),
        4 => W::tile::<4>(cpu, w, x, array::from_fn(row_of), add),
        5 => W::tile::<5>(cpu, w, x, array::from_fn(row_of), add),
        6 => W::tile::<6>(cpu, w, x, array::from_fn(row_of), add),
        7 => W::tile::<7>(cpu, w, x, array::from_fn(row_of), add),
        8 => W::tile::<8>(cpu, w, x, array::from_fn(row_of), add),
        _ => unreachable!("a group has one to eight rows"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{Seeded, check_products};

    #[test]
    fn every_instruction_set_and_thread_count_gives_the_same_bits() {
        let (pool, weights) = (Pool::new(2), Seeded(8).values(37 * 96));
        let eight = PackedQ::<8>::quantize(&pool, (&weights).into(), 37, 96);
        let four = PackedQ::<4>::quantize(&pool, (&weights).into(), 37, 96);
        for m in [1, 2, 5, 8, 9, 17, 33, 75] {
            check_products(&eight, |row, column| eight.weight(row, column), m);
            check_products(&four, |row, column| four.weight(row, column), m);
        }
    }

    #[test]
    fn a_last_stretch_may_be_short() {
        // Eleven blocks, of which three share a scale of their own.
        let (n, k) = (20, 352);
        let w = PackedQ::<4>::quantize(&Pool::new(1), (&Seeded(8).values(n * k)).into(), n, k);
        for m in [1, 6, 40] {
            check_products(&w, |row, column| w.weight(row, column), m);
        }
    }
}
