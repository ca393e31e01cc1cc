//! CPU kernels: safe functions over slices, each beside a plain twin.
//!
//! Read in this order:
//! 1. [`line`], [`cpu`], [`rows`], [`pool`], [`sides`]: storage, dispatch, row groups, threads;
//!    [`shared`],
//!    [`split`], [`output`], [`scratch`]: who writes where, and memory on the way.
//! 2. [`lanes`]: sixteen values side by side on every instruction set; [`math`]: functions on them.
//! 3. [`gemm`]: `f32` products, forward, backward and for weight gradients.
//! 4. [`activations`], [`quantized`], then [`q4`] and [`q8`]: integer products for serving.
//! 5. [`bf16`] and [`nf4`]: the dot-product tile, fused 4-bit weights, panels turned for `dx`;
//!    [`low_rank`]: adapters over a batch.
//! 6. [`norm`], [`heads`], [`mlp`], [`attention`], [`loss`], [`elementwise`], [`optimiser`]: what
//!    lies between the products, forward and backward.
//! 7. `amx`: the matrix tiles of Intel's servers, which the products above use where they exist.
//! 8. [`peak`]: what the machine can do at best.
//!
//! Invariants:
//! - A row's numbers depend on that row alone. Rows are cut into groups that a register tile
//!   holds, but every output is one chain of sums along `k`, whatever the group.
//! - Who writes what is decided once, in the loop nest that splits the work, and stated there in
//!   a `SAFETY` comment.
//! - The scalar version runs through the same door: pass [`cpu::Cpu::SCALAR`].

// Rows and lanes of a register tile are small constants: loops over them unroll into registers.
#![allow(clippy::needless_range_loop)]

pub mod activations;
#[cfg(target_arch = "x86_64")]
mod amx;
pub mod attention;
pub mod bf16;
pub mod cpu;
pub mod dynamic;
#[cfg(target_arch = "x86_64")]
mod eights;
pub mod elementwise;
pub mod f16;
pub mod gemm;
pub mod heads;
pub(crate) mod lanes;
pub mod line;
pub mod loss;
pub mod low_rank;
pub(crate) mod math;
pub mod memory;
pub mod mlp;
pub mod nf4;
pub mod norm;
pub mod optimiser;
pub mod output;
pub mod peak;
pub mod pool;
pub mod q4;
pub mod q4k;
pub(crate) mod q6k;
pub mod q8;
pub mod quantized;
pub mod rows;
pub(crate) mod scratch;
pub mod shared;
pub mod sides;
#[cfg(target_arch = "x86_64")]
mod simd;
pub mod split;
#[cfg(test)]
pub(crate) mod testing;
pub mod values;
