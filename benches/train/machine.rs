//! What this machine can do, and what this process took of it.

use std::time::Instant;

use tandem::kernels::bf16::{self, Bf16Rows, PackedBf16};
use tandem::kernels::cpu::Cpu;
use tandem::kernels::gemm::{Left, PackedF32, gemm};
use tandem::kernels::line;
use tandem::kernels::output::Output;
use tandem::kernels::pool::Pool;

/// Rows, columns and depth of the product that speed is measured with.
const SIDE: usize = 1024;

/// Operations per second of a bf16 product.
pub fn bf16_gemm() -> f64 {
    let (cpu, pool) = (Cpu::detect(), Pool::for_this_machine());
    let x = vec![0.5; SIDE * SIDE];
    let w = PackedBf16::pack(&pool, (&x).into(), (SIDE, SIDE), line::zeroed);
    let mut rows = Bf16Rows::new();
    rows.pack(cpu, &pool, &x, (SIDE, SIDE), (SIDE, 0));
    let mut y = vec![0.0; SIDE * SIDE];
    best(|| bf16::matmul(cpu, &pool, &rows, &w, &Output::new(&mut y, SIDE, 0)))
}

/// Operations per second of an `f32` product.
pub fn f32_gemm() -> f64 {
    let (cpu, pool) = (Cpu::detect(), Pool::for_this_machine());
    let x = vec![0.5; SIDE * SIDE];
    let w = PackedF32::pack(&pool, (&x).into(), (SIDE, SIDE), line::zeroed);
    let mut y = vec![0.0; SIDE * SIDE];
    best(|| {
        gemm(cpu, &pool, Left::rows(&x, SIDE, SIDE, 0), &w, &Output::new(&mut y, SIDE, 0));
    })
}

/// The best of twenty.
fn best(mut product: impl FnMut()) -> f64 {
    let seconds = (0..20).map(|_| {
        let started = Instant::now();
        product();
        started.elapsed().as_secs_f64()
    });
    2.0 * (SIDE * SIDE * SIDE) as f64 / seconds.fold(f64::INFINITY, f64::min)
}

/// The most memory this process has held since the start or [`forget_peak`], in bytes.
pub fn peak_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<usize>().ok());
    kib.unwrap_or(0) << 10
}

/// Begins to measure anew.
pub fn forget_peak() {
    let _elsewhere_there_is_no_such_file = std::fs::write("/proc/self/clear_refs", "5");
}
