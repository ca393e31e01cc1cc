//! Device memory that returns to a list when it is dropped, and matrices in it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::machine::{Address, Machine};

/// Bytes on the device; dropped, they wait for the next one who wants as many.
#[derive(Debug)]
pub struct Memory {
    pub(super) at: Address,
    room: usize,
    pool: Arc<Pool>,
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.pool.lock().entry(self.room).or_default().push(self.at);
    }
}

/// What was allocated and is not in use, by size.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<BTreeMap<usize, Vec<Address>>>);

impl Pool {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<usize, Vec<Address>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for so many bytes, of undefined content. Memory is reused if it is at most twice as
    /// large as asked; all work is done in order, so whoever had it is done with it.
    ///
    /// # Panics
    /// If the device has no more, even after all unused memory went back to it.
    pub fn take(self: &Arc<Self>, machine: &dyn Machine, bytes: usize) -> Memory {
        let room = size_class(bytes);
        let memory = |at, room| Memory { at, room, pool: self.clone() };
        let mut fitting = self.lock();
        for (&room, addresses) in fitting.range_mut(room..=2 * room) {
            if let Some(at) = addresses.pop() {
                return memory(at, room);
            }
        }
        drop(fitting);
        let at = machine.allocate(room).or_else(|_| {
            self.trim(machine);
            machine.allocate(room)
        });
        memory(at.unwrap_or_else(|error| panic!("the GPU cannot go on: {error}")), room)
    }

    /// Gives back to the device what is not in use.
    pub fn trim(&self, machine: &dyn Machine) {
        let unused = std::mem::take(&mut *self.lock());
        unused.into_values().flatten().for_each(|at| machine.free(at));
    }

    /// Bytes that are allocated and not in use.
    pub fn unused_bytes(&self) -> usize {
        self.lock().iter().map(|(room, addresses)| room * addresses.len()).sum()
    }
}

/// `bytes`, rounded up so that an octave holds at most eight sizes.
fn size_class(bytes: usize) -> usize {
    bytes.max(256).next_multiple_of((bytes.next_power_of_two() / 16).max(256))
}

/// A row-major `f32` matrix on the device.
#[derive(Debug)]
pub struct CudaRows {
    pub(super) memory: Memory,
    pub(super) rows: usize,
    pub(super) width: usize,
}

impl CudaRows {
    /// Where its values lie.
    pub(super) fn at(&self) -> Address {
        self.memory.at
    }

    /// Where row `row` begins.
    pub(super) fn row(&self, row: usize) -> Address {
        assert!(row <= self.rows, "the matrix has {} rows, not row {row}", self.rows);
        self.memory.at + (row * self.width * size_of::<f32>()) as u64
    }

    /// Values in all.
    pub(super) fn len(&self) -> usize {
        self.rows * self.width
    }
}
