//! `f32` matrices as right operands, rounded to bf16 panels on the way.
//!
//! The matrices of an adapter and the activations that meet a gradient are multiplied once, so
//! they are not packed ahead: each chunk is rounded into scratch when its panel comes up.
#![allow(unsafe_code)]

use std::ops::Range;

use super::{BLOCK, Chunk, PANEL, Panels};
use crate::kernels::cpu::Cpu;
use crate::kernels::line::Line;

/// Rows ahead of the ones being rounded: a panel takes two lines of each, too far apart for the
/// hardware to see a stream in them.
const AHEAD: usize = 32;

/// Row-major matrices of one width, one below the other: columns `at .. at + width` of rows of
/// `stride` values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a> {
    pub parts: &'a [&'a [f32]],
    pub stride: usize,
    pub at: usize,
    pub width: usize,
}

impl<'a> Matrix<'a> {
    /// Whole matrices of `width` columns.
    pub fn stacked(parts: &'a [&'a [f32]], width: usize) -> Self {
        Self { parts, stride: width, at: 0, width }
    }

    fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.len() / self.stride.max(1)).sum()
    }

    fn row(&self, mut row: usize) -> &'a [f32] {
        for part in self.parts {
            let rows = part.len() / self.stride;
            if row < rows {
                return &part[row * self.stride + self.at..][..self.width];
            }
            row -= rows;
        }
        &[] // rows past the end are zeros
    }
}

/// `B (k, n)` is the matrix itself: its rows are reduced over.
pub(crate) struct RoundedRows<'a>(pub Matrix<'a>);

/// `B (k, n)` is the transpose of the matrix: its rows are the outputs.
pub(crate) struct RoundedColumns<'a>(pub Matrix<'a>);

impl Panels for RoundedRows<'_> {
    fn shape(&self) -> (usize, usize) {
        (self.0.width, self.0.rows())
    }

    fn chunk<'a>(
        &'a self,
        cpu: Cpu,
        panel: usize,
        k: Range<usize>,
        scratch: &'a mut [Line],
    ) -> Chunk<'a> {
        let columns = panel * PANEL..self.0.width.min((panel + 1) * PANEL);
        let part = |row: usize| {
            let row = if row < k.end { self.0.row(row) } else { &[] };
            row.get(columns.clone()).unwrap_or(&[])
        };
        let pairs = &mut scratch[..k.len().div_ceil(2) * 2];
        for (row, pair) in k.clone().step_by(2).zip(pairs.chunks_exact_mut(2)) {
            let ahead = [part(row + AHEAD), part(row + AHEAD + 1)];
            pair_rows(cpu, [part(row), part(row + 1)], ahead, pair);
        }
        Chunk::Bf16(pairs)
    }
}

impl Panels for RoundedColumns<'_> {
    fn shape(&self) -> (usize, usize) {
        (self.0.rows(), self.0.width)
    }

    fn chunk<'a>(
        &'a self,
        cpu: Cpu,
        panel: usize,
        k: Range<usize>,
        scratch: &'a mut [Line],
    ) -> Chunk<'a> {
        let blocks = k.len().div_ceil(BLOCK);
        let pieces = scratch.chunks_exact_mut(BLOCK).take(blocks);
        for (start, piece) in k.clone().step_by(BLOCK).zip(pieces) {
            let columns = start..k.end.min(start + BLOCK);
            let mut rows = [&[][..]; PANEL];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = self.0.row(panel * PANEL + i).get(columns.clone()).unwrap_or(&[]);
            }
            pair_columns(cpu, &rows, piece);
        }
        Chunk::Bf16(&scratch[..k.len().div_ceil(2) * 2])
    }
}

/// Two rows of up to 32 values as one pair of lines; an empty row counts as zeros. The rows `ahead`
/// are asked for.
fn pair_rows(cpu: Cpu, rows: [&[f32]; 2], ahead: [&[f32]; 2], pair: &mut [Line]) {
    #[cfg(target_arch = "x86_64")]
    if cpu.bf16 {
        // SAFETY: `bf16` says that AVX-512 F, BW and BF16 were detected.
        return unsafe { avx512::pair_rows(rows, ahead, pair) };
    }
    let _ = (cpu, ahead);
    scalar::pair_rows(rows, pair);
}

/// Up to 32 columns of 32 rows as sixteen pairs of lines; an empty row counts as zeros.
fn pair_columns(cpu: Cpu, rows: &[&[f32]; PANEL], piece: &mut [Line]) {
    #[cfg(target_arch = "x86_64")]
    if let (true, Some(s)) = (cpu.bf16, crate::kernels::lanes::Avx512::detected(cpu)) {
        // SAFETY: `bf16` says that AVX-512 F and BF16 were detected.
        return unsafe { avx512::pair_columns(s, rows, piece) };
    }
    let _ = cpu;
    scalar::pair_columns(rows, piece);
}

/// The specification.
mod scalar {
    use super::*;

    pub fn pair_rows(rows: [&[f32]; 2], pair: &mut [Line]) {
        pair.fill(Line::ZERO);
        for (odd, row) in rows.into_iter().enumerate() {
            for (column, &value) in row.iter().enumerate() {
                pair[column / 16].set_bf16(column % 16, odd, value);
            }
        }
    }

    pub fn pair_columns(rows: &[&[f32]; PANEL], piece: &mut [Line]) {
        piece.fill(Line::ZERO);
        for (r, row) in rows.iter().enumerate() {
            for (c, &value) in row.iter().enumerate() {
                piece[c / 2 * 2 + r / 16].set_bf16(r % 16, c % 2, value);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::*;
    use crate::kernels::bf16::rows::avx512::round_words;
    use crate::kernels::lanes::{Avx512, LANES, Simd};
    use crate::kernels::simd::{load_ps, prefetch, round_pairs, store_line};

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub fn pair_rows([even, odd]: [&[f32]; 2], ahead: [&[f32]; 2], pair: &mut [Line]) {
        for row in ahead {
            row.iter().step_by(LANES).for_each(|value| prefetch(value, 0));
        }
        let rest = |row: &[f32]| load_ps(row.get(LANES..).unwrap_or_default());
        store_line(&mut pair[0], round_pairs(load_ps(even), load_ps(odd)));
        store_line(&mut pair[1], round_pairs(rest(even), rest(odd)));
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,avx512bf16")]
    pub fn pair_columns(s: Avx512, rows: &[&[f32]; PANEL], piece: &mut [Line]) {
        for half in 0..2 {
            let mut square = [s.splat(0.0); LANES];
            for i in 0..LANES {
                square[i] = _mm512_castsi512_ps(round_words(rows[half * LANES + i]));
            }
            s.transpose(&mut square);
            for (p, words) in square.into_iter().enumerate() {
                store_line(&mut piece[2 * p + half], _mm512_castps_si512(words));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::bf16::{Bf16Rows, gemm_sum};
    use crate::kernels::output::Output;
    use crate::kernels::pool::Pool;
    use crate::kernels::testing::Seeded;

    /// `y (m, n) += a (m, p) · bᵀ + c (m, q) · d`, `b (n, p)` in two parts and `d (q, n)`.
    fn product(cpu: Cpu, (m, n, p, q): (usize, usize, usize, usize)) -> Vec<f32> {
        let (mut seeded, pool) = (Seeded(3), Pool::new(2));
        let [a, b, c, d, mut y] = [m * p, n * p, m * q, q * n, m * n].map(|len| seeded.values(len));
        let pack = |x: &[f32], k: usize| {
            let mut rows = Bf16Rows::new();
            rows.pack(cpu, &pool, x, (m, k), (k, 0));
            rows
        };
        let (a, c) = (pack(&a, p), pack(&c, q));
        let (top, bottom) = b.split_at(n / 3 * p);
        let (columns, rows) = ([top, bottom], [&d[..]]);
        let columns = RoundedColumns(Matrix::stacked(&columns, p));
        let rows = RoundedRows(Matrix::stacked(&rows, n));
        let output = Output::new(&mut y, n, 0).adding(true);
        gemm_sum(cpu, &pool, &[(&a, &columns), (&c, &rows)], &output);
        y
    }

    #[test]
    fn rounded_matrices_multiply_as_the_plain_twin_does() {
        for shape in [(1, 16, 33, 7), (25, 47, 70, 16), (30, 32, 64, 33), (5, 3, 1, 1)] {
            let (fast, plain) = (product(Cpu::detect(), shape), product(Cpu::SCALAR, shape));
            for (fast, plain) in fast.iter().zip(&plain) {
                assert!((fast - plain).abs() < 1e-4, "{shape:?}: {fast} and {plain}");
            }
        }
    }
}
