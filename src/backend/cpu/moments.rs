//! AdamW, over moments on the device or in the host's memory, 8-bit ones block by block.

use std::ops::Range;

use super::pieces::PIECE;
use super::{CpuBackend, CpuRows};
use crate::backend::{AdamStep, HostMoments, Moments8};
use crate::kernels::split::{PerItem, split};
use crate::kernels::{dynamic, optimiser};

impl CpuBackend {
    /// See [`Backend::adamw`](crate::backend::Backend::adamw).
    pub(super) fn step(
        &mut self,
        p: &mut CpuRows,
        g: &CpuRows,
        m: &mut CpuRows,
        v: &mut CpuRows,
        step: &AdamStep,
    ) {
        let (adam, cpu, g) = (step.factors(), self.cpu, g.values());
        assert!(p.values().len() == g.len() && m.values().len() == g.len());
        assert_eq!(v.values().len(), g.len(), "moments have the size of the parameter");
        let count = g.len().div_ceil(PIECE);
        let out = (
            PerItem::new(p.values_mut(), PIECE),
            PerItem::new(m.values_mut(), PIECE),
            PerItem::new(v.values_mut(), PIECE),
        );
        split(&self.pool, count, 4 * PIECE, out, |pieces, (p, m, v)| {
            let g = &g[pieces.start * PIECE..pieces.start * PIECE + p.len()];
            optimiser::adamw(cpu, adam, p, g, m, v);
        });
    }

    /// See [`Backend::adamw_on_host`](crate::backend::Backend::adamw_on_host).
    pub(super) fn step_on_host(
        &mut self,
        p: &mut CpuRows,
        g: &CpuRows,
        moments: HostMoments<'_>,
        step: &AdamStep,
    ) {
        let (adam, cpu, g) = (step.factors(), self.cpu, g.values());
        assert_eq!(p.values().len(), g.len(), "a gradient has the size of its parameter");
        const BLOCK: usize = dynamic::BLOCK;
        let (blocks, p) = (g.len().div_ceil(BLOCK), PerItem::new(p.values_mut(), BLOCK));
        let of = |items: &Range<usize>, p: &[f32]| {
            let start = items.start * BLOCK;
            start..start + p.len()
        };
        match moments {
            HostMoments::F32 { first, second } => {
                assert!(first.len() == g.len() && second.len() == g.len());
                let out = (p, PerItem::new(first, BLOCK), PerItem::new(second, BLOCK));
                split(&self.pool, blocks, 4 * BLOCK, out, |items, (p, m, v)| {
                    optimiser::adamw(cpu, adam, p, &g[of(&items, p)], m, v);
                });
            }
            HostMoments::Bits8(state) => {
                assert!(state.first.len() == g.len() && state.second.len() == g.len());
                let codes = (PerItem::new(state.first, BLOCK), PerItem::new(state.second, BLOCK));
                let absmax =
                    (PerItem::new(state.first_absmax, 1), PerItem::new(state.second_absmax, 1));
                split(&self.pool, blocks, 32 * BLOCK, (p, codes, absmax), |items, out| {
                    let (p, (first, second), (first_absmax, second_absmax)) = out;
                    let state = Moments8 { first, second, first_absmax, second_absmax };
                    optimiser::adamw8(cpu, adam, p, &g[of(&items, p)], state);
                });
            }
        }
    }
}
