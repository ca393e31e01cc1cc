//! Speculative decoding by prompt lookup: what a text has said before it may say again.
//!
//! A sequence that decodes may guess its next tokens from its own prompt and answer; one step then
//! checks them all, a row each. A guess is taken only where it is the token that would have been
//! drawn anyway, so the answer is the same to the bit, greedy or sampled, and a wrong guess costs
//! its row. Saxena 2023, "Prompt Lookup Decoding"; the check is that of Leviathan et al. 2023,
//! "Fast Inference from Transformers via Speculative Decoding", with the draw fixed by its seed.

use super::pace::Pace;

/// Most tokens of one draft.
pub(super) const LONGEST: usize = 12;
/// Tokens at the end of the text that must have occurred before: the longest match that is found.
const SUFFIXES: [usize; 3] = [4, 3, 2];
/// How far back to look.
const LOOKBACK: usize = 8192;
/// What is kept of an experience per new one.
const MEMORY: f64 = 0.85;
/// What is kept of it per draft that was not worth a try, so that it is tried again some day.
const FADING: f64 = 0.98;
/// By how much the gain must exceed the cost.
const MARGIN: f64 = 1.15;

/// How well the drafts of one sequence were met so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Belief {
    right: f64,
    wrong: f64,
}

impl Belief {
    /// Of `drafted` tokens the first `accepted` were right.
    pub fn note(&mut self, drafted: usize, accepted: usize) {
        self.right = MEMORY * self.right + accepted as f64;
        self.wrong = MEMORY * self.wrong + f64::from(u8::from(accepted < drafted));
    }

    /// The chance that the next drafted token is right if those before it were.
    pub fn chance(self) -> f64 {
        (self.right + 1.0) / (self.right + self.wrong + 2.0)
    }

    pub fn fade(&mut self) {
        (self.right, self.wrong) = (FADING * self.right, FADING * self.wrong);
    }
}

/// What one more row may cost in a step, as a share of what a token costs without it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Price(f64);

impl Price {
    /// Every draft is worth a try.
    pub const NOTHING: Self = Self(0.0);

    /// A step of `rows` rows that yields `tokens` tokens grows by one row.
    pub fn of_a_row(pace: &Pace, rows: usize, tokens: usize) -> Self {
        let step = pace.seconds(rows).max(f64::MIN_POSITIVE);
        Self(MARGIN * pace.slope(rows) * tokens as f64 / step)
    }

    /// How long a draft may be: until a row's chance to count falls below its price.
    pub fn worthwhile(self, chance: f64) -> usize {
        let mut counts = chance;
        let mut length = 0;
        while length < LONGEST && counts > self.0 {
            (length, counts) = (length + 1, counts * chance);
        }
        length
    }
}

/// Writes to `draft` at most `most` tokens that followed the last earlier occurrence of what
/// `tokens` ends with. A text that repeats itself up to its end is taken to go on so.
pub(super) fn look_up(tokens: &[u32], most: usize, draft: &mut Vec<u32>) {
    draft.clear();
    let tokens = &tokens[tokens.len().saturating_sub(LOOKBACK)..];
    for length in SUFFIXES.into_iter().filter(|&length| length < tokens.len()) {
        let (suffix, earlier) = (&tokens[tokens.len() - length..], &tokens[..tokens.len() - 1]);
        if let Some(at) = earlier.windows(length).rposition(|window| window == suffix) {
            let after = &tokens[at + length..];
            return draft.extend(after.iter().cycle().take(most));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drafted(tokens: &[u32], most: usize) -> Vec<u32> {
        let mut draft = vec![9];
        look_up(tokens, most, &mut draft);
        draft
    }

    #[test]
    fn a_draft_is_what_followed_the_last_and_longest_match() {
        assert_eq!(drafted(&[1, 2, 3, 4, 5, 1, 2], 2), [3, 4]);
        assert_eq!(drafted(&[1, 2, 3, 1, 2, 4, 1, 2], 1), [4]);
        assert_eq!(drafted(&[0, 1, 2, 3, 7, 1, 2, 4, 0, 1, 2], 1), [3]);
        assert_eq!(drafted(&[5, 6, 5, 6], 5), [5, 6, 5, 6, 5]);
        assert_eq!(drafted(&[8, 8, 8], 3), [8, 8, 8]);
    }

    #[test]
    fn without_a_match_there_is_no_draft() {
        for tokens in [&[][..], &[1], &[1, 2], &[1, 2, 3, 2]] {
            assert!(drafted(tokens, 4).is_empty(), "{tokens:?}");
        }
    }

    #[test]
    fn drafts_grow_with_success_and_shrink_with_the_price() {
        let (mut good, mut bad) = (Belief::default(), Belief::default());
        (0..20).for_each(|_| good.note(4, 4));
        (0..20).for_each(|_| bad.note(4, 0));
        let cheap = Price(0.1);
        let new = cheap.worthwhile(Belief::default().chance());
        assert!(cheap.worthwhile(good.chance()) > new && new > cheap.worthwhile(bad.chance()));
        assert_eq!(Price(1.1).worthwhile(good.chance()), 0);
        assert_eq!(Price::NOTHING.worthwhile(bad.chance()), LONGEST);
        let given_up = Price(0.3);
        assert_eq!(given_up.worthwhile(bad.chance()), 0);
        (0..200).for_each(|_| bad.fade());
        assert!(given_up.worthwhile(bad.chance()) > 0, "it is tried again");
    }
}
