//! Activations as bf16, in the order the register tile reads them.
#![allow(unsafe_code)]

use std::ops::Range;

use super::BLOCK;
use crate::kernels::cpu::Cpu;
use crate::kernels::line::{self, Line, Lines};
use crate::kernels::pool::Pool;
use crate::kernels::rows::{RowGroups, piece};
use crate::kernels::shared::SharedSlice;

/// Rows one bf16 tile holds: 12 × 2 sums, two weights and a broadcast fill the register file.
const LARGEST_GROUP: usize = 12;

/// Rows that two matrix tiles hold.
pub(crate) const LARGEST_TILED_GROUP: usize = 32;
#[cfg(target_arch = "x86_64")]
const _: () = assert!(LARGEST_TILED_GROUP == crate::kernels::amx::PAIR_ROWS);

/// Rows of activations `(m, k)` rounded to bf16, reused from call to call.
///
/// Layout: for each row group, for each block of 32 columns (the last padded with zeros), one line
/// per row of the group. Word `p` of a line holds columns `2p` and `2p + 1`.
#[derive(Debug, Default)]
pub struct Bf16Rows {
    rows: usize,
    k: usize,
    groups: Vec<Range<usize>>,
    lines: Lines,
}

impl Bf16Rows {
    /// Empty rows; the first [`Bf16Rows::pack`] allocates.
    pub fn new() -> Self {
        Self::default()
    }

    /// Rounds columns `at .. at + k` of `m` rows of `stride` values over what was here before.
    ///
    /// # Panics
    /// If `x` does not hold these columns.
    pub fn pack(
        &mut self,
        cpu: Cpu,
        pool: &Pool,
        x: &[f32],
        (m, k): (usize, usize),
        (stride, at): (usize, usize),
    ) {
        let largest = if cpu.amx { LARGEST_TILED_GROUP } else { LARGEST_GROUP };
        let groups = RowGroups::new(m, largest).iter();
        self.pack_groups(cpu, pool, x, (m, k), (stride, at), groups);
    }

    /// [`Bf16Rows::pack`] with groups of the caller's choice, ascending; rows of none stay undefined.
    ///
    /// # Panics
    /// If `x` does not hold these columns, or a group's rows.
    pub(crate) fn pack_groups(
        &mut self,
        cpu: Cpu,
        pool: &Pool,
        x: &[f32],
        (m, k): (usize, usize),
        (stride, at): (usize, usize),
        groups: impl Iterator<Item = Range<usize>>,
    ) {
        assert!(x.len() >= m * stride && at + k <= stride, "x must hold m rows of k columns");
        self.resize(m, k, groups);
        let (groups, target) = (&self.groups, SharedSlice::new(&mut self.lines));
        let grain = (8192 / (12 * k.max(1))).max(1);
        pool.run(groups.len().div_ceil(grain), &|index| {
            for group in &groups[piece(groups.len(), grain, index)] {
                let blocks = k.div_ceil(BLOCK);
                // SAFETY: groups are disjoint, and so are their lines.
                let lines = unsafe { target.part(group.start * blocks..group.end * blocks) };
                for (i, row) in group.clone().enumerate() {
                    let x = &x[row * stride + at..row * stride + at + k];
                    let lines = lines.iter_mut().skip(i).step_by(group.len());
                    x.chunks(BLOCK).zip(lines).for_each(|(x, line)| *line = round(cpu, x));
                }
            }
        });
    }

    /// Makes room for `(m, k)` without defining the values.
    fn resize(&mut self, m: usize, k: usize, groups: impl Iterator<Item = Range<usize>>) {
        (self.rows, self.k) = (m, k);
        self.groups.clear();
        self.groups.extend(groups);
        let lines = m * k.div_ceil(BLOCK);
        if self.lines.len() < lines {
            self.lines = line::zeroed(lines);
        }
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values per row.
    pub fn k(&self) -> usize {
        self.k
    }

    pub(crate) fn groups(&self) -> &[Range<usize>] {
        &self.groups
    }

    /// Turns every block of every group: pair by pair instead of row by row, so that word
    /// `p · rows + i` of its lines is pair `p` of row `i`.
    pub(crate) fn turn_blocks(&mut self) {
        let blocks = self.k.div_ceil(BLOCK);
        for group in &self.groups {
            let lines = &mut self.lines[group.start * blocks..group.end * blocks];
            for lines in lines.chunks_exact_mut(group.len()) {
                let rows = lines.to_vec();
                let words: &mut [u32] = bytemuck::cast_slice_mut(lines);
                for (i, word) in words.iter_mut().enumerate() {
                    *word = rows[i % rows.len()].0[i / rows.len()];
                }
            }
        }
    }

    /// The lines alone, group after group.
    pub(crate) fn into_lines(self) -> Lines {
        self.lines
    }

    /// The columns `k` (whole blocks) of the rows `group`: per block, one line for each row.
    pub(crate) fn chunk(&self, group: &Range<usize>, k: &Range<usize>) -> &[Line] {
        let start = group.start * self.k.div_ceil(BLOCK);
        let blocks = k.start / BLOCK..k.end.div_ceil(BLOCK);
        &self.lines[start + blocks.start * group.len()..start + blocks.end * group.len()]
    }
}

/// Up to 32 values as one line, zeros after them.
pub(crate) fn round(cpu: Cpu, x: &[f32]) -> Line {
    #[cfg(target_arch = "x86_64")]
    if cpu.bf16 {
        // SAFETY: `bf16` says that AVX-512 F and BF16 were detected.
        return unsafe { avx512::round(x) };
    } else if cpu.avx2 {
        // SAFETY: `avx2` says that AVX2 was detected.
        return unsafe { super::avx2::round(x) };
    }
    let _ = cpu;
    let mut line = Line::ZERO;
    x.iter().enumerate().for_each(|(i, &x)| line.set_bf16(i / 2, i % 2, x));
    line
}

#[cfg(target_arch = "x86_64")]
pub(super) mod avx512 {
    use crate::kernels::line::Line;
    use crate::kernels::simd::{as_words, load_ps, store_line};
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn round(x: &[f32]) -> Line {
        let mut line = Line::ZERO;
        store_line(&mut line, round_words(x));
        line
    }

    /// Up to 32 values as sixteen pairs, zeros after them.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn round_words(x: &[f32]) -> __m512i {
        let (low, high) = x.split_at(x.len().min(16));
        as_words(_mm512_cvtne2ps_pbh(load_ps(high), load_ps(low)))
    }
}
