//! What each kind of operation costs: time, bytes and operations, for `tandem bench`.
//!
//! Off by default; an operation then pays one comparison.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A kind of operation. Products are told apart by their shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stage {
    pub name: &'static str,
    /// Inputs and outputs of a product; zeros elsewhere.
    pub shape: (usize, usize),
}

/// What the calls of one stage have cost so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    pub calls: u64,
    pub time: Duration,
    /// Bytes that must be read or written at least once.
    pub bytes: u64,
    /// A multiply-add counts as two.
    pub operations: u64,
}

/// The book of costs, kept while it is open.
#[derive(Debug, Default)]
pub struct Stages {
    book: Option<BTreeMap<Stage, Cost>>,
}

impl Stages {
    /// The time at which an operation begins, if the book is open.
    pub(super) fn begin(&self) -> Option<Instant> {
        self.book.is_some().then(Instant::now)
    }

    /// Enters an operation that began at `began`: its bytes and its operations.
    pub(super) fn end(
        &mut self,
        began: Option<Instant>,
        name: &'static str,
        shape: (usize, usize),
        (bytes, operations): (usize, usize),
    ) {
        if let (Some(book), Some(began)) = (&mut self.book, began) {
            let cost = book.entry(Stage { name, shape }).or_default();
            cost.calls += 1;
            cost.time += began.elapsed();
            cost.bytes += bytes as u64;
            cost.operations += operations as u64;
        }
    }

    /// Opens an empty book.
    pub fn open(&mut self) {
        self.book = Some(BTreeMap::new());
    }

    /// Closes the book and hands out what is in it.
    pub fn close(&mut self) -> Vec<(Stage, Cost)> {
        self.book.take().into_iter().flatten().collect()
    }
}
