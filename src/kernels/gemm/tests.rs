use super::*;
use crate::kernels::cpu::Cpu;
use crate::kernels::line;
use crate::kernels::output::Output;
use crate::kernels::pool::Pool;
use crate::kernels::testing::{Seeded, every_cpu};

fn exact(
    m: usize,
    n: usize,
    k: usize,
    a: impl Fn(usize, usize) -> f32,
    b: impl Fn(usize, usize) -> f32,
) -> Vec<f32> {
    let one = |i, j| (0..k).fold(0.0f32, |sum, p| a(i, p).mul_add(b(p, j), sum));
    (0..m).flat_map(|i| (0..n).map(move |j| (i, j))).map(|(i, j)| one(i, j)).collect()
}

const SHAPES: [(usize, usize, usize); 5] =
    [(1, 33, 70), (5, 64, 17), (13, 40, 96), (30, 7, 130), (26, 95, 600)];

#[test]
fn a_product_is_one_chain_of_fused_multiply_adds() {
    let mut seeded = Seeded(1);
    for (m, n, k) in SHAPES {
        let (x, w) = (seeded.values(m * k), seeded.values(n * k));
        let expected = exact(m, n, k, |i, p| x[i * k + p], |p, j| w[j * k + p]);
        let packed = PackedF32::pack(&Pool::new(2), (&w).into(), (n, k), line::zeroed);
        for cpu in every_cpu() {
            let mut y = vec![7.0; m * (n + 3)];
            gemm(
                cpu,
                &Pool::new(2),
                Left::rows(&x, m, k, 0),
                &packed,
                &Output::new(&mut y, n + 3, 2),
            );
            for i in 0..m {
                assert_eq!(y[i * (n + 3) + 2..][..n], expected[i * n..][..n]);
                assert_eq!((y[i * (n + 3)], y[i * (n + 3) + n + 2]), (7.0, 7.0), "neighbours stay");
            }
        }
    }
}

#[test]
fn the_backward_reads_the_same_copy() {
    let mut seeded = Seeded(2);
    for (m, k, n) in SHAPES {
        let (g, w) = (seeded.values(m * n), seeded.values(n * k));
        let expected = exact(m, k, n, |i, p| g[i * n + p], |p, j| w[p * k + j]);
        let packed = PackedF32::pack(&Pool::new(2), (&w).into(), (n, k), line::zeroed);
        for cpu in every_cpu() {
            let mut dx = vec![0.0; m * k];
            let out = Output::new(&mut dx, k, 0).adding(true);
            gemm(cpu, &Pool::new(1), Left::rows(&g, m, n, 0), &Turned(&packed), &out);
            assert_eq!(dx, expected);
        }
    }
}

#[test]
fn a_weight_gradient_sums_rows_in_order() {
    let mut seeded = Seeded(3);
    for (out, inner, rows) in SHAPES {
        let (g, x) = (seeded.values(rows * (out + 1)), seeded.values(rows * inner));
        let expected =
            exact(out, inner, rows, |i, p| g[p * (out + 1) + 1 + i], |p, j| x[p * inner + j]);
        let b = RowMajor { values: &x, stride: inner, k: rows, n: inner };
        for cpu in every_cpu() {
            for threads in [1, 2] {
                let mut dw = vec![0.0; out * inner];
                let c = Output::new(&mut dw, inner, 0).adding(true);
                gemm(cpu, &Pool::new(threads), Left::columns(&g, out, out + 1, 1), &b, &c);
                assert_eq!(dw, expected);
            }
        }
    }
}

#[test]
fn rows_come_back_from_a_packed_weight() {
    let w = Seeded(4).values(45 * 19);
    let packed = PackedF32::pack(&Pool::new(2), (&w).into(), (45, 19), line::zeroed);
    let mut row = vec![0.0; 19];
    for i in 0..45 {
        packed.row(i, &mut row);
        assert_eq!(row, w[i * 19..][..19]);
    }
    assert!(packed.size_bytes() >= 4 * w.len() && Cpu::detect() == Cpu::detect());
}
