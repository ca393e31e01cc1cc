//! Rotary positions: what a layer turns queries and keys by.

use std::borrow::Cow;
use std::ops::Range;

/// How a layer turns queries and keys (Su et al. 2021, "RoFormer", section 3.4.2), with half
/// rotation as in Hugging Face.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rope {
    /// Angle per position for each of the `hd / 2` pairs; empty: no RoPE. A rotary dimension below
    /// `hd` leaves the last values as they are.
    pub frequencies: Vec<f32>,
    /// Multiplies cos and sin (YaRN's attention factor); 1 otherwise.
    pub scale: f32,
    /// What holds for long sequences instead.
    pub beyond: Option<Beyond>,
}

/// The frequencies of sequences with more tokens than `context`.
#[derive(Clone, Debug, PartialEq)]
pub struct Beyond {
    pub context: usize,
    pub stretch: Stretch,
}

/// How frequencies change behind the context that a model was made for.
#[derive(Clone, Debug, PartialEq)]
pub enum Stretch {
    /// Others, for every longer sequence: Ding et al. 2024, "LongRoPE".
    Other(Vec<f32>),
    /// Those of a base that grows with the sequence: `theta · (factor · n / context − (factor − 1)) ^
    /// (d / (d − 2))` for `n` tokens ("dynamic NTK").
    Growing { theta: f32, factor: f32 },
}

/// `theta^(−2i/dim)`, `(dim / 2)`.
pub fn frequencies(theta: f32, dim: usize) -> Vec<f32> {
    (0..dim / 2).map(|i| 1.0 / theta.powf((2 * i) as f32 / dim as f32)).collect()
}

impl Rope {
    /// The same frequencies for sequences of every length.
    pub fn plain(frequencies: Vec<f32>) -> Self {
        Self { frequencies, scale: 1.0, beyond: None }
    }

    /// The frequencies of rows that are read in a sequence of `length` tokens.
    pub fn at(&self, length: u32) -> Cow<'_, [f32]> {
        match &self.beyond {
            Some(beyond) if length as usize > beyond.context => beyond.at(length, self.pairs()),
            _ => Cow::Borrowed(&self.frequencies),
        }
    }

    /// Pairs of values of a head that turn.
    pub fn pairs(&self) -> usize {
        self.frequencies.len()
    }

    /// The frequencies that rows of these places need, `(sets, pairs)`, and which set each row's are.
    pub fn sets(&self, places: &Places) -> (Vec<f32>, Vec<u32>) {
        let (mut sets, mut of_rows) = (Vec::new(), Vec::with_capacity(places.lengths.len()));
        for rows in places.lengths.chunk_by(|x, y| self.alike(*x, *y)) {
            let set = sets.len() / self.pairs().max(1);
            sets.extend_from_slice(&self.at(rows[0]));
            of_rows.resize(of_rows.len() + rows.len(), set as u32);
        }
        (sets, of_rows)
    }

    /// Whether sequences of both lengths have the same frequencies.
    fn alike(&self, x: u32, y: u32) -> bool {
        let Some(Beyond { context, stretch }) = &self.beyond else { return true };
        let [x_beyond, y_beyond] = [x, y].map(|length| length as usize > *context);
        let grows = matches!(stretch, Stretch::Growing { .. });
        x == y || x_beyond == y_beyond && !(x_beyond && grows)
    }
}

impl Beyond {
    fn at(&self, length: u32, pairs: usize) -> Cow<'_, [f32]> {
        match &self.stretch {
            Stretch::Other(frequencies) => Cow::Borrowed(frequencies),
            &Stretch::Growing { theta, factor } => {
                let dim = 2 * pairs;
                let ratio = factor * length as f32 / self.context as f32 - (factor - 1.0);
                let grown = theta * ratio.powf(dim as f32 / (dim as f32 - 2.0));
                Cow::Owned(self::frequencies(grown, dim))
            }
        }
    }
}

/// Where the rows of a batch stand in their sequences.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Places {
    /// Positions of the rows `(t)`, from 0 in each sequence.
    pub positions: Vec<u32>,
    /// Tokens of the sequence as each row meets it `(t)`; see [`Rope::at`].
    pub lengths: Vec<u32>,
}

impl Places {
    /// A whole sequence of `length` tokens.
    pub fn whole(length: usize) -> Self {
        let mut places = Self::default();
        places.push(0..length, length);
        places
    }

    /// Adds rows of a sequence whose first `length` tokens are read as one; each row behind them
    /// meets those up to itself.
    pub fn push(&mut self, rows: Range<usize>, length: usize) {
        self.positions.extend(rows.clone().map(|position| position as u32));
        self.lengths.extend(rows.map(|position| length.max(position + 1) as u32));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_behind_the_beginning_have_a_length_of_their_own() {
        let mut places = Places::default();
        places.push(3..7, 5);
        places.push(0..2, 2);
        assert_eq!(places.positions, [3, 4, 5, 6, 0, 1]);
        assert_eq!(places.lengths, [5, 5, 6, 7, 2, 2]);
    }

    #[test]
    fn sets_are_those_of_the_lengths() {
        let stretch = Stretch::Other(vec![0.5, 0.25]);
        let mut rope = Rope::plain(vec![1.0, 0.1]);
        rope.beyond = Some(Beyond { context: 5, stretch });
        let mut places = Places::whole(2);
        places.push(0..8, 4);
        assert_eq!(
            rope.sets(&places),
            (vec![1.0, 0.1, 0.5, 0.25], [[0; 7].as_slice(), &[1; 3]].concat())
        );
        let stretch = Stretch::Growing { theta: 1e4, factor: 2.0 };
        rope.beyond = Some(Beyond { context: 5, stretch });
        let (sets, of_rows) = rope.sets(&places);
        assert_eq!(of_rows, [0, 0, 0, 0, 0, 0, 0, 1, 2, 3]);
        // 1e4 · (2 · 8 / 5 − 1)^(4 / 2), to the power of −1/2
        assert!((sets[7] - 1.0 / 220.0).abs() < 1e-8, "{}", sets[7]);
    }
}
