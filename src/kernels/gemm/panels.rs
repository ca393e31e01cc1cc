//! The right operand, seen as panels of 32 columns.

use std::ops::Range;

use super::PANEL;
use crate::kernels::cpu::Cpu;
use crate::kernels::lanes::{LANES, kernel};

/// A matrix `B (k, n)` that can hand out 32 columns of some of its rows.
pub trait Panels: Sync {
    /// `(n, k)`: columns, and the length of the reduction.
    fn shape(&self) -> (usize, usize);

    /// Rows `k` (starting at a multiple of 32) of columns `32 · panel ..`, row by row, 32 values
    /// each. Columns past the end are anything. `scratch` holds `32 · k.len()` values and 1024
    /// more.
    fn panel<'a>(
        &'a self,
        cpu: Cpu,
        panel: usize,
        k: Range<usize>,
        scratch: &'a mut [f32],
    ) -> &'a [f32];
}

/// A row-major matrix `(k, n)` inside rows of `stride` values: `B = values`.
#[derive(Clone, Copy, Debug)]
pub struct RowMajor<'a> {
    pub values: &'a [f32],
    pub stride: usize,
    pub k: usize,
    pub n: usize,
}

impl Panels for RowMajor<'_> {
    fn shape(&self) -> (usize, usize) {
        (self.n, self.k)
    }

    fn panel<'a>(&'a self, _: Cpu, panel: usize, k: Range<usize>, to: &'a mut [f32]) -> &'a [f32] {
        let columns = panel * PANEL..self.n.min((panel + 1) * PANEL);
        for (row, to) in k.clone().zip(to.chunks_exact_mut(PANEL)) {
            let start = row * self.stride;
            let from = &self.values[start + columns.start..start + columns.end];
            to[..from.len()].copy_from_slice(from);
        }
        &to[..k.len() * PANEL]
    }
}

/// A row-major matrix `(n, k)` whose rows are the columns of `B`: `B = valuesᵀ`.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a> {
    pub values: &'a [f32],
    pub n: usize,
    pub k: usize,
}

impl Panels for Columns<'_> {
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
        let first = panel * PANEL;
        let rows = self.n.min(first + PANEL) - first;
        for half in 0..2 {
            let rows = rows.saturating_sub(half * LANES).min(LANES);
            let from = &self.values[(first + half * LANES).min(self.n) * self.k..];
            turn_rows(cpu, from, self.k, rows, k.clone(), &mut to[half * LANES..]);
        }
        &to[..k.len() * PANEL]
    }
}

kernel! {
    /// Writes the columns `k` of up to sixteen rows of `from` (rows of `stride` values) as rows of
    /// 32 values of `to`, of which it fills the first sixteen.
    pub(crate) fn turn_rows(
        s,
        from: &[f32],
        stride: usize,
        rows: usize,
        k: Range<usize>,
        to: &mut [f32],
    ) {
        if rows == 0 {
            return;
        }
        let mut at = k.start;
        while at < k.end {
            let columns = (k.end - at).min(LANES);
            let mut square = [s.splat(0.0); LANES];
            for r in 0..rows {
                square[r] = s.load_part(&from[r * stride + at..r * stride + at + columns]);
            }
            s.transpose(&mut square);
            for c in 0..columns {
                s.store_part(&mut to[(at - k.start + c) * PANEL..][..LANES], square[c]);
            }
            at += LANES;
        }
    }
}

/// A weight `(out, in)` whose panels hold outputs, read the other way: `B (out, in)`, for `g · W`.
#[derive(Clone, Copy, Debug)]
pub struct Turned<'a, W>(pub &'a W);

impl<W: Panels> Panels for Turned<'_, W> {
    fn shape(&self) -> (usize, usize) {
        let (n, k) = self.0.shape();
        (k, n)
    }

    fn panel<'a>(
        &'a self,
        cpu: Cpu,
        panel: usize,
        k: Range<usize>,
        to: &'a mut [f32],
    ) -> &'a [f32] {
        let columns = panel * PANEL..self.shape().0.min((panel + 1) * PANEL);
        let (to, inner) = to.split_at_mut(k.len() * PANEL);
        let mut spare = [0.0; PANEL * PANEL + 1024];
        let _ = inner;
        for (piece, source) in to.chunks_mut(PANEL * PANEL).zip(k.start / PANEL..) {
            let square = self.0.panel(cpu, source, columns.clone(), &mut spare);
            turn_square(cpu, square, piece);
        }
        to
    }
}

kernel! {
    /// Exchanges rows and columns of a piece of up to 32 × 32 values, rows of 32.
    fn turn_square(s, from: &[f32], to: &mut [f32]) {
        let (from, _) = from.as_chunks::<LANES>();
        let (to, _) = to.as_chunks_mut::<LANES>();
        let (rows, columns) = (from.len() / 2, to.len() / 2);
        for (r, c) in [(0, 0), (0, LANES), (LANES, 0), (LANES, LANES)] {
            let mut square = [s.splat(0.0); LANES];
            for i in 0..LANES {
                if r + i < rows {
                    square[i] = s.load(&from[2 * (r + i) + c / LANES]);
                }
            }
            s.transpose(&mut square);
            for i in 0..LANES {
                if c + i < columns {
                    s.store(&mut to[2 * (c + i) + r / LANES], square[i]);
                }
            }
        }
    }
}
