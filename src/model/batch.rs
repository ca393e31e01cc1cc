//! Training examples laid end to end.

use std::ops::Range;
use std::sync::Arc;

use crate::backend::Places;
use crate::domain::{Example, IGNORE_INDEX, StoredPicture};

/// A flat batch: examples end to end, no padding, none seeing another.
#[derive(Clone, Debug)]
pub struct TrainBatch {
    /// Token ids `(t)`.
    pub ids: Vec<u32>,
    /// Each span from 0, read as one.
    pub places: Places,
    /// The label of the *next* token of the same span `(t)`; [`IGNORE_INDEX`] where there is none.
    pub targets: Vec<i32>,
    /// The rows of each example, in order.
    pub spans: Vec<Range<usize>>,
    /// The pictures, and the rows that are theirs.
    pub pictures: Vec<(Range<usize>, Arc<dyn StoredPicture>)>,
}

impl TrainBatch {
    /// Lays `examples` end to end. Empty examples vanish.
    pub fn new<'a>(examples: impl IntoIterator<Item = &'a Example>) -> Self {
        let mut batch = Self {
            ids: Vec::new(),
            places: Places::default(),
            targets: Vec::new(),
            spans: Vec::new(),
            pictures: Vec::new(),
        };
        for example in examples {
            batch.push(example);
        }
        batch
    }

    fn push(&mut self, example: &Example) {
        let (start, n) = (self.ids.len(), example.ids.len());
        if n == 0 {
            return;
        }
        self.ids.extend(&example.ids);
        self.places.push(0..n, n);
        self.targets.extend(example.labels.iter().skip(1).take(n - 1));
        self.targets.resize(start + n, IGNORE_INDEX);
        self.spans.push(start..start + n);
        self.pictures.extend(example.pictures.iter().map(|placed| {
            let rows = start + placed.tokens.start..start + placed.tokens.end;
            (rows, Arc::clone(&placed.picture))
        }));
    }

    /// Tokens, labelled or not.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Rows that bear loss.
    pub fn trained_tokens(&self) -> usize {
        self.targets.iter().filter(|&&target| target != IGNORE_INDEX).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_learns_the_next_label_of_its_own_example() {
        let examples = [
            Example::new(vec![5, 6, 7], vec![IGNORE_INDEX, 6, 7]),
            Example::default(),
            Example::new(vec![8, 9], vec![8, 9]),
        ];
        let batch = TrainBatch::new(&examples);
        assert_eq!(batch.ids, [5, 6, 7, 8, 9]);
        assert_eq!(batch.places.positions, [0, 1, 2, 0, 1]);
        assert_eq!(batch.targets, [6, 7, IGNORE_INDEX, 9, IGNORE_INDEX]);
        assert_eq!(batch.spans, [0..3, 3..5]);
        let expected: usize = examples.iter().map(Example::trained_tokens).sum();
        assert_eq!((batch.trained_tokens(), expected), (3, 3));
    }
}
