//! `f32` products: `x · Wᵀ` from a packed weight, `g · W` from the same copy, `gᵀ · x` for the
//! gradient of a weight, and the small products of LoRA and attention.
//!
//! All are `C (m, n) = A (m, k) · B (k, n)`, with `A` read by strides and `B` through [`Panels`]:
//! 32 columns at a time, either packed once or written into scratch on the way. Every output is
//! one chain of fused multiply-adds along `k`, in order, so its bits depend on its row of `A` and
//! its column of `B` alone, not on tiles, passes, threads or the instruction set.

mod nest;
mod panels;
mod tile;
mod weight;

pub use nest::{Left, gemm};
pub(crate) use panels::turn_rows;
pub use panels::{Columns, Panels, RowMajor, Turned};
pub(crate) use tile::{Block, multiply};
pub use weight::PackedF32;

/// Columns of `B` per panel: two registers of sixteen.
pub(crate) const PANEL: usize = 32;

#[cfg(test)]
mod tests;
