//! Every operation against the plain twin, and rows alone against rows in company.

mod attention;
mod products;
mod rows;

use crate::backend::cpu::CpuBackend;
use crate::backend::emulator;
use crate::backend::reference::ReferenceBackend;
use crate::backend::{Backend, Norm, NormKind};
use crate::kernels::testing::{Seeded, every_cpu};

/// Runs `case` on the plain twin, on the CPU with every instruction set and one and two threads,
/// and with the kernels for GPUs, and compares what comes out. Each output is a matrix.
fn agree(tolerance: f32, case: impl Case) {
    let expected = case.run(&mut ReferenceBackend);
    for cpu in every_cpu() {
        let threads = [1, 2].map(|threads| case.run(&mut CpuBackend::on(cpu, threads)));
        assert_eq!(threads[0], threads[1], "the thread count shows");
        for (i, (found, expected)) in threads[0].iter().zip(&expected).enumerate() {
            close(found, expected, tolerance, &format!("{cpu:?}, output {i}"));
        }
    }
    for b in &mut [emulator::cuda(), emulator::cuda_without_tensor_cores()] {
        for (i, (found, expected)) in case.run(b).iter().zip(&expected).enumerate() {
            close(found, expected, tolerance, &format!("emulated CUDA, output {i}"));
        }
    }
}

/// What a test does on any backend.
trait Case {
    fn run<B: Backend>(&self, b: &mut B) -> Vec<Vec<f32>>;
}

fn close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let size = expected.iter().fold(0.05f32, |max, x| max.max(x.abs()));
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= tolerance * size, "{what}: value {i} is {f}, expected {e}");
    }
}

/// A seeded matrix.
fn seeded<B: Backend>(b: &mut B, seed: u64, rows: usize, width: usize) -> B::Rows {
    b.upload(&Seeded(seed).values(rows * width), rows, width)
}

fn norm_of<B: Backend>(b: &mut B, kind: NormKind, width: usize, bias: bool) -> Norm<B::Rows> {
    let weight = seeded(b, 900, 1, width);
    Norm { kind, eps: 1e-5, weight, bias: bias.then(|| seeded(b, 901, 1, width)) }
}
