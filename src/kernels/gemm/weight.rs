//! A frozen weight in `f32`.

use std::ops::Range;

use super::{PANEL, Panels};
use crate::kernels::cpu::Cpu;
use crate::kernels::line::{self, Lines};
use crate::kernels::pool::Pool;
use crate::kernels::split::{PerItem, split};
use crate::kernels::values::Values;

/// A weight `(n, k)` in panels of 32 outputs (`n` padded with zeros); in a panel, column after
/// column, 32 values each: two lines, so that one load advances sixteen outputs by one column.
#[derive(Debug)]
pub struct PackedF32 {
    n: usize,
    k: usize,
    lines: Lines,
}

impl PackedF32 {
    /// Packs `weights (n, k)`, row-major, on the threads of `pool`, into `room` of so many zero
    /// lines.
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
        let (cpu, panels) = (Cpu::detect(), n.div_ceil(PANEL));
        let mut lines = room(panels * k * 2);
        let out = PerItem::new(line::values_mut(&mut lines), k * PANEL);
        split(pool, panels, PANEL * k, out, |panels, to| {
            for (panel, to) in panels.zip(to.chunks_exact_mut((k * PANEL).max(1))) {
                let rows = panel * PANEL..n.min((panel + 1) * PANEL);
                let mut values = vec![0.0; rows.len() * k];
                weights.read(rows.start * k, &mut values);
                super::Columns { values: &values, n: rows.len(), k }.panel(cpu, 0, 0..k, to);
            }
        });
        Self { n, k, lines }
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

    /// Row `row` of the weight.
    ///
    /// # Panics
    /// If `to` does not hold `k` values or there is no such row.
    pub fn row(&self, row: usize, to: &mut [f32]) {
        assert!(row < self.n && to.len() == self.k, "a row of the weight has k values");
        let values = &line::values(&self.lines)[row / PANEL * self.k * PANEL..];
        for (to, column) in to.iter_mut().zip(values.chunks_exact(PANEL)) {
            *to = column[row % PANEL];
        }
    }
}

impl Panels for PackedF32 {
    fn shape(&self) -> (usize, usize) {
        (self.n, self.k)
    }

    fn panel<'a>(&'a self, _: Cpu, panel: usize, k: Range<usize>, _: &'a mut [f32]) -> &'a [f32] {
        let start = panel * self.k;
        &line::values(&self.lines)[(start + k.start) * PANEL..(start + k.end) * PANEL]
    }
}
