//! The CPU backend: every operation of the waist on our own `kernels`.
//!
//! - [`buffers`]: row-major matrices and the memory they are recycled through.
//! - [`weight`]: frozen weights in their formats.
//! - [`cache`]: blocks of keys and values.
//! - [`inner`]: what lies between the MLP's products.
//! - [`columns`], [`moments`]: DoRA's scaling; AdamW over moments on the host.
//! - [`products`]: matrix products, forward and backward.
//! - [`adapted`]: projections with the adapter that is being trained, in bf16.
//! - [`stages`]: what each kind of operation costs, for `tandem bench`.
//! - [`ops`]: the [`Backend`](super::Backend) implementation, which splits rows over the pool.

mod adapted;
mod buffers;
mod cache;
mod columns;
mod halves;
mod inner;
mod loss;
mod moments;
mod norms;
mod ops;
mod pieces;
mod products;
mod rope;
mod specs;
mod stages;
mod weight;

pub use buffers::CpuRows;
pub use cache::CpuCache;
pub use stages::{Cost, Stage, Stages};
pub use weight::CpuWeight;

use std::sync::Arc;

use crate::kernels::activations::Q8Rows;
use crate::kernels::bf16::Bf16Rows;
use crate::kernels::cpu::Cpu;
use crate::kernels::loss::RowLoss;
use crate::kernels::low_rank::LowRankWork;
use crate::kernels::pool::Pool;
use buffers::FreeList;
use rope::Turns;

/// Computes on the threads of this process. Its numbers do not depend on how many they are.
pub struct CpuBackend {
    cpu: Cpu,
    pool: Arc<Pool>,
    free: FreeList,
    turns: Turns,
    work: Work,
    /// What operations cost, while somebody keeps the book.
    pub stages: Stages,
}

/// Memory that one operation leaves to the next.
#[derive(Default)]
struct Work {
    /// Activations in bf16, for bf16 and NF4 weights.
    bf16: Bf16Rows,
    /// The other operands of a sum of bf16 products.
    more: [Bf16Rows; adapted::OPERANDS],
    /// Activations in int8, for 8-bit and 4-bit weights.
    int8: Q8Rows,
    /// Activations and inner values of adapters.
    low_rank: LowRankWork,
    /// Mean and reciprocal deviation of each row of a norm.
    moments: Vec<[f32; 2]>,
    /// What each row of a cross-entropy contributed.
    losses: Vec<RowLoss>,
    /// One partial sum per run of values.
    sums: Vec<f64>,
}

impl CpuBackend {
    /// A backend of `threads` threads in all, the calling one included.
    pub fn new(threads: usize) -> Self {
        Self::on(Cpu::detect(), threads)
    }

    /// A backend as wide as this process may use.
    pub fn for_this_machine() -> Self {
        Self::new(crate::kernels::pool::usable_cores())
    }

    /// [`CpuBackend::new`] with a chosen instruction set.
    pub(crate) fn on(cpu: Cpu, threads: usize) -> Self {
        Self::with(cpu, Pool::new(threads.max(1)))
    }

    /// A backend with memory of its own on these threads.
    fn with(cpu: Cpu, pool: Pool) -> Self {
        Self {
            cpu,
            pool: Arc::new(pool),
            free: FreeList::default(),
            turns: Turns::default(),
            work: Work::default(),
            stages: Stages::default(),
        }
    }
}
