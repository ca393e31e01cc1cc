//! Integer products: weights of 4 or 8 bits times int8 activations.
//!
//! One generic type serves both widths, and one layout serves a single row (decode, limited by
//! memory) and many rows (prefill, limited by arithmetic). [`crate::kernels::q4`] and [`crate::kernels::q8`] say how
//! each width is filled; the kernels are in `scalar`, `avx2` and `avx512`.
//!
//! `y[i, r] = Σ over blocks b: x_scale[i, b] · w_scale[r, b] · Σ q_x · q_w`, where the inner sum is
//! exact. All versions add the blocks in the same order with fused multiply-adds, so their results
//! are equal bit for bit.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
mod scalar;

use std::array;
use std::ops::Range;

use half::f16;

use crate::kernels::activations::{BLOCK, Q8Block, Q8Rows};
use crate::kernels::cpu::Cpu;
use crate::kernels::gemm::{PANEL, Panels};
use crate::kernels::lanes::kernel;
use crate::kernels::line::{self, Line, Lines};
use crate::kernels::output::Output;
use crate::kernels::pool::Pool;
use crate::kernels::rows::{piece, pieces};
use crate::kernels::split::{PerItem, split};
use crate::kernels::values::Values;

/// Weight rows per tile: the lanes of one register.
pub const TILE: usize = 16;

/// Blocks per pass: 18 KiB of 4-bit weights and 22 KiB of activations, both in a 48 KiB L1.
const BLOCKS_PER_PASS: usize = 64;

/// Rows that are multiplied in a single pass along `k`.
const STREAMED_ROWS: usize = 16;

/// Tiles per work item, at most.
const TILES_PER_ITEM: usize = 8;

/// Row groups per work item: 16 × 8 rows × 64 blocks are 320 KiB, a third of a 1 MiB L2.
const GROUPS_PER_ITEM: usize = 16;

/// A frozen weight `(n, k)` of `BITS` bits per value and one f16 scale per 32 values.
///
/// Layout: tiles of 16 rows (`n` padded with zeros), then blocks of 32 columns. A block is `BITS`
/// lines; word `r` of a line holds four values of row `r` as unsigned bytes or nibbles, so that
/// one `vpdpbusd` advances sixteen rows by four columns. A weight costs `BITS + 0.5` bits.
#[derive(Debug)]
pub struct PackedQ<const BITS: usize> {
    n: usize,
    k: usize,
    codes: Lines,
    /// `[f16; TILE]` per block.
    scales: Lines,
}

/// Where value `i` of a block lies: the line, and the bit within the row's word.
fn place<const BITS: usize>(i: usize) -> (usize, usize) {
    let span = 4 * BITS; // values that share the low halves of all bytes: 16 or 32
    ((i % span) / 4, 8 * (i % 4) + 4 * (i / span))
}

/// The codes of one row of a block as words of its lines; the inverse of [`place`].
fn words<const BITS: usize>(codes: &[u8; BLOCK]) -> [u32; BITS] {
    let (words, _) = codes.as_chunks::<4>();
    array::from_fn(|i| match BITS {
        8 => u32::from_le_bytes(words[i]),
        _ => u32::from_le_bytes(words[i]) | u32::from_le_bytes(words[i + 4]) << 4,
    })
}

/// One row of a block: its words of the lines, and its scale.
pub(crate) type LaneBlock<const BITS: usize> = ([u32; BITS], f16);

impl<const BITS: usize> PackedQ<BITS> {
    /// Quantises `weights (n, k)`, row-major, on the threads of `pool`: `block` gives the codes and the
    /// scale of 32 values.
    pub(crate) fn quantize_on(
        pool: &Pool,
        weights: Values<'_>,
        (n, k): (usize, usize),
        block: impl Fn(&[f32; BLOCK]) -> ([u8; BLOCK], f16) + Sync,
    ) -> Self {
        assert_eq!(weights.len(), n * k, "weights must hold n · k values");
        let block = &block;
        Self::pack_on(pool, n, k, |row| {
            move |b| {
                let (codes, scale) = block(&weights.block(row * k + b * BLOCK));
                (words(&codes), scale)
            }
        })
    }

    /// Packs `(n, k)` on the threads of `pool`; what `row` gives of each gives its blocks. A code `c`
    /// stands for the weight `scale · (c − 2^(BITS−1))`.
    ///
    /// Sixteen rows are read side by side and a block of lines is written at once, so that both
    /// stay in the first-level cache whatever `k` is.
    pub(crate) fn pack_on<R: Fn(usize) -> LaneBlock<BITS>>(
        pool: &Pool,
        n: usize,
        k: usize,
        row: impl Fn(usize) -> R + Sync,
    ) -> Self {
        assert_eq!(k % BLOCK, 0, "k must be a multiple of {BLOCK}");
        let (tiles, blocks) = (n.div_ceil(TILE), k / BLOCK);
        let mut codes = line::resident(tiles * blocks * BITS);
        let mut scales = line::resident(line::lines_for::<[f16; TILE]>(tiles * blocks));
        let scales_out = bytemuck::cast_slice_mut(&mut scales);
        let out =
            (PerItem::new(&mut codes, blocks * BITS), PerItem::new(scales_out, blocks.max(1)));
        split(pool, tiles, TILE * k, out, |tiles, (codes, scales)| {
            let parts = codes.chunks_exact_mut(blocks * BITS).zip(scales.chunks_exact_mut(blocks));
            for (tile, (codes, scales)) in tiles.zip(parts) {
                let rows: Vec<R> = (tile * TILE..n.min((tile + 1) * TILE)).map(&row).collect();
                put_tile(&rows, codes, scales);
            }
        });
        Self { n, k, codes, scales }
    }

    /// Output features.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Input features.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Bytes a product reads.
    pub fn size_bytes(&self) -> usize {
        size_of_val(&self.codes[..]) + size_of_val(self.scales())
    }

    /// The scales of every block of every tile.
    fn scales(&self) -> &[[f16; TILE]] {
        &bytemuck::cast_slice(&self.scales)[..self.codes.len() / BITS]
    }

    /// The weight at `row`, `column`, as the product sees it.
    pub fn weight(&self, row: usize, column: usize) -> f32 {
        let (at, lane) = (row / TILE * (self.k / BLOCK) + column / BLOCK, row % TILE);
        let (line, shift) = place::<BITS>(column % BLOCK);
        let code = self.codes[at * BITS + line].0[lane] >> shift & ((1 << BITS) - 1);
        self.scales()[at][lane].to_f32() * (code as f32 - (1 << (BITS - 1)) as f32)
    }
}

/// Writes the rows of one tile, block after block.
#[inline(always)]
fn put_tile<const BITS: usize>(
    rows: &[impl Fn(usize) -> LaneBlock<BITS>],
    codes: &mut [Line],
    scales: &mut [[f16; TILE]],
) {
    let (blocks, _) = codes.as_chunks_mut::<BITS>();
    for (b, (lines, scales)) in blocks.iter_mut().zip(scales).enumerate() {
        for (lane, row) in rows.iter().enumerate().take(TILE) {
            let (words, scale) = row(b);
            scales[lane] = scale;
            for i in 0..BITS {
                lines[i].0[lane] = words[i];
            }
        }
    }
}

/// Some blocks of one tile: `BITS` lines and sixteen scales for each.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a, const BITS: usize> {
    codes: &'a [Line],
    scales: &'a [[f16; TILE]],
}

/// A weight that int8 activations are multiplied with, sixteen rows by some blocks at a time.
pub trait IntegerWeight: Sync {
    /// Some blocks of sixteen rows.
    type Chunk<'a>: Copy
    where
        Self: 'a;

    /// `(n, k)`.
    fn shape(&self) -> (usize, usize);

    /// The blocks `blocks` of 32 columns, starting and ending at a multiple of eight or at the end.
    fn chunk(&self, tile: usize, blocks: &Range<usize>) -> Self::Chunk<'_>;

    /// One register tile: `MR` rows by 16 columns, added to `y` if `add`.
    fn tile<const MR: usize>(
        cpu: Cpu,
        w: Self::Chunk<'_>,
        x: &[Q8Block],
        y: [&mut [f32]; MR],
        add: bool,
    );
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
    let counts = parts.iter().map(|(w, y)| {
        let (n, k) = w.shape();
        assert_eq!(x.k(), k, "x and W must agree on k");
        y.check(x.rows(), n);
        tiles_of(w).div_ceil(grain) * groups.div_ceil(GROUPS_PER_ITEM)
    });
    pool.run_all(&counts.collect::<Vec<_>>(), &|part, item| {
        let (w, y) = parts[part];
        let columns = tiles_of(w).div_ceil(grain);
        let tiles = piece(tiles_of(w), grain, item % columns);
        let groups = piece(groups, GROUPS_PER_ITEM, item / columns);
        // SAFETY: items of one part differ in their tiles or in their row groups, and parts write
        // to columns of their own, so no two share outputs.
        unsafe { work_item(cpu, x, w, tiles, groups, y) };
    });
}

impl<const BITS: usize> IntegerWeight for PackedQ<BITS> {
    type Chunk<'a> = Weights<'a, BITS>;

    fn shape(&self) -> (usize, usize) {
        (self.n, self.k)
    }

    fn chunk(&self, tile: usize, blocks: &Range<usize>) -> Weights<'_, BITS> {
        let start = tile * (self.k / BLOCK);
        let blocks = start + blocks.start..start + blocks.end;
        let codes = &self.codes[blocks.start * BITS..blocks.end * BITS];
        Weights { codes, scales: &self.scales()[blocks] }
    }

    fn tile<const MR: usize>(
        cpu: Cpu,
        w: Weights<'_, BITS>,
        x: &[Q8Block],
        y: [&mut [f32]; MR],
        add: bool,
    ) {
        #[cfg(target_arch = "x86_64")]
        if cpu.vnni {
            // SAFETY: `vnni` says that AVX-512 F, BW, VL and VNNI were detected.
            return unsafe { avx512::tile::<BITS, MR>(w, x, y, add) };
        } else if cpu.avx2 {
            // SAFETY: `avx2` says that AVX2 and FMA were detected.
            return unsafe { avx2::tile::<BITS, MR>(w, x, y, add) };
        }
        let _ = cpu;
        scalar::tile::<BITS, MR>(w, x, y, add);
    }
}

/// A weight dequantised to `f32` panels on the way, for `g · W`.
impl<const BITS: usize> Panels for PackedQ<BITS> {
    fn shape(&self) -> (usize, usize) {
        (self.n, self.k)
    }

    fn panel<'a>(
        &'a self,
        cpu: Cpu,
        panel: usize,
        k: Range<usize>,
        to: &'a mut [f32],
    ) -> &'a [f32] {
        let (to, tiles) = (&mut to[..k.len() * PANEL], self.n.div_ceil(TILE));
        for half in 0..PANEL / TILE {
            let tile = (panel * (PANEL / TILE) + half).min(tiles - 1);
            for (block, to) in (k.start / BLOCK..).zip(to.chunks_mut(BLOCK * PANEL)) {
                let at = tile * (self.k / BLOCK) + block;
                let scales = self.scales()[at].map(f16::to_f32);
                let codes = &self.codes[at * BITS..(at + 1) * BITS];
                widen_block(cpu, codes, &scales, half * TILE, to);
            }
        }
        to
    }
}

kernel! {
    /// Writes sixteen rows of a block, from its first column on, to the values from `at` on of
    /// columns of 32.
    fn widen_block(s, codes: &[Line], scales: &[f32; TILE], at: usize, to: &mut [f32]) {
        let _ = s; // the compiler makes vectors of these loops
        let bits = codes.len();
        let (mask, zero) = ((1 << bits) - 1, (1 << (bits - 1)) as f32);
        for (column, to) in to.chunks_exact_mut(PANEL).enumerate() {
            let (line, shift) = if bits == 8 { place::<8>(column) } else { place::<4>(column) };
            let to: &mut [f32; TILE] = to[at..].first_chunk_mut().expect("half a column");
            let codes = &codes[line].0;
            for lane in 0..TILE {
                let code = (codes[lane] >> shift & mask) as i32;
                to[lane] = scales[lane] * (code as f32 - zero);
            }
        }
    }
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
    for blocks in pieces(0..k / BLOCK, per_pass.max(1)) {
        for tile in tiles.clone() {
            let weights = w.chunk(tile, &blocks);
            for group in groups.clone().map(|g| x.groups().get(g)) {
                let rows = x.chunk(&group, &blocks);
                let columns = tile * TILE..n.min((tile + 1) * TILE);
                let row_of = |i: usize| {
                    // SAFETY: by this function's contract, and each row is taken once.
                    unsafe { y.row(group.start + i, columns.clone()) }
                };
                let add = y.add || blocks.start > 0;
                multiply::<W>(cpu, weights, rows, group.len(), row_of, add);
            }
        }
    }
}

/// Picks the kernel for this many rows. `row_of(i)` is row `i` of the output tile; `add` says
/// whether it already holds the blocks before these.
fn multiply<'a, W: IntegerWeight>(
    cpu: Cpu,
    w: W::Chunk<'_>,
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
    use crate::kernels::testing::{Seeded, every_cpu};

    /// Products on every instruction set and with two threads, as bits, and against `f64`.
    fn check<const BITS: usize>(w: &PackedQ<BITS>, m: usize) {
        let (n, k) = (w.n, w.k);
        let x = Seeded(9).values(m * k);
        let mut all = Vec::new();
        for (cpu, threads) in every_cpu().into_iter().flat_map(|cpu| [(cpu, 1), (cpu, 2)]) {
            let (pool, mut rows, mut y) = (Pool::new(threads), Q8Rows::new(), vec![1.0; m * n]);
            rows.quantize(cpu, &pool, &x, m, k);
            matmul(cpu, &pool, &rows, w, &Output::new(&mut y, n, 0).adding(true));
            all.push(y);
        }
        assert!(all.iter().all(|y| *y == all[0]), "instruction sets or threads differ");
        for (i, row) in (0..m).flat_map(|i| (0..n).map(move |row| (i, row))) {
            let terms = (0..k).map(|c| f64::from(x[i * k + c]) * f64::from(w.weight(row, c)));
            let sum = 1.0 + terms.sum::<f64>();
            assert!((f64::from(all[0][i * n + row]) - sum).abs() < 0.06, "row {i}, output {row}");
        }
    }

    #[test]
    fn every_instruction_set_and_thread_count_gives_the_same_bits() {
        let (pool, weights) = (Pool::new(2), Seeded(8).values(37 * 96));
        for m in [1, 2, 5, 8, 9, 17] {
            check(&PackedQ::<8>::quantize(&pool, (&weights).into(), 37, 96), m);
            check(&PackedQ::<4>::quantize(&pool, (&weights).into(), 37, 96), m);
        }
    }

    #[test]
    fn a_panel_holds_the_weights_of_its_rows() {
        let w = PackedQ::<4>::quantize(&Pool::new(1), (&Seeded(8).values(50 * 64)).into(), 50, 64);
        let mut scratch = vec![0.0; 64 * PANEL + 1024];
        for panel in 0..2 {
            let values = w.panel(Cpu::SCALAR, panel, 0..64, &mut scratch);
            for (column, lane) in (0..64).flat_map(|c| (0..PANEL).map(move |lane| (c, lane))) {
                let row = panel * PANEL + lane;
                if row < 50 {
                    assert_eq!(values[column * PANEL + lane], w.weight(row, column));
                }
            }
        }
    }
}
