//! Stop strings over a stream of text: what might still become one is held back, so that no part of
//! a stop string ever reaches the caller.

/// Most stop strings of one request.
pub const MAX_STOPS: usize = 4;
/// Longest stop string.
pub const MAX_STOP_BYTES: usize = 256;

/// Why a list of stop strings was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum StopError {
    #[error("{count} stop strings given; at most {MAX_STOPS} are allowed")]
    TooMany { count: usize },
    #[error("stop string {index} has {size_bytes} bytes; at most {MAX_STOP_BYTES} are allowed")]
    TooLong { index: usize, size_bytes: usize },
    #[error("stop string {index} is empty")]
    Empty { index: usize },
}

/// The stop string that ended a text, by its place in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatchedStop(pub usize);

/// Watches a text that arrives in pieces. The stop string that is completed first ends it; of two
/// completed by the same character, the longer one.
///
/// One Knuth-Morris-Pratt automaton per stop string: linear in the text, whatever the strings.
/// Knuth, Morris, Pratt 1977, "Fast Pattern Matching in Strings", section 2.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<Pattern>,
    /// Text seen and not released: a beginning of at least one stop string.
    held: String,
    matched: Option<MatchedStop>,
}

#[derive(Clone, Debug)]
struct Pattern {
    bytes: Vec<u8>,
    /// For each length of a match, the longest shorter one that it ends with.
    fallback: Vec<usize>,
    /// How many bytes of the pattern the text ends with.
    state: usize,
}

impl StopMatcher {
    /// # Errors
    /// [`StopError`] if there are too many, or one is empty or too long.
    pub fn new(stops: &[String]) -> Result<Self, StopError> {
        if stops.len() > MAX_STOPS {
            return Err(StopError::TooMany { count: stops.len() });
        }
        for (index, stop) in stops.iter().enumerate() {
            match stop.len() {
                0 => return Err(StopError::Empty { index }),
                size_bytes if size_bytes > MAX_STOP_BYTES => {
                    return Err(StopError::TooLong { index, size_bytes });
                }
                _ => {}
            }
        }
        let stops = stops.iter().map(|stop| Pattern::new(stop)).collect();
        Ok(Self { stops, held: String::new(), matched: None })
    }

    /// Watches for `stop` as well, which the request did not name; nothing if it is empty.
    pub fn also(mut self, stop: &str) -> Self {
        if !stop.is_empty() {
            self.stops.push(Pattern::new(stop));
        }
        self
    }

    /// Takes the next piece of text; returns what may be shown now. After a match, nothing more.
    pub fn push(&mut self, delta: &str) -> String {
        if self.matched.is_some() {
            return String::new();
        }
        let before = self.held.len();
        self.held.push_str(delta);
        for (at, byte) in delta.bytes().enumerate() {
            if let Some((index, length)) = self.step(byte) {
                self.matched = Some(MatchedStop(index));
                self.held.truncate(before + at + 1 - length);
                return std::mem::take(&mut self.held);
            }
        }
        let keep = self.stops.iter().map(|stop| stop.state).max().unwrap_or(0);
        let kept = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, kept)
    }

    /// The stop string that ended the text, once one has.
    pub fn matched(&self) -> Option<MatchedStop> {
        self.matched
    }

    /// The text is over: what was held is no stop string and may be shown.
    pub fn finish(&mut self) -> String {
        self.stops.iter_mut().for_each(|stop| stop.state = 0);
        std::mem::take(&mut self.held)
    }

    /// Moves every automaton on; the longest stop string completed by this byte, if any.
    fn step(&mut self, byte: u8) -> Option<(usize, usize)> {
        let mut longest: Option<(usize, usize)> = None;
        for (index, stop) in self.stops.iter_mut().enumerate() {
            let length = stop.bytes.len();
            if stop.step(byte) && longest.is_none_or(|(_, other)| length > other) {
                longest = Some((index, length));
            }
        }
        longest
    }
}

impl Pattern {
    fn new(pattern: &str) -> Self {
        let bytes = pattern.as_bytes().to_vec();
        let mut fallback = vec![0; bytes.len() + 1];
        let mut length = 0;
        for at in 1..bytes.len() {
            while length > 0 && bytes[at] != bytes[length] {
                length = fallback[length];
            }
            length += usize::from(bytes[at] == bytes[length]);
            fallback[at + 1] = length;
        }
        Self { bytes, fallback, state: 0 }
    }

    /// Whether `byte` completes the pattern.
    fn step(&mut self, byte: u8) -> bool {
        while self.state > 0 && self.bytes[self.state] != byte {
            self.state = self.fallback[self.state];
        }
        self.state += usize::from(self.bytes[self.state] == byte);
        let complete = self.state == self.bytes.len();
        if complete {
            self.state = self.fallback[self.state];
        }
        complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matcher(stops: &[&str]) -> StopMatcher {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        StopMatcher::new(&stops).unwrap()
    }

    #[test]
    fn a_stop_string_across_deltas_is_never_leaked() {
        let mut stop = matcher(&["###"]);
        assert_eq!(stop.push("a#"), "a");
        assert_eq!(stop.push("#"), "");
        assert_eq!(stop.push("b##"), "##b");
        assert_eq!(stop.push("#c"), "");
        assert_eq!(stop.matched(), Some(MatchedStop(0)));
        assert_eq!(stop.push("more") + &stop.finish(), "");
    }

    #[test]
    fn what_cannot_become_a_stop_string_is_released() {
        let mut stop = matcher(&["aab"]);
        assert_eq!(stop.push("aaa"), "a");
        assert_eq!(stop.push("c"), "aac");
        assert_eq!(stop.push("a") + &stop.finish(), "a");
        assert_eq!(stop.matched(), None);
    }

    #[test]
    fn the_stop_string_completed_first_wins_and_of_two_the_longer() {
        let mut stop = matcher(&["bcde", "c", "bc"]);
        assert_eq!(stop.push("abcde"), "a");
        assert_eq!(stop.matched(), Some(MatchedStop(2)));
    }

    #[test]
    fn stop_strings_of_wide_characters_split_no_character() {
        let mut stop = matcher(&["é🙂"]);
        assert_eq!(stop.push("éé"), "é");
        assert_eq!(stop.push("🙁"), "é🙁");
        assert_eq!(stop.push("é🙂!"), "");
        assert_eq!(stop.matched(), Some(MatchedStop(0)));
    }

    #[test]
    fn the_stop_string_of_a_template_counts_beside_those_of_the_request() {
        let mut stop = matcher(&["w", "x", "y", "z"]).also("### Human:").also("");
        assert_eq!(stop.push("Yes.### Hum") + &stop.push("an: "), "Yes.");
        assert_eq!(stop.matched(), Some(MatchedStop(4)));
    }

    #[test]
    fn lists_out_of_bounds_are_refused() {
        let new = |stops: Vec<String>| StopMatcher::new(&stops).map(|_| ()).unwrap_err();
        assert_eq!(new(vec!["a".into(); 5]), StopError::TooMany { count: 5 });
        assert_eq!(new(vec![String::new()]), StopError::Empty { index: 0 });
        let long = new(vec!["a".into(), "x".repeat(257)]);
        assert_eq!(long, StopError::TooLong { index: 1, size_bytes: 257 });
    }
}
