//! Weights of 4 or 8 bits with one scale per 32 values, sixteen rows side by side.
#![allow(unsafe_code)]

use std::array;
use std::ops::Range;

use half::f16;

use super::{IntegerWeight, TILE, scalar};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512, spread};
use crate::kernels::activations::{BLOCK, Q8Block};
use crate::kernels::cpu::Cpu;
use crate::kernels::gemm::{PANEL, Panels};
use crate::kernels::lanes::kernel;
use crate::kernels::line::{self, Line, Lines};
use crate::kernels::pool::Pool;
use crate::kernels::split::{PerItem, split};
use crate::kernels::values::Values;

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

/// Blocks whose activations share a scale where weights have 4 bits.
pub(in crate::kernels) const RUN: usize = 8;

/// Blocks whose activations share a scale.
pub(super) const fn stretch<const BITS: usize>() -> usize {
    if BITS == 8 { 1 } else { RUN }
}

/// Where value `i` of a block lies: the line, and the bit within the row's word.
pub(super) fn place<const BITS: usize>(i: usize) -> (usize, usize) {
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
    pub(super) codes: &'a [Line],
    pub(super) scales: &'a [[f16; TILE]],
}

impl<const BITS: usize> IntegerWeight for PackedQ<BITS> {
    type Chunk<'a> = Weights<'a, BITS>;

    const STRETCH: usize = stretch::<BITS>();
    const HAS_MINS: bool = false;
    const LINES: usize = BITS;

    fn shape(&self) -> (usize, usize) {
        (self.n, self.k)
    }

    fn chunk(&self, tile: usize, blocks: &Range<usize>) -> Weights<'_, BITS> {
        let start = tile * (self.k / BLOCK);
        let blocks = start + blocks.start..start + blocks.end;
        let codes = &self.codes[blocks.start * BITS..blocks.end * BITS];
        Weights { codes, scales: &self.scales()[blocks] }
    }

    fn codes(&self, tile: usize, blocks: &Range<usize>) -> &[Line] {
        self.chunk(tile, blocks).codes
    }

    fn tile<const MR: usize>(
        cpu: Cpu,
        (w, next): (Weights<'_, BITS>, &[Line]),
        x: &[Q8Block],
        y: [&mut [f32]; MR],
        add: bool,
    ) {
        #[cfg(target_arch = "x86_64")]
        if cpu.vnni {
            // SAFETY: `vnni` says that AVX-512 F, BW, VL and VNNI were detected.
            return unsafe { avx512::tile::<BITS, MR>((w, next), x, y, add) };
        } else if cpu.avx2 {
            // SAFETY: `avx2` says that AVX2 and FMA were detected.
            return unsafe { avx2::tile::<BITS, MR>(w, x, y, add) };
        }
        let _ = (cpu, next);
        scalar::tile::<BITS, MR>(w, x, y, add);
    }

    #[cfg(target_arch = "x86_64")]
    fn spread(w: Weights<'_, BITS>, to: &mut spread::Spread<'_>) {
        // SAFETY: there are tiles, and so AVX-512 F, BW and VL.
        unsafe { avx512::spread::<BITS>(w, to) };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::Seeded;

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
