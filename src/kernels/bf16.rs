//! Products with bf16 operands and `f32` sums, forward and backward, and the loop nest they share.
//!
//! - [`Bf16Rows`]: activations, rounded to bf16 and ordered for the register tile.
//! - [`PackedBf16`]: a frozen weight, rounded once and ordered in panels of 32 rows.
//! - `gemm`: the loop nest. It asks a `Panels` source for one chunk of one panel at a time; the
//!   source may hand out its own memory, or write the chunk into scratch on the way. That one
//!   seam serves bf16, NF4 and the transposed product of either.
//! - `rounded`: `f32` matrices rounded on the way, for adapters and gradients of weights.
//! - `tile`: twelve rows by 32 columns in registers; `amx`: 32 by 32 in matrix tiles; `avx2`: for
//!   adapters alone, as weights are widened to `f32` there.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
mod gemm;
mod rounded;
mod rows;
mod tile;
mod transpose;
mod weight;

pub use rows::Bf16Rows;
pub(crate) use weight::round_bits;
pub use weight::{PackedBf16, Widened};

pub(crate) use gemm::{Chunk, Panels, Term, gemm, gemm_sum, gemms};
pub(crate) use rounded::{Matrix, RoundedColumns, RoundedRows};
pub(crate) use rows::{LARGEST_TILED_GROUP, round};
pub(crate) use tile::multiply;
pub(crate) use transpose::Transposed;

use crate::kernels::cpu::Cpu;
use crate::kernels::output::Output;
use crate::kernels::pool::Pool;

/// Weight rows per panel: two registers of sixteen.
pub(crate) const PANEL: usize = 32;

/// Values per block of a row: sixteen bf16 pairs, one line.
pub(crate) const BLOCK: usize = 32;

/// `y = x · Wᵀ`. Shapes: `x (m, k)`, `W (n, k)`, `y (m, n)`.
///
/// # Panics
/// If the shapes do not fit.
pub fn matmul(cpu: Cpu, pool: &Pool, x: &Bf16Rows, w: &PackedBf16, y: &Output<'_>) {
    gemm(cpu, pool, x, w, y);
}

/// [`matmul`] with several weights of one input, in one region: `(W, y)` of each.
///
/// # Panics
/// If the shapes do not fit.
pub fn matmuls(cpu: Cpu, pool: &Pool, x: &Bf16Rows, parts: &[(&PackedBf16, &Output<'_>)]) {
    gemms(cpu, pool, x, parts);
}

/// `dx = g · W`, the backward of [`matmul`] for a frozen weight, from the same packed bytes.
///
/// Shapes: `g (m, n)`, `W (n, k)`, `dx (m, k)`. Each chunk of `W` is transposed in registers into
/// 64 KiB of scratch, three shuffles per line; every row group then reads the scratch.
///
/// # Panics
/// If the shapes do not fit.
pub fn matmul_transposed(cpu: Cpu, pool: &Pool, g: &Bf16Rows, w: &PackedBf16, dx: &Output<'_>) {
    gemm(cpu, pool, g, &Transposed(w), dx);
}
