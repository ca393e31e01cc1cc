//! Matrix products with frozen weights, LoRA, and gradients of weights.

use std::ops::Range;

use super::{CpuBackend, CpuRows, CpuWeight};
use crate::backend::{LowRankPart, Product};
use crate::kernels::activations::Q8Rows;
use crate::kernels::cpu::Cpu;
use crate::kernels::gemm::{Columns, Left, Panels, RowMajor, Turned, gemm};
use crate::kernels::low_rank::{self, PackedLowRank, Segment};
use crate::kernels::output::{Output, SharedOutput};
use crate::kernels::pool::Pool;
use crate::kernels::quantized::{self, IntegerWeight};
use crate::kernels::split::{PerItem, split};
use crate::kernels::{bf16, elementwise, nf4};

/// The bias in every row of a part's columns, for its product to be added to.
fn write_bias(part: &Product<'_, CpuWeight, CpuRows>, y: &mut CpuRows) {
    let (n, stride) = (part.weight.shape().0, y.width);
    if let Some(bias) = part.bias {
        for row in y.values_mut().chunks_exact_mut(stride) {
            row[part.at..part.at + n].copy_from_slice(bias.values());
        }
    }
}

/// Bytes and operations of products that share an input of so many rows.
pub(super) fn products_cost(
    rows: usize,
    parts: &[Product<'_, CpuWeight, CpuRows>],
) -> ((usize, usize), (usize, usize)) {
    let shapes = parts.iter().map(|part| part.weight.shape());
    let n = shapes.clone().map(|(n, _)| n).sum();
    let values: usize = shapes.clone().map(|(n, k)| n * k).sum();
    let k = shapes.map(|(_, k)| k).max().unwrap_or(0);
    let bytes = parts.iter().map(|part| part.weight.bytes()).sum();
    ((n, k), (bytes, 2 * rows * values))
}

/// Bytes and operations of one low-rank product.
pub(super) fn low_rank_cost(rows: &Range<usize>, a: &CpuRows, b: &CpuRows) -> (usize, usize) {
    let values = a.values().len() + b.values().len();
    (values * size_of::<f32>(), 2 * rows.len() * values)
}

/// Products of `x`, quantised as these weights want it.
fn integer_products<W: IntegerWeight>(
    cpu: Cpu,
    pool: &Pool,
    int8: &mut Q8Rows,
    x: &CpuRows,
    parts: &[(&W, &Output<'_>)],
) {
    int8.quantize(cpu, pool, x.values(), (x.rows, x.width), W::STRETCH);
    quantized::matmuls(cpu, pool, int8, parts);
}

impl CpuBackend {
    /// `y[:, at..] = x Wᵀ (+ bias)` for each part; parts of one format share the packed `x` and one
    /// region of the pool.
    pub(super) fn multiply_all(
        &mut self,
        x: &CpuRows,
        parts: &[Product<'_, CpuWeight, CpuRows>],
        y: &mut CpuRows,
    ) {
        for parts in parts.chunk_by(|a, b| a.weight.is_like(b.weight)) {
            self.products_of_one_format(x, parts, y);
        }
    }

    fn products_of_one_format(
        &mut self,
        x: &CpuRows,
        parts: &[Product<'_, CpuWeight, CpuRows>],
        y: &mut CpuRows,
    ) {
        for part in parts {
            let (n, k) = part.weight.shape();
            assert_eq!((x.rows, x.width), (y.rows, k), "x must be (t, in) and y have its rows");
            assert!(part.at + n <= y.width, "the columns leave y");
            write_bias(part, y);
        }
        let (m, k, stride) = (x.rows, x.width, y.width);
        let shared = SharedOutput::new(y.values_mut(), stride);
        let outputs: Vec<_> =
            parts.iter().map(|part| shared.at(part.at).adding(part.bias.is_some())).collect();
        let (cpu, pool, work) = (self.cpu, &self.pool, &mut self.work);
        macro_rules! of {
            ($variant:ident) => {{
                let weights =
                    parts.iter().zip(&outputs).filter_map(|(part, y)| match part.weight {
                        CpuWeight::$variant(w) => Some((w, y)),
                        _ => None,
                    });
                weights.collect::<Vec<_>>()
            }};
        }
        match parts[0].weight {
            CpuWeight::Bf16(_) if cpu.has_bf16() => {
                work.bf16.pack(cpu, pool, x.values(), (m, k), (k, 0));
                bf16::matmuls(cpu, pool, &work.bf16, &of!(Bf16));
            }
            CpuWeight::Nf4(w) if cpu.has_bf16() && !w.is_exact() => {
                work.bf16.pack(cpu, pool, x.values(), (m, k), (k, 0));
                nf4::matmuls(cpu, pool, &work.bf16, &of!(Nf4));
            }
            CpuWeight::Q8(_) => integer_products(cpu, pool, &mut work.int8, x, &of!(Q8)),
            CpuWeight::Q4(_) => integer_products(cpu, pool, &mut work.int8, x, &of!(Q4)),
            CpuWeight::Q4K(_) => integer_products(cpu, pool, &mut work.int8, x, &of!(Q4K)),
            CpuWeight::F32(_) => self.widened(x, &of!(F32)),
            CpuWeight::F16(_) => self.widened(x, &of!(F16)),
            CpuWeight::Bf16(_) => {
                for (w, y) in of!(Bf16) {
                    self.widened(x, &[(&bf16::Widened(w), y)]);
                }
            }
            CpuWeight::Nf4(_) => {
                for (w, y) in of!(Nf4) {
                    self.widened(x, &[(&nf4::Widened(w), y)]);
                }
            }
        }
    }

    /// Products in `f32`.
    fn widened<P: Panels>(&self, x: &CpuRows, parts: &[(&P, &Output<'_>)]) {
        for (w, y) in parts {
            self.multiply(Left::rows(x.values(), x.rows, x.width, 0), *w, y);
        }
    }

    fn multiply(&self, a: Left<'_>, b: &impl Panels, c: &Output<'_>) {
        gemm(self.cpu, &self.pool, a, b, c);
    }

    pub(super) fn product_backward(
        &mut self,
        dy: &CpuRows,
        at: usize,
        w: &CpuWeight,
        dx: &mut CpuRows,
    ) {
        let (n, k) = w.shape();
        assert_eq!((dx.rows, dx.width), (dy.rows, k), "dx must be (t, in)");
        assert!(at + n <= dy.width, "the columns leave dy");
        let (m, stride) = (dy.rows, dy.width);
        let dx = Output::new(dx.values_mut(), k, 0).adding(true);
        let (cpu, pool, work) = (self.cpu, &self.pool, &mut self.work);
        let g = Left::rows(dy.values(), m, stride, at);
        match w {
            CpuWeight::Bf16(w) if cpu.has_bf16() => {
                work.bf16.pack(cpu, pool, dy.values(), (m, n), (stride, at));
                bf16::matmul_transposed(cpu, pool, &work.bf16, w, &dx);
            }
            CpuWeight::Nf4(w) if cpu.has_bf16() && !w.is_exact() => {
                work.bf16.pack(cpu, pool, dy.values(), (m, n), (stride, at));
                nf4::matmul_transposed(cpu, pool, &work.bf16, w, &dx);
            }
            CpuWeight::F32(w) => self.multiply(g, &Turned(w), &dx),
            CpuWeight::F16(w) => self.multiply(g, &Turned(w), &dx),
            CpuWeight::Bf16(w) => self.multiply(g, &Turned(&bf16::Widened(w)), &dx),
            CpuWeight::Nf4(w) => self.multiply(g, &Turned(&nf4::Widened(w)), &dx),
            CpuWeight::Q8(w) => self.multiply(g, &Turned(w), &dx),
            CpuWeight::Q4(w) => self.multiply(g, &Turned(w), &dx),
            CpuWeight::Q4K(w) => self.multiply(g, &Turned(w), &dx),
        }
    }

    pub(super) fn full_gradient(
        &mut self,
        dy: &CpuRows,
        at: usize,
        x: &CpuRows,
        dw: &mut CpuRows,
        db: Option<&mut CpuRows>,
    ) {
        let (out, inner, m) = (dw.rows, dw.width, x.rows);
        assert_eq!((dy.rows, x.width), (m, inner), "x must be (t, in) and dy have its rows");
        assert!(at + out <= dy.width, "the columns leave dy");
        let g = Left::columns(dy.values(), out, dy.width, at);
        let x = RowMajor { values: x.values(), stride: inner, k: m, n: inner };
        self.multiply(g, &x, &Output::new(dw.values_mut(), inner, 0).adding(true));
        if let Some(db) = db {
            assert_eq!(db.width, out, "the bias has one value per output");
            let (cpu, stride, dy) = (self.cpu, dy.width, dy.values());
            split(&self.pool, out, m, PerItem::new(db.values_mut(), 1), |columns, sums| {
                elementwise::column_sums(cpu, dy, stride, at + columns.start, sums);
            });
        }
    }

    /// `z = scaling · x[rows] Aᵀ`.
    fn down(&mut self, x: &CpuRows, rows: Range<usize>, a: &CpuRows, scaling: f32) -> CpuRows {
        let (r, k) = (a.rows, a.width);
        assert!(x.width == k && rows.end <= x.rows, "x must be (t, in)");
        let mut z = self.free.take(rows.len(), r);
        let left = Left::rows(&x.values()[rows.start * k..], rows.len(), k, 0);
        let a = Columns { values: a.values(), n: r, k };
        self.multiply(left, &a, &Output::new(z.values_mut(), r, 0));
        elementwise::scale(self.cpu, scaling, z.values_mut());
        z
    }

    /// Every part's share of `y`, in one pass.
    pub(super) fn low_ranks(
        &mut self,
        x: &CpuRows,
        parts: &[LowRankPart<'_, PackedLowRank>],
        y: &mut CpuRows,
    ) {
        let segments: Vec<_> = parts
            .iter()
            .map(|part| Segment {
                rows: part.rows.clone(),
                weights: part.weights,
                scale: part.scale,
                at: part.at,
            })
            .collect();
        let (cpu, pool, stride) = (self.cpu, &self.pool, y.width);
        let y = (y.values_mut(), stride);
        low_rank::add(cpu, pool, x.values(), &segments, &mut self.work.low_rank, y);
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn low_rank(
        &mut self,
        x: &CpuRows,
        rows: Range<usize>,
        a: &CpuRows,
        b: &CpuRows,
        scaling: f32,
        y: &mut CpuRows,
        at: usize,
    ) {
        let (n, r, stride) = (b.rows, b.width, y.width);
        assert!(r == a.rows && rows.end <= y.rows, "A and B must share their rank");
        let z = self.down(x, rows.clone(), a, scaling);
        let b = Columns { values: b.values(), n, k: r };
        let y = &mut y.values_mut()[rows.start * stride..];
        let left = Left::rows(z.values(), rows.len(), r, 0);
        self.multiply(left, &b, &Output::new(y, stride, at).adding(true));
        self.free.give(z);
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn low_rank_gradients(
        &mut self,
        dy: &CpuRows,
        at: usize,
        x: &CpuRows,
        a: &CpuRows,
        b: &CpuRows,
        scaling: f32,
        da: &mut CpuRows,
        db: &mut CpuRows,
        dx: &mut CpuRows,
    ) {
        let (m, r, n, k) = (x.rows, a.rows, b.rows, a.width);
        assert_eq!((dy.rows, dx.rows, b.width), (m, m, r), "rows and ranks must agree");
        assert_eq!(((da.rows, da.width), (db.rows, db.width)), ((r, k), (n, r)));
        assert!(at + n <= dy.width && dx.width == k, "the columns leave dy or dx");
        let z = self.down(x, 0..m, a, scaling);
        let by_rank = RowMajor { values: z.values(), stride: r, k: m, n: r };
        let g = Left::columns(dy.values(), n, dy.width, at);
        self.multiply(g, &by_rank, &Output::new(db.values_mut(), r, 0).adding(true));

        let mut dz = self.free.take(m, r);
        let b = RowMajor { values: b.values(), stride: r, k: n, n: r };
        let g = Left::rows(dy.values(), m, dy.width, at);
        self.multiply(g, &b, &Output::new(dz.values_mut(), r, 0));
        elementwise::scale(self.cpu, scaling, dz.values_mut());

        let x = RowMajor { values: x.values(), stride: k, k: m, n: k };
        let turned = Left::columns(dz.values(), r, r, 0);
        self.multiply(turned, &x, &Output::new(da.values_mut(), k, 0).adding(true));
        let a = RowMajor { values: a.values(), stride: k, k: r, n: k };
        let dz_rows = Left::rows(dz.values(), m, r, 0);
        self.multiply(dz_rows, &a, &Output::new(dx.values_mut(), k, 0).adding(true));
        self.free.give(z);
        self.free.give(dz);
    }
}
