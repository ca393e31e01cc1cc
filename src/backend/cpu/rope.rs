//! Cosines and sines are the same in every layer and every step: they are computed once.

use crate::kernels::heads::RopeTable;

/// One table per set of frequencies; a model has one or two.
#[derive(Debug, Default)]
pub(super) struct RopeTables(Vec<RopeTable>);

/// More tables than any model needs; beyond it the oldest goes.
const MOST: usize = 8;

impl RopeTables {
    /// The table for these frequencies, filled up to the largest of `positions`.
    pub fn table(&mut self, frequencies: &[f32], scale: f32, positions: &[u32]) -> &RopeTable {
        let known = self.0.iter().position(|table| table.fits(frequencies, scale));
        let index = known.unwrap_or_else(|| {
            if self.0.len() == MOST {
                self.0.remove(0);
            }
            self.0.push(RopeTable::new(frequencies, scale));
            self.0.len() - 1
        });
        self.0[index].reach(positions.iter().copied().max().unwrap_or(0));
        &self.0[index]
    }
}
