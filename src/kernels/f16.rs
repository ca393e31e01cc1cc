//! Frozen weights in half precision: stored as they are, widened to `f32` panels on the way.

use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::kernels::cpu::Cpu;
use crate::kernels::gemm::{PANEL, Panels};
use crate::kernels::line::Lines;
use crate::kernels::pool::Pool;
use crate::kernels::split::{PerItem, split};
use crate::kernels::values::Values;

/// Columns that are packed for all rows of a panel before the next.
const PIECE: usize = 128;

/// A weight `(n, k)` in panels of 32 outputs (`n` padded with zeros); in a panel, column after
/// column, 32 values each.
#[derive(Debug)]
pub struct PackedF16 {
    n: usize,
    k: usize,
    lines: Lines,
}

impl PackedF16 {
    /// Packs `weights (n, k)`, row-major, each rounded to the nearest half, on the threads of
    /// `pool`, into `room` of so many zero lines.
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
        let panels = n.div_ceil(PANEL);
        let mut lines = room(panels * k);
        let out = PerItem::new(bytemuck::cast_slice_mut::<_, f16>(&mut lines), k * PANEL);
        split(pool, panels, PANEL * k, out, |panels, to| {
            for (panel, to) in panels.zip(to.chunks_exact_mut((k * PANEL).max(1))) {
                let rows = panel * PANEL..n.min((panel + 1) * PANEL);
                for (i, to) in to.chunks_mut(PIECE * PANEL).enumerate() {
                    let columns = i * PIECE..k.min((i + 1) * PIECE);
                    for (lane, row) in rows.clone().enumerate() {
                        let mut values = [0.0; PIECE];
                        let values = &mut values[..columns.len()];
                        weights.read(row * k + columns.start, values);
                        let to = to.chunks_exact_mut(PANEL).map(|column| &mut column[lane]);
                        to.zip(values).for_each(|(to, value)| *to = f16::from_f32(*value));
                    }
                }
            }
        });
        Self { n, k, lines }
    }

    /// All values, panel after panel.
    fn values(&self) -> &[f16] {
        bytemuck::cast_slice(&self.lines)
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
        self.values()[(row / PANEL * self.k + column) * PANEL + row % PANEL].to_f32()
    }
}

impl Panels for PackedF16 {
    fn shape(&self) -> (usize, usize) {
        (self.n, self.k)
    }

    fn panel<'a>(&'a self, _: Cpu, panel: usize, k: Range<usize>, to: &'a mut [f32]) -> &'a [f32] {
        let start = panel * self.k;
        let from = &self.values()[(start + k.start) * PANEL..(start + k.end) * PANEL];
        let to = &mut to[..from.len()];
        from.convert_to_f32_slice(to);
        to
    }
}
