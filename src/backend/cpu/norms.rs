//! The backward of a norm: of its input, then of its weight and bias.

use super::{CpuBackend, CpuRows, specs};
use crate::backend::Norm;
use crate::kernels::norm;
use crate::kernels::split::{PerItem, split};

impl CpuBackend {
    /// [`crate::backend::Backend::norm_backward`].
    pub(super) fn norm_gradients(
        &mut self,
        dy: &CpuRows,
        x: &CpuRows,
        norm: &Norm<CpuRows>,
        dx: &mut CpuRows,
        dweight: Option<&mut CpuRows>,
        dbias: Option<&mut CpuRows>,
    ) {
        let (width, row, cpu) = (x.width, specs::norm(norm), self.cpu);
        assert_eq!((dy.rows, dx.rows, dy.width, dx.width), (x.rows, x.rows, width, width));
        let (rows, x, dy) = (x.rows, x.values(), dy.values());
        self.work.moments.resize(rows, [0.0; 2]);
        let moments = PerItem::new(&mut self.work.moments, 1);
        let out = (PerItem::new(dx.values_mut(), width), moments);
        split(&self.pool, rows, 3 * width, out, |rows, (dx, moments)| {
            let values = rows.start * width..rows.end * width;
            norm::backward(cpu, &dy[values.clone()], &x[values], row, dx, moments);
        });
        if dweight.is_none() && dbias.is_none() {
            return;
        }
        let moments = &self.work.moments;
        let dw = PerItem::new(dweight.map_or(&mut [], |dw| dw.values_mut()), 16);
        let db = PerItem::new(dbias.map_or(&mut [], |db| db.values_mut()), 16);
        split(&self.pool, width.div_ceil(16), 16 * rows, (dw, db), |lines, (dw, db)| {
            norm::weight_gradient(cpu, dy, x, moments, width, lines.start * 16, dw, db);
        });
    }
}
