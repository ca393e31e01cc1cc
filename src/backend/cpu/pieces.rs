//! Elementwise work cut into pieces for the pool.

use std::ops::Range;

use super::CpuBackend;
use crate::kernels::split::{PerItem, split};

/// Values that elementwise work takes at a time, at least.
pub(super) const PIECE: usize = 64;

impl CpuBackend {
    /// Calls `task` with pieces of `x` and the same pieces of `y`.
    pub(super) fn zip(&self, x: &[f32], y: &mut [f32], task: impl Fn(&[f32], &mut [f32]) + Sync) {
        assert_eq!(x.len(), y.len(), "both matrices must have the same size");
        self.pieces(y, |range, y| task(&x[range], y));
    }

    /// Calls `task` with pieces of `x` and where they lie.
    pub(super) fn pieces(&self, x: &mut [f32], task: impl Fn(Range<usize>, &mut [f32]) + Sync) {
        let count = x.len().div_ceil(PIECE);
        split(&self.pool, count, PIECE, PerItem::new(x, PIECE), |pieces, x| {
            task(pieces.start * PIECE..pieces.start * PIECE + x.len(), x);
        });
    }
}
