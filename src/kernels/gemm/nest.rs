//! The loop nest around the register tile: work items, panels, passes along `k`.
#![allow(unsafe_code)]

use std::ops::Range;

use super::{Block, PANEL, Panels, multiply};
use crate::kernels::cpu::Cpu;
use crate::kernels::output::Output;
use crate::kernels::pool::Pool;
use crate::kernels::rows::{piece, pieces};
use crate::kernels::scratch::with_values;

/// Rows of `B` per pass: a panel of 64 KiB, which streams from L2 while row groups pass by.
const K_PER_PASS: usize = 512;

/// Rows of `A` per work item, at most: 288 × 512 values are 576 KiB of L2.
const ROWS_PER_ITEM: usize = 288;

/// The left operand `A (m, k)`: element `(i, p)` is `values[i · row + p · step]`.
#[derive(Clone, Copy, Debug)]
pub struct Left<'a> {
    pub values: &'a [f32],
    pub m: usize,
    pub row: usize,
    pub step: usize,
}

impl<'a> Left<'a> {
    /// `m` rows of `stride` values, from column `at` on.
    pub fn rows(values: &'a [f32], m: usize, stride: usize, at: usize) -> Self {
        Self { values: &values[at.min(values.len())..], m, row: stride, step: 1 }
    }

    /// The transpose of columns `at .. at + m` of rows of `stride` values.
    pub fn columns(values: &'a [f32], m: usize, stride: usize, at: usize) -> Self {
        Self { values: &values[at.min(values.len())..], m, row: 1, step: stride }
    }
}

/// `C = A · B`, or `C += A · B` if the output says so.
///
/// # Panics
/// If the shapes do not fit.
pub fn gemm(cpu: Cpu, pool: &Pool, a: Left<'_>, b: &impl Panels, c: &Output<'_>) {
    let (n, k) = b.shape();
    if a.m == 0 || n == 0 {
        return;
    }
    c.check(a.m, n);
    let reach = if k == 0 { 0 } else { (a.m - 1) * a.row + (k - 1) * a.step + 1 };
    assert!(reach <= a.values.len(), "A must hold m · k values");
    let panels = n.div_ceil(PANEL);
    let grain = pool.grain(panels, 4);
    let columns = panels.div_ceil(grain);
    let rows = rows_per_item(a.m, columns, pool.threads());
    pool.run(columns * a.m.div_ceil(rows), &|item| {
        let panels = piece(panels, grain, item % columns);
        let rows = piece(a.m, rows, item / columns);
        // SAFETY: items differ in their panels or in their rows, so no two share outputs, and
        // `reach` showed that every element of `A` exists.
        unsafe { work_item(cpu, a, b, panels, rows, c) };
    });
}

/// Enough items for every thread, in whole row groups.
fn rows_per_item(m: usize, columns: usize, threads: usize) -> usize {
    let wanted = (4 * threads).div_ceil(columns);
    m.div_ceil(wanted).next_multiple_of(12).clamp(24, ROWS_PER_ITEM)
}

/// Fills the outputs of `panels` × `rows`.
///
/// # Safety
/// No other thread may touch those outputs meanwhile; `A` must hold all its elements.
unsafe fn work_item(
    cpu: Cpu,
    a: Left<'_>,
    b: &impl Panels,
    panels: Range<usize>,
    rows: Range<usize>,
    c: &Output<'_>,
) {
    let (n, k) = b.shape();
    with_values(k.min(K_PER_PASS) * PANEL + 1024, |scratch| {
        for panel in panels {
            let columns = panel * PANEL..n.min((panel + 1) * PANEL);
            let (to, c_row) = c.block(rows.clone(), columns.clone());
            for pass in passes(k) {
                let chunk = b.panel(cpu, panel, pass.clone(), scratch);
                assert!(chunk.len() >= pass.len() * PANEL, "a panel has 32 columns");
                let block = Block {
                    a: a.values.as_ptr().wrapping_add(rows.start * a.row + pass.start * a.step),
                    a_row: a.row,
                    a_step: a.step,
                    b: chunk.as_ptr(),
                    b_row: PANEL,
                    k: pass.len(),
                    c: to,
                    c_row,
                    rows: rows.len(),
                    columns: columns.len(),
                    add: c.add || pass.start > 0,
                };
                // SAFETY: `A` by this function's contract, the chunk was measured, and the
                // outputs are checked by `block` and this item's own.
                unsafe { multiply(cpu, &block) };
            }
        }
    });
}

/// The passes along `k`; an empty sum still writes its zeros.
fn passes(k: usize) -> impl Iterator<Item = Range<usize>> {
    let empty = (k == 0).then_some(0..0);
    empty.into_iter().chain(pieces(0..k, K_PER_PASS))
}
