//! Row-major matrices, and the list through which their memory comes back.

use std::collections::BTreeMap;

use crate::backend::SharedMatrix;
use crate::kernels::line::{self, Lines};

/// A row-major `f32` matrix.
#[derive(Debug)]
pub struct CpuRows {
    memory: Memory,
    pub(super) rows: usize,
    pub(super) width: usize,
}

#[derive(Debug)]
enum Memory {
    /// Aligned to 64 bytes.
    Own(Lines),
    /// An adapter's, read where it is.
    Shared(SharedMatrix),
}

impl CpuRows {
    /// A matrix that reads somebody else's values.
    pub(super) fn shared(values: SharedMatrix, rows: usize, width: usize) -> Self {
        assert_eq!(values.values().len(), rows * width, "the values of one matrix");
        Self { memory: Memory::Shared(values), rows, width }
    }

    /// All values, row after row.
    pub fn values(&self) -> &[f32] {
        match &self.memory {
            Memory::Own(lines) => &line::values(lines)[..self.rows * self.width],
            Memory::Shared(matrix) => matrix.values(),
        }
    }

    /// All values, to be written.
    ///
    /// # Panics
    /// If they are somebody else's.
    pub fn values_mut(&mut self) -> &mut [f32] {
        match &mut self.memory {
            Memory::Own(lines) => &mut line::values_mut(lines)[..self.rows * self.width],
            Memory::Shared(_) => panic!("shared values are only read"),
        }
    }
}

/// Memory of recycled matrices by capacity.
#[derive(Default)]
pub(super) struct FreeList {
    by_lines: BTreeMap<usize, Vec<Lines>>,
}

impl FreeList {
    /// A matrix of undefined content. Memory is reused if it is at most twice as large as asked.
    pub fn take(&mut self, rows: usize, width: usize) -> CpuRows {
        let wanted = size_class((rows * width).div_ceil(16));
        let fitting = self.by_lines.range_mut(wanted..=2 * wanted);
        let reused = fitting.filter_map(|(_, memory)| memory.pop()).next();
        let lines = reused.unwrap_or_else(|| line::zeroed(wanted));
        CpuRows { memory: Memory::Own(lines), rows, width }
    }

    /// Keeps the memory of `x` for later.
    pub fn give(&mut self, x: CpuRows) {
        if let Memory::Own(lines) = x.memory {
            self.by_lines.entry(lines.len()).or_default().push(lines);
        }
    }
}

/// `lines`, rounded up so that an octave holds at most eight sizes and batches of many lengths
/// share their memory.
fn size_class(lines: usize) -> usize {
    lines.next_multiple_of((lines.next_power_of_two() / 16).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_for_the_next_matrix_of_its_size() {
        let mut free = FreeList::default();
        let x = free.take(10, 30);
        let address = x.values().as_ptr();
        free.give(x);
        assert_ne!(free.take(1, 16).values().as_ptr(), address, "far too large for sixteen values");
        let again = free.take(9, 30);
        assert_eq!((again.values().as_ptr(), again.values().len()), (address, 270));
    }
}
