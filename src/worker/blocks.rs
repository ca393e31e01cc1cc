//! Which KV blocks are whose: a free list and reference counts. No keys or values are here, only
//! the numbers of the blocks that hold them.

/// The KV blocks of one base model. A block is free, or referenced by one or more sequences, or
/// *parked*: referenced by none, but kept because the prefix cache may want it again.
#[derive(Debug)]
pub(super) struct Blocks {
    free: Vec<u32>,
    references: Vec<u32>,
}

impl Blocks {
    pub fn new(total: usize) -> Self {
        let total = u32::try_from(total).unwrap_or(u32::MAX);
        Self { free: (0..total).rev().collect(), references: vec![0; total as usize] }
    }

    pub fn total(&self) -> usize {
        self.references.len()
    }

    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// A free block, referenced once.
    pub fn take(&mut self) -> Option<u32> {
        let block = self.free.pop()?;
        self.references[block as usize] = 1;
        Some(block)
    }

    /// One more sequence reads `block`. Returns true if it was parked.
    pub fn share(&mut self, block: u32) -> bool {
        self.references[block as usize] += 1;
        self.references[block as usize] == 1
    }

    /// One sequence less reads `block`. Returns true if none is left; the block is then parked,
    /// and it is free only after [`Blocks::put_back`].
    pub fn release(&mut self, block: u32) -> bool {
        let references = &mut self.references[block as usize];
        *references = references.checked_sub(1).expect("a block is released once per reference");
        *references == 0
    }

    /// Frees a parked block.
    pub fn put_back(&mut self, block: u32) {
        debug_assert_eq!(self.references[block as usize], 0);
        self.free.push(block);
    }

    /// Whether more than one sequence reads `block`, so that none may write to it.
    pub fn is_shared(&self, block: u32) -> bool {
        self.references[block as usize] > 1
    }
}
