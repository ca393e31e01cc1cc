//! When a device thread that recovers from its panics should stop trying.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// More panics than this within [`WINDOW`] are no accident of one request.
const FORGIVEN: usize = 3;
const WINDOW: Duration = Duration::from_secs(60);

/// The panics of late.
#[derive(Debug, Default)]
pub(super) struct PanicWatch {
    counted: u64,
    recent: VecDeque<Instant>,
}

impl PanicWatch {
    /// Takes note of the panics since the start, `total`; true once too many came close together.
    pub fn too_many(&mut self, total: u64, now: Instant) -> bool {
        let new = total.saturating_sub(self.counted);
        self.counted = total;
        self.recent.extend((0..new.min(FORGIVEN as u64 + 1)).map(|_| now));
        while self.recent.front().is_some_and(|&then| now.duration_since(then) > WINDOW) {
            self.recent.pop_front();
        }
        self.recent.len() > FORGIVEN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fourth_panic_within_a_minute_is_one_too_many() {
        let (mut watch, start) = (PanicWatch::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!watch.too_many(1, at(0)) && !watch.too_many(2, at(20)));
        assert!(!watch.too_many(2, at(30)), "nothing new");
        assert!(!watch.too_many(3, at(61)) && !watch.too_many(4, at(62)), "the first is forgotten");
        assert!(watch.too_many(5, at(63)));
    }
}
