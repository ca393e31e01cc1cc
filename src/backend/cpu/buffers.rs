//! Row-major matrices, and the list through which their memory comes back.

use std::collections::BTreeMap;

use crate::kernels::line::{self, Line};

/// A row-major `f32` matrix, aligned to 64 bytes.
#[derive(Debug)]
pub struct CpuRows {
    lines: Vec<Line>,
    pub(super) rows: usize,
    pub(super) width: usize,
}

impl CpuRows {
    /// All values, row after row.
    pub fn values(&self) -> &[f32] {
        &line::values(&self.lines)[..self.rows * self.width]
    }

    /// All values, to be written.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut line::values_mut(&mut self.lines)[..self.rows * self.width]
    }
}

/// Memory of recycled matrices by capacity.
#[derive(Default)]
pub(super) struct FreeList {
    by_lines: BTreeMap<usize, Vec<Vec<Line>>>,
}

impl FreeList {
    /// A matrix of undefined content. Memory is reused if it is at most twice as large as asked.
    pub fn take(&mut self, rows: usize, width: usize) -> CpuRows {
        let wanted = size_class((rows * width).div_ceil(16));
        let fitting = self.by_lines.range_mut(wanted..=2 * wanted);
        let reused = fitting.filter_map(|(_, memory)| memory.pop()).next();
        let lines = reused.unwrap_or_else(|| line::zeroed(wanted));
        CpuRows { lines, rows, width }
    }

    /// Keeps the memory of `x` for later.
    pub fn give(&mut self, x: CpuRows) {
        self.by_lines.entry(x.lines.len()).or_default().push(x.lines);
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
