//! A frozen weight in `f32`.

use std::ops::Range;

use super::{PANEL, Panels};
use crate::kernels::cpu::Cpu;
use crate::kernels::line::{self, Lines};

/// A weight `(n, k)` in panels of 32 outputs (`n` padded with zeros); in a panel, column after
/// column, 32 values each: two lines, so that one load advances sixteen outputs by one column.
#[derive(Debug)]
pub struct PackedF32 {
    n: usize,
    k: usize,
    lines: Lines,
}

impl PackedF32 {
    /// Packs `weights (n, k)`, row-major.
    ///
    /// # Panics
    /// If the slice does not hold `n · k` values.
    pub fn pack(weights: &[f32], n: usize, k: usize) -> Self {
        assert_eq!(weights.len(), n * k, "weights must hold n · k values");
        let mut lines = line::zeroed(n.div_ceil(PANEL) * k * 2);
        let (cpu, source) = (Cpu::detect(), super::Columns { values: weights, n, k });
        let panels = line::values_mut(&mut lines).chunks_exact_mut((k * PANEL).max(1));
        for (panel, to) in panels.enumerate() {
            source.panel(cpu, panel, 0..k, to);
        }
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
