//! Positions, block tables, frequencies: what the host decides and the kernels of every layer read.

use std::cell::RefCell;
use std::collections::VecDeque;

use super::CudaBackend;
use super::machine::Address;
use super::memory::Memory;

/// The tables of the last steps. A step's layers ask for the same ones again and again; only the
/// first brings them to the device.
#[derive(Default)]
pub(super) struct Tables(RefCell<VecDeque<Table>>);

struct Table {
    bytes: Vec<u8>,
    memory: Memory,
}

/// More tables than a step of any model uses.
const MOST: usize = 32;

impl CudaBackend {
    /// Where these numbers lie on the device, until as many other tables were asked for as a step
    /// never does.
    pub(super) fn table<T: bytemuck::NoUninit>(&self, values: &[T]) -> Address {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let mut tables = self.tables.0.borrow_mut();
        if let Some(known) = tables.iter().position(|table| table.bytes == bytes) {
            let table = tables.remove(known).expect("it was found there");
            tables.push_back(table);
        } else {
            if tables.len() == MOST {
                tables.pop_front();
            }
            tables.push_back(Table { bytes: bytes.to_vec(), memory: self.memory_with(bytes) });
        }
        tables.back().expect("it was just put there").memory.at
    }
}
