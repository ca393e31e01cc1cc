//! Two pools on the same cores: what serves and what trains.
//!
//! Reading weights for a few rows is bound by memory, training by arithmetic. With cores of their
//! own they hardly disturb each other, where taking turns makes every token wait for a unit of
//! training. While only one side works, it has all cores.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Whether each of two sides is at work.
#[derive(Debug, Default)]
struct AtWork([AtomicBool; 2]);

/// One of two sides.
#[derive(Clone, Debug, Default)]
pub struct Side {
    both: Arc<AtWork>,
    /// 0 or 1.
    which: usize,
}

impl Side {
    /// The other side of the same cores.
    pub fn other(&self) -> Self {
        Self { both: Arc::clone(&self.both), which: 1 - self.which }
    }

    /// Says whether this side has work.
    pub fn at_work(&self, works: bool) {
        self.both.0[self.which].store(works, Relaxed);
    }

    /// How many of `threads` this side may use now: all while the other rests, else its half. The
    /// first side has the odd one.
    pub fn share(&self, threads: usize) -> usize {
        match self.both.0[1 - self.which].load(Relaxed) {
            true => ((threads + 1 - self.which) / 2).max(1),
            false => threads,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_has_all_cores_until_the_other_works() {
        let first = Side::default();
        let second = first.other();
        assert_eq!((first.share(5), second.share(5)), (5, 5));
        first.at_work(true);
        assert_eq!((first.share(5), second.share(5)), (5, 2));
        second.at_work(true);
        assert_eq!(
            [1, 2, 3, 8].map(|n| (first.share(n), second.share(n))),
            [(1, 1), (1, 1), (2, 1), (4, 4)]
        );
        first.at_work(false);
        assert_eq!((first.share(5), second.share(5)), (3, 5));
    }
}
