//! Columns of a product scaled, each by its own factor: DoRA's half of an adapter.

use std::ops::Range;

use super::{CpuBackend, CpuRows};
use crate::kernels::elementwise;
use crate::kernels::split::{PerItem, split};

impl CpuBackend {
    /// See [`Backend::scale_columns`](crate::backend::Backend::scale_columns).
    pub(super) fn stretch_columns(
        &mut self,
        y: &mut CpuRows,
        rows: Range<usize>,
        at: usize,
        factor: &CpuRows,
        strength: f32,
        bias: Option<&CpuRows>,
    ) {
        let (out, stride) = (factor.width, y.width);
        assert!(at + out <= stride && rows.end <= y.rows, "the columns leave y");
        let (cpu, factor) = (self.cpu, factor.values());
        let y = &mut y.values_mut()[rows.start * stride..rows.end * stride];
        split(&self.pool, rows.len(), out, PerItem::new(y, stride), |_, y| {
            for y in y.chunks_exact_mut(stride) {
                let bias = bias.map_or(&[][..], |bias| bias.values());
                elementwise::stretch(cpu, factor, bias, strength, &mut y[at..at + out]);
            }
        });
    }

    /// See [`Backend::scale_columns_backward`](crate::backend::Backend::scale_columns_backward).
    #[allow(clippy::too_many_arguments)]
    pub(super) fn stretch_columns_backward(
        &mut self,
        dy: &CpuRows,
        at: usize,
        u: &CpuRows,
        factor: &CpuRows,
        norm: &CpuRows,
        du: &mut CpuRows,
        dmagnitude: &mut CpuRows,
    ) {
        let (t, out, stride) = (u.rows, u.width, dy.width);
        assert!(at + out <= stride && dy.rows == t, "the columns leave dy");
        assert_eq!((du.rows, du.width, dmagnitude.width), (t, out, out));
        let (cpu, dy) = (self.cpu, dy.values());
        let (norm, factor) = (norm.values(), factor.values());
        split(&self.pool, t, out, PerItem::new(du.values_mut(), out), |rows, du| {
            for (row, du) in rows.zip(du.chunks_exact_mut(out)) {
                elementwise::product(cpu, &dy[row * stride + at..][..out], factor, du);
            }
        });
        let (u, dm) = (u.values(), PerItem::new(dmagnitude.values_mut(), 16));
        split(&self.pool, out.div_ceil(16), 16 * t, dm, |lines, dm| {
            let from = lines.start * 16;
            let norm = &norm[from..from + dm.len()];
            elementwise::column_dots(cpu, (dy, stride, at + from), (u, out, from), norm, dm);
        });
    }
}
