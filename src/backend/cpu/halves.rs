//! Rows put by in half their size, and brought back.

use super::{CpuBackend, CpuRows};
use crate::kernels::cpu::Cpu;
use crate::kernels::elementwise;
use crate::kernels::split::{PerItem, split};

impl CpuBackend {
    /// [`crate::backend::Backend::halve`].
    pub(super) fn rounded_halves(&mut self, x: &CpuRows) -> CpuRows {
        self.each_row(x, x.width.div_ceil(2), elementwise::halve)
    }

    /// [`crate::backend::Backend::widen`].
    pub(super) fn out_of_halves(&mut self, x: &CpuRows, width: usize) -> CpuRows {
        assert_eq!(x.width, width.div_ceil(2), "rows of this width have so many words");
        self.each_row(x, width, elementwise::widen)
    }

    /// A matrix of `width`, each of its rows written from that of `x`.
    fn each_row(
        &mut self,
        x: &CpuRows,
        width: usize,
        task: fn(Cpu, &[f32], &mut [f32]),
    ) -> CpuRows {
        let mut to = self.free.take(x.rows, width);
        let (cpu, from) = (self.cpu, x.width.max(1));
        let out = PerItem::new(to.values_mut(), width);
        split(&self.pool, x.rows, x.width + width, out, |rows, to| {
            let rows = x.values()[rows.start * x.width..rows.end * x.width].chunks_exact(from);
            rows.zip(to.chunks_exact_mut(width.max(1))).for_each(|(row, to)| task(cpu, row, to));
        });
        to
    }
}
