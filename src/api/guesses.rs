//! Wrong keys, counted by the address they come from.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Wrong keys one address may try within [`WINDOW`].
const ALLOWED: u32 = 20;
const WINDOW: Duration = Duration::from_secs(60);
/// Addresses remembered; beyond that, those whose window is over are forgotten, then all.
const REMEMBERED: usize = 10_000;

/// The address of the other end of the connection; absent where there is no connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub IpAddr);

/// How many wrong keys came from where.
///
/// A right key always passes, so that one bad client behind a proxy does not lock out the others:
/// keys are long, and what the limit is for is to slow a flood and to show it in the log.
#[derive(Clone, Debug, Default)]
pub struct Guesses(Arc<Mutex<HashMap<IpAddr, Window>>>);

#[derive(Clone, Copy, Debug)]
struct Window {
    since: Instant,
    wrong: u32,
}

impl Guesses {
    /// Counts a wrong key; if that was one too many, how long until the next may be tried.
    pub(super) fn wrong(&self, Peer(from): Peer, now: Instant) -> Option<Duration> {
        // A panic while the lock was held leaves counts, which are as good as any.
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let over = |window: &Window| now.duration_since(window.since) >= WINDOW;
        if windows.len() >= REMEMBERED && !windows.contains_key(&from) {
            windows.retain(|_, window| !over(window));
            if windows.len() >= REMEMBERED {
                windows.clear();
            }
        }
        let window = windows.entry(from).or_insert(Window { since: now, wrong: 0 });
        if over(window) {
            *window = Window { since: now, wrong: 0 };
        }
        window.wrong = window.wrong.saturating_add(1);
        if window.wrong == ALLOWED + 1 {
            tracing::warn!(%from, "many wrong API keys come from this address");
        }
        (window.wrong > ALLOWED).then(|| WINDOW - now.duration_since(window.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_is_slowed_down_for_a_while_and_others_are_not() {
        let (guesses, start) = (Guesses::default(), Instant::now());
        let [one, other] = [[10, 0, 0, 1], [10, 0, 0, 2]].map(|ip| Peer(IpAddr::from(ip)));
        for _ in 0..ALLOWED {
            assert_eq!(guesses.wrong(one, start), None);
        }
        let later = start + Duration::from_secs(20);
        assert_eq!(guesses.wrong(one, later), Some(Duration::from_secs(40)));
        assert_eq!(guesses.wrong(other, later), None);
        assert_eq!(guesses.wrong(one, start + WINDOW), None);
    }

    #[test]
    fn a_flood_of_addresses_takes_no_more_memory() {
        let (guesses, now) = (Guesses::default(), Instant::now());
        for i in 0..3 * REMEMBERED as u32 {
            guesses.wrong(Peer(IpAddr::from(i.to_be_bytes())), now);
        }
        assert!(guesses.0.lock().expect("the counts").len() <= REMEMBERED);
    }
}
