//! Projections in training, with the adapter every row wears, as sums of bf16 products.
//!
//! Of a projection's linear layers, `z = scaling · x Aᵀ` is formed for all at once; `B z` then joins
//! the frozen product of each as one more term of the same tile, so that `y` is written once. The
//! backward does likewise: `dx = Σ dy W + dz A` is one sum, with `dz = scaling · dy B`, and the
//! gradients are `dA = dzᵀ x` and `dBᵀ = zᵀ dy`. Hu et al. 2021, "LoRA", section 4.1.
//!
//! Where the weights do not compute in bf16 the operations of the waist are called one by one.

use super::{CpuBackend, CpuRows, CpuWeight};
use crate::backend::{LowRank, LowRankGradient, Part, one_by_one};
use crate::kernels::bf16::{
    Bf16Rows, Matrix, Panels, RoundedColumns, RoundedRows, Term, Transposed, gemm, gemm_sum,
};
use crate::kernels::elementwise;
use crate::kernels::nf4::Dequantized;
use crate::kernels::output::Output;
use crate::kernels::split::{PerItem, split};

/// Operands that a sum of products may need beside the first: up to three linear layers' share,
/// and one.
pub(super) const OPERANDS: usize = 4;

/// Rows per piece of work that turns a matrix.
const TURNED: usize = 16;

type PartOf<'a> = Part<'a, CpuBackend>;

impl CpuWeight {
    /// The weight as a right operand in bf16, and the same for `dy · W`; none where the format
    /// computes otherwise.
    /// Four bits are written out as bf16 panels, as bitsandbytes does it: a panel serves many rows,
    /// and the product of bf16 has registers to spare that the fused one has not.
    fn panels(&self) -> Option<Box<dyn Panels + '_>> {
        match self {
            Self::Bf16(w) => Some(Box::new(w)),
            Self::Nf4(w) if !w.is_exact() => Some(Box::new(Dequantized(w))),
            _ => None,
        }
    }

    fn turned(&self) -> Box<dyn Panels + '_> {
        match self {
            Self::Bf16(w) => Box::new(Transposed(w)),
            Self::Nf4(w) => Box::new(Transposed(Dequantized(w))),
            _ => unreachable!("only weights with bf16 panels are turned"),
        }
    }
}

/// The adapters of a projection's parts.
fn low_ranks<'p>(parts: &'p [PartOf<'_>]) -> impl Iterator<Item = &'p LowRank<'p, CpuRows>> {
    parts.iter().filter_map(|part| part.low_rank.as_ref())
}

/// Each part that has an adapter, with its first column in `z`.
fn places<'p, 'a>(
    parts: &'p [PartOf<'a>],
) -> impl Iterator<Item = (usize, &'p LowRank<'a, CpuRows>, usize)> {
    let mut at = 0;
    parts.iter().enumerate().filter_map(move |(number, part)| {
        let low_rank = part.low_rank.as_ref()?;
        at += low_rank.a.rows;
        Some((number, low_rank, at - low_rank.a.rows))
    })
}

impl CpuBackend {
    /// Whether sums of bf16 products can be formed over these parts.
    fn adapts_in_bf16(&self, parts: &[PartOf<'_>]) -> bool {
        let fits =
            parts.len() < OPERANDS && parts.iter().all(|part| part.weight.panels().is_some());
        self.cpu.has_bf16() && fits
    }

    pub(super) fn project_adapted(&mut self, x: &CpuRows, parts: &[PartOf<'_>], y: &mut CpuRows) {
        if !self.adapts_in_bf16(parts) {
            return one_by_one::project(self, x, parts, y);
        }
        let (m, k, stride) = (x.rows, x.width, y.width);
        let (cpu, mut packed) = (self.cpu, std::mem::take(&mut self.work.bf16));
        packed.pack(cpu, &self.pool, x.values(), (m, k), (k, 0));
        let z = self.shrink(&packed, parts);
        let mut at = 0;
        for part in parts {
            let bias = part.bias.map(CpuRows::values);
            fill_bias(bias, y.values_mut(), stride, part.at);
            let frozen = part.weight.panels().expect("asked above");
            let output = Output::new(y.values_mut(), stride, part.at).adding(bias.is_some());
            let Some(LowRank { b, .. }) = &part.low_rank else {
                gemm(cpu, &self.pool, &packed, &*frozen, &output);
                continue;
            };
            let (own, r) = (&mut self.work.more[0], b.width);
            own.pack(cpu, &self.pool, z.values(), (m, r), (z.width, at));
            at += r;
            let b = [b.values()];
            let up = RoundedColumns(Matrix::stacked(&b, r));
            gemm_sum(cpu, &self.pool, &[(&packed, &*frozen), (own, &up)], &output);
        }
        self.free.give(z);
        self.work.bf16 = packed;
    }

    /// `z = scaling · x Aᵀ (t, Σ r)` of all parts side by side.
    fn shrink(&mut self, x: &Bf16Rows, parts: &[PartOf<'_>]) -> CpuRows {
        let a: Vec<&[f32]> = low_ranks(parts).map(|low_rank| low_rank.a.values()).collect();
        let ranks = low_ranks(parts).map(|low_rank| low_rank.a.rows).sum();
        let mut z = self.free.take(x.rows(), ranks);
        let a = RoundedColumns(Matrix::stacked(&a, x.k()));
        gemm(self.cpu, &self.pool, x, &a, &Output::new(z.values_mut(), ranks, 0));
        self.scale_places(parts, &mut z);
        z
    }

    /// Multiplies each part's columns of `z` by its scaling.
    fn scale_places(&self, parts: &[PartOf<'_>], z: &mut CpuRows) {
        let (cpu, ranks) = (self.cpu, z.width);
        for row in z.values_mut().chunks_exact_mut(ranks.max(1)) {
            for (_, low_rank, at) in places(parts) {
                elementwise::scale(cpu, low_rank.scaling, &mut row[at..at + low_rank.a.rows]);
            }
        }
    }

    pub(super) fn project_adapted_backward(
        &mut self,
        dy: &CpuRows,
        x: &CpuRows,
        parts: &[PartOf<'_>],
        gradients: &mut [Option<LowRankGradient<'_, CpuRows>>],
        dx: Option<&mut CpuRows>,
    ) {
        if !self.adapts_in_bf16(parts) {
            return one_by_one::project_backward(self, dy, x, parts, gradients, dx);
        }
        let mut operands = std::mem::take(&mut self.work.more);
        for (part, operand) in parts.iter().zip(&mut operands) {
            let (n, _) = part.weight.shape();
            operand.pack(self.cpu, &self.pool, dy.values(), (x.rows, n), (dy.width, part.at));
        }
        let dz = self.shrink_gradient(&operands, parts);
        if let Some(dx) = dx {
            self.input_gradient(&mut operands, parts, &dz, dx);
        }
        self.work.more = operands;
        self.adapter_gradients(dy, x, parts, &dz, gradients);
        self.free.give(dz);
    }

    /// `dz = scaling · dy B (t, Σ r)` of all parts side by side.
    fn shrink_gradient(&mut self, dy: &[Bf16Rows], parts: &[PartOf<'_>]) -> CpuRows {
        let ranks = low_ranks(parts).map(|low_rank| low_rank.a.rows).sum();
        let mut dz = self.free.take(dy[0].rows(), ranks);
        for (number, low_rank, at) in places(parts) {
            let b = [low_rank.b.values()];
            let b = RoundedRows(Matrix::stacked(&b, low_rank.b.width));
            let output = Output::new(dz.values_mut(), ranks, at);
            gemm(self.cpu, &self.pool, &dy[number], &b, &output);
        }
        self.scale_places(parts, &mut dz);
        dz
    }

    /// `dx = Σ dy W + dz A`. The operands hold `dy` of each part.
    fn input_gradient(
        &mut self,
        operands: &mut [Bf16Rows; OPERANDS],
        parts: &[PartOf<'_>],
        dz: &CpuRows,
        dx: &mut CpuRows,
    ) {
        let (k, ranks) = (dx.width, dz.width);
        let own = &mut operands[parts.len()];
        own.pack(self.cpu, &self.pool, dz.values(), (dz.rows, ranks), (ranks, 0));
        let turned: Vec<_> = parts.iter().map(|part| part.weight.turned()).collect();
        let a: Vec<&[f32]> = low_ranks(parts).map(|low_rank| low_rank.a.values()).collect();
        let a = RoundedRows(Matrix::stacked(&a, k));
        let mut terms: Vec<Term<'_>> = Vec::with_capacity(OPERANDS);
        terms.extend(operands.iter().zip(&turned).map(|(dy, w)| (dy, &**w)));
        if ranks > 0 {
            terms.push((&operands[parts.len()], &a));
        }
        gemm_sum(self.cpu, &self.pool, &terms, &Output::new(dx.values_mut(), k, 0));
    }

    /// `dA += dzᵀ x` and `dB += (zᵀ dy)ᵀ` of each part.
    fn adapter_gradients(
        &mut self,
        dy: &CpuRows,
        x: &CpuRows,
        parts: &[PartOf<'_>],
        dz: &CpuRows,
        gradients: &mut [Option<LowRankGradient<'_, CpuRows>>],
    ) {
        let (cpu, m, k) = (self.cpu, x.rows, x.width);
        if dz.width == 0 {
            return;
        }
        let mut packed = std::mem::take(&mut self.work.bf16);
        packed.pack(cpu, &self.pool, x.values(), (m, k), (k, 0));
        let z = self.shrink(&packed, parts);
        let turned = self.turned(dz, 0, dz.width);
        packed.pack(cpu, &self.pool, turned.values(), (dz.width, m), (m, 0));
        let inputs = [x.values()];
        let da = self.reduce_rows(&packed, Matrix::stacked(&inputs, k));
        self.free.give(turned);
        let outputs = [dy.values()];
        for (number, low_rank, at) in places(parts) {
            let Some(to) = &mut gradients[number] else { continue };
            let r = low_rank.a.rows;
            elementwise::add(cpu, &da.values()[at * k..(at + r) * k], to.a.values_mut());
            let turned = self.turned(&z, at, r);
            packed.pack(cpu, &self.pool, turned.values(), (r, m), (m, 0));
            let (at, width) = (parts[number].at, low_rank.b.rows);
            let matrix = Matrix { parts: &outputs, stride: dy.width, at, width };
            let db = self.reduce_rows(&packed, matrix);
            let back = self.turned(&db, 0, width);
            elementwise::add(cpu, back.values(), to.b.values_mut());
            [turned, db, back].into_iter().for_each(|rows| self.free.give(rows));
        }
        [z, da].into_iter().for_each(|rows| self.free.give(rows));
        self.work.bf16 = packed;
    }

    /// `left (r, t) · right (t, n)`.
    fn reduce_rows(&mut self, left: &Bf16Rows, right: Matrix<'_>) -> CpuRows {
        let mut product = self.free.take(left.rows(), right.width);
        let output = Output::new(product.values_mut(), right.width, 0);
        gemm(self.cpu, &self.pool, left, &RoundedRows(right), &output);
        product
    }

    /// The transpose `(columns, rows)` of columns `at ..` of `x`.
    fn turned(&mut self, x: &CpuRows, at: usize, columns: usize) -> CpuRows {
        let mut to = self.free.take(columns, x.rows);
        let (cpu, rows, stride, x) = (self.cpu, x.rows, x.width, x.values());
        let out = PerItem::new(to.values_mut(), TURNED * rows);
        split(&self.pool, columns.div_ceil(TURNED), TURNED * rows, out, |items, to| {
            let first = at + items.start * TURNED;
            elementwise::transpose(cpu, &x[first..], stride, to.len() / rows.max(1), rows, to);
        });
        to
    }
}

/// Writes a bias into every row of some columns of `y`.
fn fill_bias(bias: Option<&[f32]>, y: &mut [f32], stride: usize, at: usize) {
    let Some(bias) = bias else { return };
    for row in y.chunks_exact_mut(stride) {
        row[at..at + bias.len()].copy_from_slice(bias);
    }
}
