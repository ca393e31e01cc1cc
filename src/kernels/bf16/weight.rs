//! A frozen weight in bf16.

use std::ops::Range;

use super::{Chunk, PANEL, Panels};
use crate::kernels::cpu::Cpu;
use crate::kernels::lanes::kernel;
use crate::kernels::line::{Line, Lines};
use crate::kernels::output::ask_lines;
use crate::kernels::pool::Pool;
use crate::kernels::split::{PerItem, split};
use crate::kernels::values::Values;

/// A weight `(n, k)` rounded to bf16, any `n` and `k`.
///
/// Layout: panels of 32 rows (`n` padded with zeros), then pairs of columns (`k` padded to even).
/// A pair is two lines; word `r` of line `h` holds the pair of row `16h + r`, so that one
/// `vdpbf16ps` advances sixteen rows by two columns.
#[derive(Debug)]
pub struct PackedBf16 {
    n: usize,
    k: usize,
    lines: Lines,
}

/// The bits of a finite value rounded to bf16, to the nearest, ties to even.
#[inline(always)]
pub(crate) fn round_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16
}

impl PackedBf16 {
    /// Rounds and packs `weights (n, k)`, row-major, on the threads of `pool`, into `room` of so many
    /// zero lines.
    ///
    /// # Panics
    /// If there are not `n · k` values.
    pub fn pack(
        pool: &Pool,
        weights: Values<'_>,
        (n, k): (usize, usize),
        room: fn(usize) -> Lines,
    ) -> Self {
        assert_eq!(weights.len(), n * k, "weights must hold n · k values");
        let pairs = k.div_ceil(2);
        let mut lines = room(n.div_ceil(PANEL) * pairs * 2);
        let out = PerItem::new(&mut lines, pairs * 2);
        split(pool, n.div_ceil(PANEL), PANEL * k, out, |panels, lines| {
            for (panel, lines) in panels.zip(lines.chunks_exact_mut((pairs * 2).max(1))) {
                let rows = panel * PANEL..n.min((panel + 1) * PANEL);
                for (i, lines) in lines.chunks_mut(PIECE).enumerate() {
                    let columns = i * PIECE..k.min((i + 1) * PIECE);
                    for (lane, row) in rows.clone().enumerate() {
                        let at = row * k + columns.start;
                        put_pairs(weights, at..at + columns.len(), lane, lines);
                    }
                }
            }
        });
        Self { n, k, lines }
    }

    /// The lines alone, panel after panel.
    pub(crate) fn into_lines(self) -> Lines {
        self.lines
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
        size_of_val(&self.lines[..])
    }

    /// The weight at `row`, `column`.
    pub fn weight(&self, row: usize, column: usize) -> f32 {
        let pair = row / PANEL * self.k.div_ceil(2) + column / 2;
        self.lines[pair * 2 + row % PANEL / 16].bf16(row % 16, column % 2)
    }

    /// The pairs of columns `k` of one panel, two lines each.
    pub(crate) fn panel(&self, panel: usize, k: Range<usize>) -> &[Line] {
        let start = panel * self.k.div_ceil(2);
        &self.lines[(start + k.start / 2) * 2..(start + k.end.div_ceil(2)) * 2]
    }
}

/// Columns that are packed for all rows of a panel before the next: as many lines, which the
/// first-level cache holds.
const PIECE: usize = 128;

/// Writes the values `of` of one row to its lane of every second line.
fn put_pairs(weights: Values<'_>, of: Range<usize>, lane: usize, lines: &mut [Line]) {
    let to = lines.iter_mut().skip(lane / 16).step_by(2).map(|line| &mut line.0[lane % 16]);
    if let (Values::Bf16(halves), true) = (weights, of.len().is_multiple_of(2)) {
        let pairs: &[[u8; 4]] = bytemuck::cast_slice(&halves[of]);
        return to.zip(pairs).for_each(|(to, pair)| *to = u32::from_le_bytes(*pair));
    }
    let mut values = [0.0; PIECE];
    weights.read(of.start, &mut values[..of.len()]);
    let pairs = values.as_chunks().0.iter();
    to.zip(pairs).for_each(|(to, [low, high])| *to = round_bits(*low) | round_bits(*high) << 16);
}

impl Panels for PackedBf16 {
    fn shape(&self) -> (usize, usize) {
        (self.n, self.k)
    }

    fn chunk<'a>(&'a self, _: Cpu, panel: usize, k: Range<usize>, _: &'a mut [Line]) -> Chunk<'a> {
        Chunk::Bf16(self.panel(panel, k))
    }

    fn ask(&self, panel: usize, k: Range<usize>) {
        ask_lines(self.panel(panel, k));
    }
}

/// A bf16 weight widened to `f32` panels on the way, where bf16 products do not exist.
#[derive(Clone, Copy, Debug)]
pub struct Widened<'a>(pub &'a PackedBf16);

impl crate::kernels::gemm::Panels for Widened<'_> {
    fn shape(&self) -> (usize, usize) {
        (self.0.n, self.0.k)
    }

    fn panel<'a>(
        &'a self,
        cpu: Cpu,
        panel: usize,
        k: Range<usize>,
        to: &'a mut [f32],
    ) -> &'a [f32] {
        debug_assert!(k.start.is_multiple_of(2), "pieces of `k` start at whole pairs");
        let to = &mut to[..k.len() * PANEL];
        widen(cpu, self.0.panel(panel, k), to);
        to
    }
}

kernel! {
    /// Writes the pairs of columns of one panel as columns of 32 values; the last may be half a pair.
    fn widen(s, pairs: &[Line], to: &mut [f32]) {
        let _ = s; // the compiler makes vectors of these loops
        for (pair, to) in pairs.as_chunks::<2>().0.iter().zip(to.chunks_mut(2 * PANEL)) {
            let (columns, _) = to.as_chunks_mut::<PANEL>();
            for (column, high) in columns.iter_mut().zip([0, 16]) {
                for i in 0..PANEL {
                    let word = pair[i / 16].0[i % 16];
                    column[i] = f32::from_bits(word >> high << 16);
                }
            }
        }
    }
}
