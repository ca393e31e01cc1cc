//! Frozen weights in half precision: stored as they are, widened to `f32` panels on the way.

use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::kernels::cpu::Cpu;
use crate::kernels::gemm::{PANEL, Panels};
use crate::kernels::pool::Pool;
use crate::kernels::split::{PerItem, split};

/// A weight `(n, k)` in panels of 32 outputs (`n` padded with zeros); in a panel, column after
/// column, 32 values each.
#[derive(Debug)]
pub struct PackedF16 {
    n: usize,
    k: usize,
    values: Vec<f16>,
}

impl PackedF16 {
    /// Packs `weights (n, k)`, row-major, each rounded to the nearest half.
    ///
    /// # Panics
    /// If the slice does not hold `n · k` values.
    pub fn pack(pool: &Pool, weights: &[f32], n: usize, k: usize) -> Self {
        assert_eq!(weights.len(), n * k, "weights must hold n · k values");
        let panels = n.div_ceil(PANEL);
        let mut values = vec![f16::ZERO; panels * k * PANEL];
        let out = PerItem::new(&mut values, k * PANEL);
        split(pool, panels, PANEL * k, out, |panels, to| {
            for (panel, to) in panels.zip(to.chunks_exact_mut(k * PANEL)) {
                for row in panel * PANEL..n.min((panel + 1) * PANEL) {
                    let columns = to.chunks_exact_mut(PANEL).zip(&weights[row * k..(row + 1) * k]);
                    columns.for_each(|(to, &weight)| to[row % PANEL] = f16::from_f32(weight));
                }
            }
        });
        Self { n, k, values }
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
        size_of_val(&self.values[..])
    }

    /// The weight at `row`, `column`.
    pub fn weight(&self, row: usize, column: usize) -> f32 {
        self.values[(row / PANEL * self.k + column) * PANEL + row % PANEL].to_f32()
    }
}

impl Panels for PackedF16 {
    fn shape(&self) -> (usize, usize) {
        (self.n, self.k)
    }

    fn panel<'a>(&'a self, _: Cpu, panel: usize, k: Range<usize>, to: &'a mut [f32]) -> &'a [f32] {
        let start = panel * self.k;
        let from = &self.values[(start + k.start) * PANEL..(start + k.end) * PANEL];
        let to = &mut to[..from.len()];
        from.convert_to_f32_slice(to);
        to
    }
}
