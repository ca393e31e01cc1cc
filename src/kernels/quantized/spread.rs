//! A weight of 4 or 8 bits as matrix tiles multiply it: a byte per value.

use crate::kernels::line::Line;
use crate::kernels::q4k::PAIRS;

/// Blocks per pass: 40 KiB of a weight spread out, which stay near for all row groups.
pub const BLOCKS_PER_PASS: usize = 64;

/// Lines of a block of sixteen rows of a weight, a byte per value.
pub const BLOCK_LINES: usize = 8;

/// Some blocks of sixteen rows of a weight as tiles multiply them.
pub struct Spread<'a> {
    /// Word `r` of line `i` of a block holds columns `4 · i ..` of row `r` as signed bytes.
    codes: &'a mut [[Line; BLOCK_LINES]],
    /// A factor per row.
    scales: &'a mut [Line],
    /// What else a stretch of blocks has, in the first of as many lines as blocks.
    more: &'a mut [Line],
}

/// What a weight with minima has per stretch: pairs of them, and factors of scales and of minima.
pub const MORE: usize = PAIRS.len() + 2;

impl<'a> Spread<'a> {
    /// Lines it takes.
    pub const LINES: usize = (BLOCK_LINES + 2) * BLOCKS_PER_PASS;

    /// Room on `lines`.
    pub fn new(lines: &'a mut [Line]) -> Self {
        let (codes, rest) = lines.split_at_mut(BLOCK_LINES * BLOCKS_PER_PASS);
        let (scales, more) = rest.split_at_mut(BLOCKS_PER_PASS);
        Self { codes: codes.as_chunks_mut().0, scales, more }
    }

    /// The codes of all blocks.
    #[inline(always)]
    pub fn codes(&self) -> &[[Line; BLOCK_LINES]] {
        self.codes
    }

    /// The factors of block `i`.
    #[inline(always)]
    pub fn scales(&self, i: usize) -> &Line {
        &self.scales[i]
    }

    /// What the stretch that begins with block `i` has besides.
    #[inline(always)]
    pub fn more(&self, i: usize) -> &[Line; MORE] {
        self.more[i..].first_chunk().expect("stretches of blocks with minima are whole")
    }

    /// Block `i`, to be written: its codes and its factors.
    #[inline(always)]
    pub fn block(&mut self, i: usize) -> (&mut [Line; BLOCK_LINES], &mut Line) {
        (&mut self.codes[i], &mut self.scales[i])
    }

    /// [`Spread::more`], to be written.
    #[inline(always)]
    pub fn more_mut(&mut self, i: usize) -> &mut [Line; MORE] {
        self.more[i..].first_chunk_mut().expect("stretches of blocks with minima are whole")
    }
}
