//! The integer kernel with matrix tiles: up to sixteen rows by sixteen columns at a time.
//!
//! A block of 32 columns has scales of its own, so its sums leave the tiles and are scaled in
//! registers: per block one product of tiles (16 cycles), 24 lines read into tiles, 16 lines stored
//! and read again, and a conversion and a fused multiply-add for each row. A read of what
//! a tile has just stored waits until that has left the core, so a block is stored after the next one
//! is multiplied and scaled two blocks later. What stretches of blocks add up to waits in memory.
//!
//! Blocks are added in the order of the other kernels, and inner sums are exact, so the bits are equal.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::array;
use std::ops::Range;

use super::spread::{BLOCK_LINES, BLOCKS_PER_PASS, Spread};
use super::{GROUPS_PER_ITEM, IntegerWeight, TILE};
use crate::kernels::activations::{BLOCK, LARGEST_TILED_GROUP, Q8Block, Q8Rows};
use crate::kernels::amx::{ROWS, Session, Tiles, bytes};
use crate::kernels::line::Line;
use crate::kernels::output::Output;
use crate::kernels::q4k::PAIRS;
use crate::kernels::rows::pieces;
use crate::kernels::scratch::with_lines;
use crate::kernels::simd::{
    load_line, load_line_ps, load_ps, prefetch_lines, store_line, stored, stream_ps,
};

const _: () = assert!(LARGEST_TILED_GROUP == ROWS && TILE == ROWS);

/// Blocks whose sums are on their way from tiles to registers, a power of two.
const DOTS: usize = 4;

/// Blocks between a product and the adding of its sums.
const LAG: usize = 3;

/// Bytes of activations per work item, at most: with what else is read they stay in an L2 of 2 MiB.
const ITEM_BYTES: usize = 1 << 20;

/// Row groups per work item, at most.
pub fn groups_per_item(x: &Q8Rows) -> usize {
    let group = LARGEST_TILED_GROUP * x.k() / BLOCK * size_of::<Q8Block>();
    (ITEM_BYTES / group.max(1)).clamp(2, GROUPS_PER_ITEM)
}

/// Fills the outputs of `tiles` × `groups`.
///
/// # Safety
/// The processor must have AMX, and no other thread may touch those outputs meanwhile.
pub unsafe fn work_item<W: IntegerWeight>(
    x: &Q8Rows,
    w: &W,
    tiles: Range<usize>,
    groups: Range<usize>,
    y: &Output<'_>,
) {
    let _session = Session::new();
    with_lines((DOTS + GROUPS_PER_ITEM) * ROWS + Spread::LINES, |scratch| {
        let (dots, rest) = scratch.split_at_mut(DOTS * ROWS);
        let (sums, lines) = rest.split_at_mut(GROUPS_PER_ITEM * ROWS);
        let (dots, sums) = (dots.as_chunks_mut().0, sums.as_chunks_mut().0);
        let mut spread = Spread::new(lines);
        for tile in tiles {
            for blocks in pieces(0..w.shape().1 / BLOCK, BLOCKS_PER_PASS) {
                W::spread(w.chunk(tile, &blocks), &mut spread);
                let mut next = next_codes(w, tile, &blocks);
                for (group, sums) in groups.clone().zip(&mut *sums) {
                    let group = x.groups().get(group);
                    let on_way = OnWay { dots, sums, next: std::mem::take(&mut next) };
                    // SAFETY: by this function's contract.
                    unsafe { fill((x, &group, &blocks), (w, &spread), tile, on_way, y) };
                }
            }
        }
    });
    stored();
}

/// What leaves the tiles.
struct OnWay<'a> {
    /// Sums of some blocks.
    dots: &'a mut [[Line; ROWS]],
    /// Sums of stretches before. An output is written once: what misses the caches holds up the stores
    /// of tiles behind it.
    sums: &'a mut [Line; ROWS],
    /// What is spread next, to be asked for meanwhile.
    next: &'a [Line],
}

/// The codes that are spread after those of `blocks`.
fn next_codes<'a, W: IntegerWeight>(w: &'a W, tile: usize, blocks: &Range<usize>) -> &'a [Line] {
    let (n, k) = w.shape();
    let all = k / BLOCK;
    let piece = |start: usize| start..all.min(start + BLOCKS_PER_PASS);
    match blocks.end < all {
        true => w.codes(tile, &piece(blocks.end)),
        false if (tile + 1) * TILE < n => w.codes(tile + 1, &piece(0)),
        false => &[],
    }
}

/// Adds some blocks to the sums of one tile and one group, or begins them with these, and writes the
/// outputs after the last.
///
/// # Safety
/// As in [`work_item`].
unsafe fn fill<W: IntegerWeight>(
    (x, group, blocks): (&Q8Rows, &Range<usize>, &Range<usize>),
    (w, spread): (&W, &Spread<'_>),
    tile: usize,
    on_way: OnWay<'_>,
    y: &Output<'_>,
) {
    let columns = tile * TILE..w.shape().0.min((tile + 1) * TILE);
    // SAFETY: by this function's contract, and each row is taken once.
    let row_of = |i: usize| unsafe { y.row(group.start + i, columns.clone()) };
    let (add, last) = (y.add, blocks.end == x.k() / BLOCK);
    let pass = Pass { add, first: blocks.start == 0, last };
    let x = x.chunk(group, blocks);
    // SAFETY: by this function's contract.
    unsafe {
        match group.len() {
            11 => tile_of::<W, 11>(spread, x, array::from_fn(row_of), on_way, pass),
            12 => tile_of::<W, 12>(spread, x, array::from_fn(row_of), on_way, pass),
            13 => tile_of::<W, 13>(spread, x, array::from_fn(row_of), on_way, pass),
            14 => tile_of::<W, 14>(spread, x, array::from_fn(row_of), on_way, pass),
            15 => tile_of::<W, 15>(spread, x, array::from_fn(row_of), on_way, pass),
            16 => tile_of::<W, 16>(spread, x, array::from_fn(row_of), on_way, pass),
            _ => unreachable!("more than 32 rows make groups of eleven to sixteen"),
        }
    }
}

/// Which of the passes along `k` this is.
#[derive(Clone, Copy)]
struct Pass {
    /// Whether the sums begin with what the outputs hold.
    add: bool,
    first: bool,
    last: bool,
}

/// One pass over `MR` rows by 16 columns.
///
/// # Safety
/// The processor must have AMX.
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn tile_of<W: IntegerWeight, const MR: usize>(
    w: &Spread<'_>,
    x: &[Q8Block],
    y: [&mut [f32]; MR],
    OnWay { dots, sums: kept, next }: OnWay<'_>,
    pass: Pass,
) {
    let (c, a, b) = ((MR as u8, 64), (MR as u8, BLOCK as u8), (BLOCK_LINES as u8, 64));
    // SAFETY: by this function's contract.
    let tiles = unsafe { Tiles::shaped([c, c, a, b, c, c, a, b]) };
    for i in 0..MR {
        match (pass.first, pass.add) {
            (true, true) => store_line(&mut kept[i], _mm512_castps_si512(load_ps(y[i]))),
            (true, false) => store_line(&mut kept[i], _mm512_setzero_si512()),
            _ => {}
        }
    }
    let work = Work { tiles, w, x: x.as_chunks().0 };
    let mut lines_of_next = next.chunks(W::LINES);
    // Of stretches of one block the sums themselves.
    let mut inner = [_mm512_setzero_ps(); MR];
    for i in 0..MR {
        if W::STRETCH == 1 {
            inner[i] = load_line_ps(&kept[i]);
        }
    }
    for i in 0..work.x.len() + LAG {
        prefetch_lines(lines_of_next.next().unwrap_or_default());
        work.multiply(i, dots);
        if let Some(i) = i.checked_sub(LAG) {
            work.add_scaled::<W>(i, &dots[i % DOTS], &mut inner);
            work.end_stretch::<W>(i, &mut inner, kept);
        }
    }
    for i in 0..MR {
        if W::STRETCH == 1 {
            store_line(&mut kept[i], _mm512_castps_si512(inner[i]));
        }
        if pass.last {
            stream_ps(y[i], load_line_ps(&kept[i]));
        }
    }
}

/// What one tile of outputs is made of.
struct Work<'a, const MR: usize> {
    tiles: Tiles,
    w: &'a Spread<'a>,
    x: &'a [[Q8Block; MR]],
}

impl<const MR: usize> Work<'_, MR> {
    /// Multiplies block `i`, if there is one, and stores the sums of the block before it.
    #[inline(always)]
    fn multiply(&self, i: usize, dots: &mut [[Line; ROWS]]) {
        match i % 2 {
            0 => self.multiply_into::<0, 1>(i, dots),
            _ => self.multiply_into::<1, 0>(i, dots),
        }
    }

    /// [`Work::multiply`] into tile `C`, with the block before in tile `BEFORE`.
    #[inline(always)]
    fn multiply_into<const C: u8, const BEFORE: u8>(&self, i: usize, dots: &mut [[Line; ROWS]]) {
        if let (Some(w), Some(x)) = (self.w.codes().get(i), self.x.get(i)) {
            self.tiles.zero::<C>();
            // SAFETY: the words of a row begin its block, `MR` rows; a block of a weight has its lines.
            unsafe {
                self.tiles.load::<2>(x.as_ptr().cast(), size_of::<Q8Block>());
                self.tiles.load::<3>(bytes(w), size_of::<Line>());
            }
            self.tiles.int8::<C, 2, 3>();
        }
        if let Some(before) = i.checked_sub(1).filter(|&before| before < self.x.len()) {
            let dots: *mut Line = dots[before % DOTS].as_mut_ptr();
            // SAFETY: a tile has at most sixteen lines.
            unsafe { self.tiles.store::<BEFORE>(dots.cast(), size_of::<Line>()) };
        }
    }

    /// Adds the inner sums of block `i`, times the weight's scales, and if it is a stretch by itself the
    /// activation's.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn add_scaled<W: IntegerWeight>(
        &self,
        i: usize,
        dots: &[Line; ROWS],
        inner: &mut [__m512; MR],
    ) {
        let scales = load_line_ps(self.w.scales(i));
        for row in 0..MR {
            let dot = _mm512_cvtepi32_ps(load_line(&dots[row]));
            let (dot, factors) = match W::STRETCH {
                1 => (_mm512_mul_ps(dot, scales), _mm512_set1_ps(self.x[i][row].scale)),
                _ => (dot, scales),
            };
            inner[row] = _mm512_fmadd_ps(dot, factors, inner[row]);
        }
    }

    /// Adds what a stretch of several blocks came to to the sums, if block `i` is its last.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn end_stretch<W: IntegerWeight>(
        &self,
        i: usize,
        inner: &mut [__m512; MR],
        sums: &mut [Line; ROWS],
    ) {
        let (at, start) = (i % W::STRETCH, i - i % W::STRETCH);
        if W::STRETCH == 1 || at + 1 < W::STRETCH && i + 1 < self.x.len() {
            return;
        }
        for row in 0..MR {
            let inner = std::mem::replace(&mut inner[row], _mm512_setzero_ps());
            let inner = match W::HAS_MINS {
                true => self.with_mins(start, row, inner),
                false => inner,
            };
            let scale = _mm512_set1_ps(self.x[start][row].scale);
            let sum = _mm512_fmadd_ps(inner, scale, load_line_ps(&sums[row]));
            store_line(&mut sums[row], _mm512_castps_si512(sum));
        }
    }

    /// What the stretch from block `start` on comes to in a row whose inner sums are `inner`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn with_mins(&self, start: usize, row: usize, inner: __m512) -> __m512 {
        let [mins @ .., d, dmin] = self.w.more(start);
        let mut offset = _mm512_setzero_si512();
        for j in 0..PAIRS.len() {
            let pair = _mm512_set1_epi32(self.x[start + PAIRS[j]][row].minus_sums());
            offset = _mm512_dpwssd_epi32(offset, load_line(&mins[j]), pair);
        }
        let offset = _mm512_mul_ps(_mm512_cvtepi32_ps(offset), load_line_ps(dmin));
        _mm512_fmadd_ps(inner, load_line_ps(d), offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cpu::Cpu;
    use crate::kernels::pool::Pool;
    use crate::kernels::q4k::PackedQ4K;
    use crate::kernels::quantized::{PackedQ, matmul};
    use crate::kernels::testing::Seeded;

    /// `1 + x · Wᵀ` as it is with matrix tiles, where there are such, and without.
    fn both_ways<W: IntegerWeight>(w: &W, m: usize) -> [Vec<f32>; 2] {
        let ((n, k), pool) = (w.shape(), Pool::new(2));
        let x = Seeded(9).values(m * k);
        [Cpu::detect(), Cpu::without_tiles()].map(|cpu| {
            let (mut rows, mut y) = (Q8Rows::new(), vec![1.0; m * n]);
            rows.quantize(cpu, &pool, &x, (m, k), W::STRETCH);
            matmul(cpu, &pool, &rows, w, &Output::new(&mut y, n, 0).adding(true));
            y
        })
    }

    #[test]
    fn sums_go_on_from_pass_to_pass() {
        let (n, k) = (53, BLOCK * (2 * BLOCKS_PER_PASS + 16));
        let (pool, weights) = (Pool::new(2), Seeded(8).values(n * k));
        for m in [33, 47, 300] {
            let [tiles, registers] =
                both_ways(&PackedQ::<4>::quantize(&pool, (&weights).into(), n, k), m);
            assert!(tiles == registers, "Q4_0, {m} rows");
            let [tiles, registers] =
                both_ways(&PackedQ4K::quantize(&pool, (&weights).into(), n, k), m);
            assert!(tiles == registers, "Q4_K, {m} rows");
        }
    }
}
