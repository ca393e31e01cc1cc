//! What this machine can do at best: the yardstick of every measured kernel.
//!
//! Arithmetic peaks come from loops that touch registers alone, sixteen independent chains of the
//! widest instruction there is; the read rate from one pass over far more memory than any cache.
#![allow(unsafe_code)]

use std::hint::black_box;
use std::thread;
use std::time::Instant;

use crate::kernels::cpu::Cpu;
use crate::kernels::lanes::{LANES, Simd, kernel};
use crate::kernels::line::{self, Line};

/// Bytes each thread reads.
const READ_BYTES: usize = 128 << 20;
/// Rounds of sixteen independent instructions: some ten milliseconds.
const ROUNDS: usize = 1_500_000;
/// Rounds of four independent products of tiles: some ten milliseconds.
#[cfg(target_arch = "x86_64")]
const TILE_ROUNDS: usize = 600_000;
/// Chains that hide the latency of one instruction.
const CHAINS: usize = 16;
/// Runs of which the best counts.
const RUNS: usize = 5;

/// Measured limits of `threads` threads together. A multiply-add counts as two operations.
#[derive(Clone, Copy, Debug)]
pub struct Peak {
    pub threads: usize,
    /// Reading memory, bytes per second.
    pub read: f64,
    /// Fused `f32` multiply-adds, operations per second.
    pub f32: f64,
    /// Products of bf16 pairs, where the instruction exists.
    pub bf16: Option<f64>,
    /// Products of int8 values, by VNNI, or by AVX2 as codes of four bits allow.
    pub int8: Option<f64>,
}

impl Peak {
    /// Measures all of it, best of five each: a quarter of a second.
    pub fn measure(cpu: Cpu, threads: usize) -> Self {
        let lanes = (ROUNDS * CHAINS * LANES * threads) as f64;
        let mut buffers: Vec<_> = (0..threads).map(|_| line::zeroed(READ_BYTES / 64)).collect();
        // Until it is written, every page is the system's one page of zeros, read from cache.
        buffers.iter_mut().for_each(|buffer| buffer.fill(Line([1; 16])));
        let read = best(threads, |i| {
            black_box(read(cpu, line::values(&buffers[i])));
        });
        let f32 = best(threads, |_| {
            black_box(multiply_add(cpu, black_box(0.5)));
        });
        Self {
            threads,
            read: (READ_BYTES * threads) as f64 / read,
            f32: 2.0 * lanes / f32,
            bf16: bf16_peak(cpu, threads),
            int8: int8_peak(cpu, threads).map(|seconds| 8.0 * lanes / seconds),
        }
    }
}

/// Operations per second of bf16 products, in matrix tiles where there are such.
fn bf16_peak(cpu: Cpu, threads: usize) -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    if cpu.amx {
        let operations = (TILE_ROUNDS * super::amx::BUSY_OPERATIONS * threads) as f64;
        // SAFETY: `amx` says that the tiles were detected and granted.
        let seconds = best(threads, |_| unsafe { super::amx::busy(TILE_ROUNDS) });
        return Some(operations / seconds);
    }
    let lanes = (ROUNDS * CHAINS * LANES * threads) as f64;
    wide(cpu.bf16, threads, bf16).map(|seconds| 4.0 * lanes / seconds)
}

/// Seconds of [`ROUNDS`] of [`CHAINS`] of sixteen times four products of bytes.
fn int8_peak(cpu: Cpu, threads: usize) -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    if cpu.avx2 && !cpu.vnni {
        // SAFETY: `avx2` says that AVX2 was detected.
        return Some(best(threads, |_| unsafe { avx2::int8() }));
    }
    wide(cpu.vnni, threads, int8)
}

/// Seconds of a loop whose instruction may be missing.
fn wide(there: bool, threads: usize, task: fn()) -> Option<f64> {
    there.then(|| best(threads, |_| task()))
}

/// Seconds until `threads` threads have each done `task(index)`, best of [`RUNS`].
fn best(threads: usize, task: impl Fn(usize) + Sync) -> f64 {
    let task = &task;
    let once = || {
        let start = Instant::now();
        thread::scope(|scope| {
            (1..threads).for_each(|i| drop(scope.spawn(move || task(i))));
            task(0);
        });
        start.elapsed().as_secs_f64()
    };
    (0..RUNS).map(|_| once()).fold(f64::MAX, f64::min)
}

kernel! {
    fn multiply_add(s, x: f32) -> f32 {
        // Registers must hold every chain.
        if S::TILE_ROWS < 12 { chains::<S, { CHAINS / 4 }>(s, x) } else { chains::<S, CHAINS>(s, x) }
    }
}

/// As many multiply-adds as [`ROUNDS`] of [`CHAINS`] have, in `N` chains.
#[inline(always)]
fn chains<S: Simd, const N: usize>(s: S, x: f32) -> f32 {
    let (x, mut sums) = (s.splat(x), [s.splat(0.0); N]);
    for _ in 0..ROUNDS * CHAINS / N {
        for sum in &mut sums {
            *sum = s.fma(x, x, *sum);
        }
    }
    sums.iter().map(|&sum| s.sum(sum)).sum()
}

kernel! {
    fn read(s, values: &[f32]) -> f32 {
        let mut sums = [s.splat(0.0); 8];
        let (lines, _) = values.as_chunks::<LANES>();
        for lines in lines.chunks_exact(8) {
            for (sum, line) in sums.iter_mut().zip(lines) {
                *sum = s.add(*sum, s.load(line));
            }
        }
        sums.iter().map(|&sum| s.sum(sum)).sum()
    }
}

#[cfg(target_arch = "x86_64")]
fn bf16() {
    // SAFETY: called only where `Cpu` says that AVX-512 F and BF16 were detected.
    unsafe { avx512::bf16() }
}

#[cfg(target_arch = "x86_64")]
fn int8() {
    // SAFETY: called only where `Cpu` says that AVX-512 F and VNNI were detected.
    unsafe { avx512::int8() }
}

#[cfg(not(target_arch = "x86_64"))]
fn bf16() {}

#[cfg(not(target_arch = "x86_64"))]
fn int8() {}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{CHAINS, ROUNDS};
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Registers for sums.
    const SUMS: usize = 8;

    #[target_feature(enable = "avx2")]
    pub fn int8() {
        let (x, mut sums) = (_mm256_set1_epi32(black_box(3)), [_mm256_setzero_si256(); SUMS]);
        for _ in 0..2 * ROUNDS * CHAINS / SUMS {
            for sum in &mut sums {
                *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(x, *sum));
            }
        }
        black_box(sums);
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{CHAINS, ROUNDS};
    use std::arch::x86_64::*;
    use std::hint::black_box;

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn bf16() {
        let x = _mm512_set1_ps(black_box(0.5));
        let (x, mut sums) = (_mm512_cvtne2ps_pbh(x, x), [_mm512_setzero_ps(); CHAINS]);
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, x, x);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub fn int8() {
        let (x, mut sums) = (_mm512_set1_epi32(black_box(3)), [_mm512_setzero_si512(); CHAINS]);
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, x, x);
            }
        }
        black_box(sums);
    }
}
