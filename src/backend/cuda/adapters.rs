//! Adapters: one by one, over a batch, and trained.

use std::ops::Range;

use super::memory::Memory;
use super::products::{Finish, Side};
use super::source::{Layout, Module};
use super::weight::{dense, matrix};
use super::{CudaBackend, CudaRows, float};
use crate::backend::{LowRankPart, LowRankShape};

/// What multiplies with matrices of an adapter, which are in `f32`.
const DENSE: Module = Module::Product(Layout::F32);

/// `A (r, in)`, then `B (out, r)`, as a batch reads them.
#[derive(Debug)]
pub struct CudaLowRank {
    memory: Memory,
    shape: LowRankShape,
}

impl CudaLowRank {
    pub(super) fn bytes(&self) -> usize {
        let LowRankShape { rank, in_features, out_features } = self.shape;
        rank * (in_features + out_features) * size_of::<f32>()
    }
}

/// `y = alpha · W x`.
fn scaled(alpha: f32) -> Finish<'static> {
    Finish { alpha, bias: None, add: false }
}

impl CudaBackend {
    /// See [`Backend::pack_low_rank`](crate::backend::Backend::pack_low_rank).
    pub(super) fn packed_low_rank(&self, a: &[f32], b: &[f32], shape: LowRankShape) -> CudaLowRank {
        assert_eq!(a.len(), shape.rank * shape.in_features, "A holds r times in values");
        assert_eq!(b.len(), shape.out_features * shape.rank, "B holds out times r values");
        let memory = self.memory(size_of_val(a) + size_of_val(b));
        super::done(self.machine.write(memory.at, bytemuck::cast_slice(a)));
        let after = memory.at + size_of_val(a) as u64;
        super::done(self.machine.write(after, bytemuck::cast_slice(b)));
        CudaLowRank { memory, shape }
    }

    /// See [`Backend::add_low_ranks`](crate::backend::Backend::add_low_ranks).
    pub(super) fn low_ranks(
        &self,
        x: &CudaRows,
        parts: &[LowRankPart<'_, CudaLowRank>],
        y: &CudaRows,
    ) {
        let (mut entries, mut inner) = (Vec::<[u64; 8]>::new(), 0);
        let (mut widest, mut longest) = (0, 0);
        for part in parts {
            let LowRankShape { rank, in_features, out_features } = part.weights.shape;
            assert!(in_features == x.width && part.rows.end <= x.rows.min(y.rows));
            assert!(part.at + out_features <= y.width, "the product must fit into y");
            let a = part.weights.memory.at;
            let b = a + (rank * in_features * size_of::<f32>()) as u64;
            let (scale, rank, at) = (float(part.scale), rank as u64, part.at as u64);
            for row in part.rows.clone() {
                entries.push([a, b, row as u64, rank, out_features as u64, at, inner, scale]);
                inner += rank;
            }
            (widest, longest) = (widest.max(rank as usize), longest.max(out_features));
        }
        if entries.is_empty() {
            return;
        }
        let z = self.rows(1, inner as usize);
        let (list, count) = (self.table(entries.as_flattened()), entries.len());
        let args = [list, count as u64, x.at(), x.width as u64, z.at(), y.at(), y.width as u64];
        let (down, up) = (widest.div_ceil(8), longest.div_ceil(super::THREADS));
        self.launch(Module::LowRank, "low_rank_down", [count, down], &args);
        self.launch(Module::LowRank, "low_rank_up", [count, up], &args);
    }

    /// See [`Backend::add_low_rank`](crate::backend::Backend::add_low_rank).
    #[allow(clippy::too_many_arguments)]
    pub(super) fn low_rank(
        &self,
        x: &CudaRows,
        rows: Range<usize>,
        a: &CudaRows,
        b: &CudaRows,
        scaling: f32,
        y: &CudaRows,
        at: usize,
    ) {
        let z = self.rows(rows.len(), a.rows);
        let from = Side { first: x.row(rows.start), rows: rows.len(), width: x.width, at: 0 };
        assert!(rows.end <= x.rows.min(y.rows), "the rows must lie in x and y");
        let down = dense(a.at(), a.rows, a.width);
        self.product(DENSE, down, from, Side::all(&z), scaled(1.0));
        let to = Side { first: y.row(rows.start), rows: rows.len(), width: y.width, at };
        let add = Finish { add: true, ..scaled(scaling) };
        self.product(DENSE, matrix(b), Side::all(&z), to, add);
    }

    /// See [`Backend::low_rank_backward`](crate::backend::Backend::low_rank_backward).
    #[allow(clippy::too_many_arguments)]
    pub(super) fn low_rank_gradients(
        &self,
        dy: Side,
        x: &CudaRows,
        a: &CudaRows,
        b: &CudaRows,
        scaling: f32,
        da: &CudaRows,
        db: &CudaRows,
        dx: &CudaRows,
    ) {
        let (z, dz) = (self.rows(x.rows, a.rows), self.rows(x.rows, a.rows));
        self.product(DENSE, matrix(a), Side::all(x), Side::all(&z), scaled(1.0));
        self.product_transposed(DENSE, matrix(b), dy, &dz, scaling, false);
        self.outer(dy, &z, scaling, db);
        self.outer(Side::all(&dz), x, 1.0, da);
        self.product_transposed(DENSE, matrix(a), Side::all(&dz), dx, 1.0, true);
    }
}
