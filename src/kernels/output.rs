//! Where a product writes: some columns of a row-major matrix, shared by threads.
#![allow(unsafe_code)]

use std::ops::Range;

use super::line::Line;
use super::shared::SharedSlice;

/// Values of a line.
const LINE: usize = 16;

/// A matrix into which several products write at once, each its own columns.
pub struct SharedOutput<'a> {
    values: SharedSlice<'a, f32>,
    stride: usize,
}

impl<'a> SharedOutput<'a> {
    /// The matrix `values (m, stride)`.
    pub fn new(values: &'a mut [f32], stride: usize) -> Self {
        Self { values: SharedSlice::new(values), stride }
    }

    /// Its columns from `at` on; they are overwritten.
    pub fn at(&self, at: usize) -> Output<'a> {
        Output { values: self.values.share(), stride: self.stride, at, add: false }
    }
}

/// Columns `at .. at + n` of a row-major matrix with rows of `stride` values.
pub struct Output<'a> {
    values: SharedSlice<'a, f32>,
    stride: usize,
    at: usize,
    /// Whether products are added to what the matrix holds.
    pub(crate) add: bool,
}

impl<'a> Output<'a> {
    /// Columns from `at` on of the matrix `values (m, stride)`; they are overwritten.
    pub fn new(values: &'a mut [f32], stride: usize, at: usize) -> Self {
        Self { values: SharedSlice::new(values), stride, at, add: false }
    }

    /// The same columns, to be added to if `add`.
    pub fn adding(self, add: bool) -> Self {
        Self { add, ..self }
    }

    /// Panics unless `m` rows of `n` columns fit.
    pub(crate) fn check(&self, m: usize, n: usize) {
        assert!(self.at + n <= self.stride, "the columns leave the matrix");
        assert!(m * self.stride <= self.values.len(), "the rows leave the matrix");
    }

    /// The columns `columns` of row `row`.
    ///
    /// # Safety
    /// While the slice lives, no other part that overlaps it may exist.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn row(&self, row: usize, columns: Range<usize>) -> &mut [f32] {
        let start = row * self.stride + self.at;
        // SAFETY: by this function's contract.
        unsafe { self.values.part(start + columns.start..start + columns.end) }
    }

    /// Asks for the lines of `rows` × `columns`: sums that wait for what they are added to hold up their
    /// products, and stores that wait for their lines hold up what comes after.
    pub(crate) fn ask(&self, rows: Range<usize>, columns: Range<usize>) {
        for row in rows {
            let start = row * self.stride + self.at + columns.start;
            ask(self.values.pointer(start..start + columns.len()), columns.len());
        }
    }

    /// Where `rows` × `columns` starts, and the distance between rows.
    pub(crate) fn block(&self, rows: Range<usize>, columns: Range<usize>) -> (*mut f32, usize) {
        let first = rows.start * self.stride + self.at + columns.start;
        let end = (rows.end - 1) * self.stride + self.at + columns.end;
        (self.values.pointer(first..end), self.stride)
    }
}

/// Asks for `lines`.
pub(crate) fn ask_lines(lines: &[Line]) {
    let values: &[f32] = bytemuck::cast_slice(lines);
    ask(values.as_ptr(), values.len());
}

/// Asks for the lines of `count` values, but for the last if they begin amid a line.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn ask(values: *const f32, count: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    let mut value = 0;
    while value < count {
        // SAFETY: the instruction is part of every x86-64; a hint, it never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(values.wrapping_add(value).cast()) };
        value += LINE;
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn ask(_: *const f32, _: usize) {}
