//! Matrix products with frozen weights, LoRA, and gradients of weights.

use std::ops::Range;

use super::{CpuBackend, CpuRows, CpuWeight};
use crate::kernels::gemm::{Columns, Left, Panels, RowMajor, Turned, gemm};
use crate::kernels::output::Output;
use crate::kernels::split::{PerItem, split};
use crate::kernels::{bf16, elementwise, nf4, quantized};

impl CpuBackend {
    pub(super) fn product(
        &mut self,
        x: &CpuRows,
        w: &CpuWeight,
        bias: Option<&CpuRows>,
        y: &mut CpuRows,
        at: usize,
    ) {
        let (n, k) = w.shape();
        assert_eq!((x.rows, x.width), (y.rows, k), "x must be (t, in) and y have its rows");
        assert!(at + n <= y.width, "the columns leave y");
        if let Some(bias) = bias {
            let stride = y.width;
            for row in y.values_mut().chunks_exact_mut(stride) {
                row[at..at + n].copy_from_slice(bias.values());
            }
        }
        let (m, stride) = (x.rows, y.width);
        let y = Output::new(y.values_mut(), stride, at).adding(bias.is_some());
        let (cpu, pool, work) = (self.cpu, &self.pool, &mut self.work);
        match w {
            CpuWeight::Bf16(w) if cpu.has_bf16() => {
                work.bf16.pack(cpu, pool, x.values(), (m, k), (k, 0));
                bf16::matmul(cpu, pool, &work.bf16, w, &y);
            }
            CpuWeight::Nf4(w) if cpu.has_bf16() => {
                work.bf16.pack(cpu, pool, x.values(), (m, k), (k, 0));
                nf4::matmul(cpu, pool, &work.bf16, w, &y);
            }
            CpuWeight::Q8(w) => {
                work.int8.quantize(cpu, pool, x.values(), m, k);
                quantized::matmul(cpu, pool, &work.int8, w, &y);
            }
            CpuWeight::Q4(w) => {
                work.int8.quantize(cpu, pool, x.values(), m, k);
                quantized::matmul(cpu, pool, &work.int8, w, &y);
            }
            CpuWeight::Q4K(w) => {
                work.int8.quantize(cpu, pool, x.values(), m, k);
                quantized::matmul(cpu, pool, &work.int8, w, &y);
            }
            CpuWeight::F32(w) => self.multiply(Left::rows(x.values(), m, k, 0), w, &y),
            CpuWeight::F16(w) => self.multiply(Left::rows(x.values(), m, k, 0), w, &y),
            CpuWeight::Bf16(w) => {
                self.multiply(Left::rows(x.values(), m, k, 0), &bf16::Widened(w), &y);
            }
            CpuWeight::Nf4(w) => {
                self.multiply(Left::rows(x.values(), m, k, 0), &nf4::Widened(w), &y);
            }
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
            CpuWeight::Nf4(w) if cpu.has_bf16() => {
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
