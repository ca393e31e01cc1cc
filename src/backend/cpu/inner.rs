//! What lies between the MLP's projections, forward and backward.

use super::ops::span;
use super::{CpuBackend, CpuRows, specs};
use crate::backend::Activation;
use crate::kernels::mlp;
use crate::kernels::split::{PerItem, split};

impl CpuBackend {
    /// [`crate::backend::Backend::mlp_inner`].
    pub(super) fn activate(
        &mut self,
        up: &CpuRows,
        kind: Activation,
        gated: bool,
        u: &mut CpuRows,
    ) {
        let began = self.stages.begin();
        let (width, ff, cpu, kind) = (up.width, u.width, self.cpu, specs::act(kind));
        assert_eq!((width, u.rows), (ff * (1 + usize::from(gated)), up.rows));
        split(&self.pool, up.rows, 8 * ff, PerItem::new(u.values_mut(), ff), |rows, u| {
            let x = &up.values()[span(&rows, width)];
            match gated {
                true => mlp::gated(cpu, kind, x, ff, u),
                false => mlp::activate(cpu, kind, x, u),
            }
        });
        self.stages.end(
            began,
            "mlp inner",
            (0, 0),
            (size_of_val(up.values()) + size_of_val(u.values()), 0),
        );
    }

    /// [`crate::backend::Backend::mlp_inner_backward`].
    pub(super) fn activate_backward(
        &mut self,
        du: &CpuRows,
        up: &CpuRows,
        kind: Activation,
        gated: bool,
        dup: &mut CpuRows,
    ) {
        let (width, ff, cpu, kind) = (up.width, du.width, self.cpu, specs::act(kind));
        assert_eq!((width, dup.width), (ff * (1 + usize::from(gated)), width));
        let out = PerItem::new(dup.values_mut(), width);
        split(&self.pool, up.rows, 8 * ff, out, |rows, dx| {
            let (du, x) = (&du.values()[span(&rows, ff)], &up.values()[span(&rows, width)]);
            match gated {
                true => mlp::gated_backward(cpu, kind, du, x, ff, dx),
                false => mlp::activate_backward(cpu, kind, du, x, dx),
            }
        });
    }
}
