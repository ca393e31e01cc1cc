//! The CUDA backend: every operation of the waist as kernels in `kernels/*.cu`, compiled on the
//! user's machine at first use.
//!
//! - [`machine`]: what the backend asks of a GPU; [`driver`] is the machine that has one.
//! - [`source`]: the kernel files and their forms; [`compiler`], [`libraries`]: how they become
//!   machine code.
//! - [`memory`], [`tables`]: matrices, the memory they are recycled through, small tables of the host.
//! - [`weight`]: frozen weights in their formats; [`cache`]: blocks of keys and values.
//! - [`products`], [`adapters`], [`heads`], [`attention`], [`moments`]: how operations are launched.
//! - [`trial`]: what a GPU must compute right before it is used.
//! - [`ops`]: the [`Backend`](super::Backend) implementation.
//!
//! Weights stay packed and are dequantised in registers; activations and sums are `f32`, but
//! products with bf16, 8-bit and 4-bit weights are formed in bf16 where there are tensor cores.
//! Work is done in the order it is asked for, on one stream.

mod adapters;
mod attention;
mod cache;
pub mod compiler;
pub mod driver;
#[cfg(test)]
#[path = "../../tests/support/emulator/mod.rs"]
pub(crate) mod emulator;
mod heads;
mod libraries;
pub mod machine;
mod memory;
mod moments;
mod ops;
mod products;
pub mod source;
mod tables;
mod trial;
mod weight;

use std::sync::Arc;

pub use adapters::CudaLowRank;
pub use cache::CudaCache;
pub use memory::CudaRows;
pub use weight::CudaWeight;

use crate::backend::HostThreads;
use machine::{Launch, Machine, THREADS};
use memory::{Memory, Pool};
use source::Module;
use tables::Tables;

/// Computes on one machine.
pub struct CudaBackend {
    machine: Box<dyn Machine>,
    pool: Arc<Pool>,
    tables: Tables,
    /// What turns weights on their way here.
    host: Arc<HostThreads>,
}

impl CudaBackend {
    /// A backend on this machine.
    pub fn new(machine: Box<dyn Machine>) -> Self {
        let host = Arc::new(HostThreads::for_this_machine());
        Self { machine, pool: Arc::default(), tables: Tables::default(), host }
    }

    /// Memory of undefined content.
    fn memory(&self, bytes: usize) -> Memory {
        self.pool.take(&*self.machine, bytes)
    }

    /// Memory that holds these bytes.
    fn memory_with(&self, bytes: &[u8]) -> Memory {
        let memory = self.memory(bytes.len());
        done(self.machine.write(memory.at, bytes));
        memory
    }

    /// A matrix of undefined content.
    fn rows(&self, rows: usize, width: usize) -> CudaRows {
        CudaRows { memory: self.memory(rows * width * size_of::<f32>()), rows, width }
    }

    /// Runs a kernel over a grid of blocks; nothing, if there are none.
    fn launch(&self, module: Module, kernel: &'static str, grid: [usize; 2], args: &[u64]) {
        if grid.contains(&0) {
            return;
        }
        let grid =
            grid.map(|blocks| u32::try_from(blocks).expect("a grid of fewer than 2³² blocks"));
        done(self.machine.launch(Launch { module, kernel, grid, args }));
    }

    /// Runs a kernel with one thread per item.
    fn each(&self, module: Module, kernel: &'static str, items: usize, args: &[u64]) {
        self.launch(module, kernel, [items.div_ceil(THREADS), 1], args);
    }
}

/// What a failed device leaves to do: the device thread reports it and ends.
fn done<T>(result: Result<T, machine::MachineError>) -> T {
    result.unwrap_or_else(|error| panic!("the GPU cannot go on: {error}"))
}

/// A number as a kernel takes it.
fn float(x: f32) -> u64 {
    f64::from(x).to_bits()
}
