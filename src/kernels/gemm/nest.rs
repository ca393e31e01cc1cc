//! The loop nest around the register tile: work items, panels, passes along `k`.
#![allow(unsafe_code)]

use std::ops::Range;

use super::{Block, PANEL, Panels, multiply};
use crate::kernels::cpu::Cpu;
use crate::kernels::output::Output;
use crate::kernels::pool::Pool;
use crate::kernels::rows::{piece, pieces};
use crate::kernels::scratch::with_values;

/// Rows of `B` per pass: a panel of 32 KiB, which stays near while row groups pass by; half of that
/// where there is no AVX-512, on machines with 32 KiB of first-level cache for panel and rows.
fn rows_per_pass(cpu: Cpu) -> usize {
    if cpu.avx512 { 256 } else { 128 }
}

/// Rows of `A` per work item, at most: 576 × 256 values are 576 KiB of L2.
const ROWS_PER_ITEM: usize = 576;

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
    let cut = Cut::new(pool, a.m, n.div_ceil(PANEL));
    pool.run(cut.items(), &|item| {
        let (panels, rows) = cut.item(item);
        // SAFETY: items differ in their panels or in their rows, so no two share outputs, and
        // `reach` showed that every element of `A` exists.
        unsafe { work_item(cpu, a, b, panels, rows, c) };
    });
}

/// How a product is cut into work items: row chunks by runs of panels.
struct Cut {
    m: usize,
    panels: usize,
    /// Rows and panels per item.
    rows: usize,
    grain: usize,
}

impl Cut {
    /// Rows are cut first, since the items of one row chunk each copy it; then panels, until every
    /// thread has a few items.
    fn new(pool: &Pool, m: usize, panels: usize) -> Self {
        let row_chunks = m.div_ceil(ROWS_PER_ITEM);
        let columns = (6 * pool.threads()).div_ceil(row_chunks).min(panels);
        let grain = panels.div_ceil(columns);
        let columns = panels.div_ceil(grain);
        let row_chunks = row_chunks.max((3 * pool.threads()).div_ceil(columns));
        let rows = m.div_ceil(row_chunks).next_multiple_of(12).max(24);
        Self { m, panels, rows, grain }
    }

    fn items(&self) -> usize {
        self.m.div_ceil(self.rows) * self.panels.div_ceil(self.grain)
    }

    /// Panels and rows of one item.
    fn item(&self, item: usize) -> (Range<usize>, Range<usize>) {
        let columns = self.panels.div_ceil(self.grain);
        let panels = piece(self.panels, self.grain, item % columns);
        (panels, piece(self.m, self.rows, item / columns))
    }
}

/// Rows that stay near whatever their length; a weight then streams best panel after panel.
const FEW_ROWS: usize = 16;

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
    let (_, k) = b.shape();
    let (few, depth) = (rows.len() <= FEW_ROWS, k.min(rows_per_pass(cpu)));
    let copied = if few { k } else { depth };
    let room =
        if a.wants_copy(rows.len()) { (rows.len() + 2 * PAD) * (copied + 2 * PAD) } else { 0 };
    with_values(room + depth * PANEL + 1024, |scratch| {
        let (copy, scratch) = scratch.split_at_mut(room);
        if few {
            let a = a.part(&rows, &(0..k), copy);
            for (panel, pass) in panels.flat_map(|panel| passes(k, depth).map(move |p| (panel, p)))
            {
                // SAFETY: by this function's contract.
                unsafe { piece_of(cpu, a.skipping(pass.start), b, panel, &rows, pass, scratch, c) };
            }
            return;
        }
        for pass in passes(k, depth) {
            let a = a.part(&rows, &pass, copy);
            for panel in panels.clone() {
                // SAFETY: by this function's contract.
                unsafe { piece_of(cpu, a, b, panel, &rows, pass.clone(), scratch, c) };
            }
        }
    });
}

/// Adds what one pass gives to the outputs of one panel and `rows`; `a` begins with both.
///
/// # Safety
/// As of [`work_item`].
#[allow(clippy::too_many_arguments)]
unsafe fn piece_of(
    cpu: Cpu,
    a: Left<'_>,
    b: &impl Panels,
    panel: usize,
    rows: &Range<usize>,
    pass: Range<usize>,
    scratch: &mut [f32],
    c: &Output<'_>,
) {
    let columns = panel * PANEL..b.shape().0.min((panel + 1) * PANEL);
    let (to, c_row) = c.block(rows.clone(), columns.clone());
    let chunk = b.panel(cpu, panel, pass.clone(), scratch);
    assert!(chunk.len() >= pass.len() * PANEL, "a panel has 32 columns");
    let block = Block {
        a: a.values.as_ptr(),
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
    // SAFETY: `A` by this function's contract, the chunk was measured, and the outputs are checked by
    // `block` and this item's own.
    unsafe { multiply(cpu, &block) };
}

/// Values between copied rows, so that they do not share cache sets.
const PAD: usize = 16;

impl<'a> Left<'a> {
    /// Whether the elements lie so that a tile's reads would evict each other: columns far apart,
    /// or rows a multiple of 4 KiB apart.
    fn wants_copy(&self, rows: usize) -> bool {
        rows > 4 && if self.step == 1 { self.row.is_multiple_of(1024) } else { self.step > 64 }
    }

    /// What begins with column `k`.
    fn skipping(self, k: usize) -> Self {
        Self { values: &self.values[(k * self.step).min(self.values.len())..], ..self }
    }

    /// The elements `rows` × `pass`, copied into `copy` if need be.
    fn part<'c>(self, rows: &Range<usize>, pass: &Range<usize>, copy: &'c mut [f32]) -> Left<'c>
    where
        'a: 'c,
    {
        let first = rows.start * self.row + pass.start * self.step;
        let from = &self.values[first.min(self.values.len())..];
        if !self.wants_copy(rows.len()) {
            return Left { values: from, ..self };
        }
        let (outer, inner, stride) = match self.step {
            1 => (rows.len(), pass.len(), self.row),
            _ => (pass.len(), rows.len(), self.step),
        };
        let pitch = inner.next_multiple_of(PAD) + PAD;
        for i in 0..outer {
            copy[i * pitch..i * pitch + inner].copy_from_slice(&from[i * stride..][..inner]);
        }
        match self.step {
            1 => Left { values: copy, row: pitch, ..self },
            _ => Left { values: copy, step: pitch, ..self },
        }
    }
}

/// The passes along `k`; an empty sum still writes its zeros.
fn passes(k: usize, depth: usize) -> impl Iterator<Item = Range<usize>> {
    let empty = (k == 0).then_some(0..0);
    empty.into_iter().chain(pieces(0..k, depth.max(1)))
}
