//! Which examples make which optimiser step: a pure function of seed and step.

use std::collections::BTreeSet;

use super::TrainError;
use super::rng::{Site, Stream};
use crate::domain::{Example, Hyperparameters};
use crate::model::TrainBatch;

/// The order of the data of one run.
///
/// An epoch lays the examples out in rows (one example each, or several if packed), a micro-batch
/// takes `micro_batch_size` rows, and an optimiser step takes a *window* of
/// `gradient_accumulation_steps` micro-batches; the last window of an epoch may be shorter.
#[derive(Debug)]
pub struct Plan {
    /// Indices of the examples with something to learn, and the length each is cut to.
    usable: Vec<(usize, usize)>,
    dropped: usize,
    cut: usize,
    seed: u64,
    shuffle: bool,
    /// Tokens per packed row, if rows are packed.
    pack: Option<usize>,
    micro_rows: usize,
    window_rows: usize,
    windows_per_epoch: usize,
    total_steps: usize,
    /// The rows of the epoch last asked for.
    epoch: Option<(usize, Vec<Vec<usize>>)>,
}

impl Plan {
    /// Lays out `examples`.
    ///
    /// # Errors
    /// [`TrainError::NoExamples`], [`TrainError::NothingToLearn`], or
    /// [`TrainError::Hyperparameter`] for a count of zero.
    pub fn new(examples: &[Example], h: &Hyperparameters, seed: u64) -> Result<Self, TrainError> {
        check_counts(h)?;
        if examples.is_empty() {
            return Err(TrainError::NoExamples);
        }
        let usable = usable(examples, h.max_seq_length);
        if usable.is_empty() {
            return Err(TrainError::NothingToLearn {
                examples: examples.len(),
                max_seq_length: h.max_seq_length,
            });
        }
        let cut = usable.iter().filter(|&&(at, len)| len < examples[at].ids.len()).count();
        let mut plan = Self {
            dropped: examples.len() - usable.len(),
            cut,
            usable,
            seed,
            shuffle: h.shuffle,
            pack: h.packing.then_some(h.max_seq_length),
            micro_rows: h.micro_batch_size,
            window_rows: h.micro_batch_size * h.gradient_accumulation_steps,
            windows_per_epoch: 0,
            total_steps: 0,
            epoch: None,
        };
        plan.windows_per_epoch = plan.rows(0).len().div_ceil(plan.window_rows);
        plan.total_steps = h.max_steps.unwrap_or(h.n_epochs * plan.windows_per_epoch);
        Ok(plan)
    }

    /// Optimiser steps of the whole run.
    pub fn total_steps(&self) -> usize {
        self.total_steps
    }

    /// Examples left out because nothing in them is learned.
    pub fn dropped(&self) -> usize {
        self.dropped
    }

    /// Examples cut to `max_seq_length`.
    pub fn cut(&self) -> usize {
        self.cut
    }

    /// True if step `step` (from 1) is the last of its epoch.
    pub fn ends_epoch(&self, step: usize) -> bool {
        step.is_multiple_of(self.windows_per_epoch)
    }

    /// The micro-batches of step `step` (from 1).
    pub fn window(&mut self, examples: &[Example], step: usize) -> Vec<TrainBatch> {
        let (epoch, at) =
            ((step - 1) / self.windows_per_epoch, (step - 1) % self.windows_per_epoch);
        let (first, count) = (at * self.window_rows, self.window_rows);
        let rows = self.rows(epoch);
        let window = rows[first..(first + count).min(rows.len())].to_vec();
        window.chunks(self.micro_rows).map(|rows| self.batch(examples, rows)).collect()
    }

    fn batch(&self, examples: &[Example], rows: &[Vec<usize>]) -> TrainBatch {
        let cut: Vec<Example> = rows
            .iter()
            .flatten()
            .map(|&row| {
                let (at, len) = self.usable[row];
                examples[at].beginning(len)
            })
            .collect();
        TrainBatch::new(&cut)
    }

    /// The rows of an epoch, each a list of places in `usable`.
    fn rows(&mut self, epoch: usize) -> &Vec<Vec<usize>> {
        let known = matches!(&self.epoch, Some((at, _)) if *at == epoch);
        if !known {
            let rows = self.lay_out(epoch);
            self.epoch = Some((epoch, rows));
        }
        self.epoch.as_ref().map(|(_, rows)| rows).expect("laid out above")
    }

    fn lay_out(&self, epoch: usize) -> Vec<Vec<usize>> {
        let order = self.order(self.usable.len(), 2 * epoch);
        let Some(capacity) = self.pack else { return order.into_iter().map(|i| vec![i]).collect() };
        let lengths: Vec<usize> = self.usable.iter().map(|&(_, len)| len).collect();
        let mut rows = pack(&order, &lengths, capacity);
        // Packing sorts by length; the rows are shuffled once more so that steps are alike.
        let order = self.order(rows.len(), 2 * epoch + 1);
        order.into_iter().map(|row| std::mem::take(&mut rows[row])).collect()
    }

    fn order(&self, len: usize, draw: usize) -> Vec<usize> {
        if self.shuffle {
            Stream::new(self.seed, draw as u64, Site::Shuffle).permutation(len)
        } else {
            (0..len).collect()
        }
    }
}

fn check_counts(h: &Hyperparameters) -> Result<(), TrainError> {
    let counts = [
        ("micro_batch_size", h.micro_batch_size),
        ("gradient_accumulation_steps", h.gradient_accumulation_steps),
        ("n_epochs", h.n_epochs),
        ("max_steps", h.max_steps.unwrap_or(1)),
        ("max_seq_length", h.max_seq_length),
        ("eval_steps", h.eval_steps.unwrap_or(1)),
        ("checkpoint_steps", h.checkpoint_steps.unwrap_or(1)),
    ];
    match counts.into_iter().find(|&(_, count)| count == 0) {
        Some((name, _)) => {
            Err(TrainError::Hyperparameter { name, expected: "at least 1", found: "0".into() })
        }
        None => Ok(()),
    }
}

/// Examples that teach something within their first `max` tokens.
fn usable(examples: &[Example], max: usize) -> Vec<(usize, usize)> {
    examples
        .iter()
        .enumerate()
        .map(|(at, example)| (at, example.kept(max)))
        .filter(|&(at, len)| {
            examples[at].labels[..len].iter().skip(1).any(|&l| l != crate::domain::IGNORE_INDEX)
        })
        .collect()
}

/// Best fit decreasing (Johnson 1973): the longest first, each into the fullest row with room.
fn pack(order: &[usize], lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut by_length = order.to_vec();
    by_length.sort_by_key(|&item| std::cmp::Reverse(lengths[item])); // stable: ties keep the order
    let mut rows: Vec<Vec<usize>> = Vec::new();
    let mut room: BTreeSet<(usize, usize)> = BTreeSet::new(); // (tokens left, row)
    for item in by_length {
        let fit = room.range((lengths[item], 0)..).next().copied();
        let (left, row) = fit.unwrap_or_else(|| {
            rows.push(Vec::new());
            (capacity, rows.len() - 1)
        });
        room.remove(&(left, row));
        rows[row].push(item);
        room.insert((left - lengths[item], row));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::super::tests::hyperparameters;
    use super::*;
    use crate::domain::IGNORE_INDEX;

    fn example(first: u32, len: usize) -> Example {
        let ids: Vec<u32> = (first..first + len as u32).collect();
        Example::new(ids.clone(), ids.iter().map(|&id| id as i32).collect())
    }

    fn examples(lengths: &[usize]) -> Vec<Example> {
        lengths.iter().enumerate().map(|(i, &len)| example(100 * i as u32, len)).collect()
    }

    #[test]
    fn without_shuffling_the_windows_follow_the_file() {
        let h = Hyperparameters {
            shuffle: false,
            micro_batch_size: 2,
            gradient_accumulation_steps: 2,
            n_epochs: 2,
            ..hyperparameters()
        };
        let data = examples(&[3; 6]);
        let mut plan = Plan::new(&data, &h, 1).expect("a plan");
        assert_eq!(plan.total_steps(), 4);
        let firsts = |window: Vec<TrainBatch>| -> Vec<Vec<u32>> {
            window.iter().map(|b| b.spans.iter().map(|s| b.ids[s.start]).collect()).collect()
        };
        assert_eq!(firsts(plan.window(&data, 1)), [[0, 100], [200, 300]]);
        assert_eq!(firsts(plan.window(&data, 2)), [[400, 500]]);
        assert!(!plan.ends_epoch(1) && plan.ends_epoch(2));
        assert_eq!(firsts(plan.window(&data, 3)), [[0, 100], [200, 300]]);
    }

    #[test]
    fn every_epoch_shows_every_example_once_in_its_own_order() {
        let h = Hyperparameters { micro_batch_size: 3, n_epochs: 2, ..hyperparameters() };
        let data = examples(&[2; 20]);
        for packing in [false, true] {
            let h = Hyperparameters { packing, max_seq_length: 6, ..h.clone() };
            let mut plan = Plan::new(&data, &h, 4).expect("a plan");
            let per_epoch = plan.total_steps() / 2;
            let mut epoch = |from: usize| -> Vec<u32> {
                let windows = (from..from + per_epoch).flat_map(|s| plan.window(&data, s));
                windows
                    .flat_map(|b| b.spans.iter().map(|s| b.ids[s.start]).collect::<Vec<_>>())
                    .collect()
            };
            let (mut first, mut second) = (epoch(1), epoch(1 + per_epoch));
            assert_ne!(first, second);
            first.sort_unstable();
            second.sort_unstable();
            assert_eq!(first, second);
            assert_eq!(first, (0..20).map(|i| 100 * i).collect::<Vec<u32>>());
        }
    }

    #[test]
    fn packed_rows_are_full_and_keep_examples_apart() {
        let lengths = [5, 3, 2, 6, 4];
        let rows = pack(&[0, 1, 2, 3, 4], &lengths, 10);
        assert_eq!(rows, [vec![3, 4], vec![0, 1, 2]]);
        let h = Hyperparameters {
            packing: true,
            max_seq_length: 10,
            micro_batch_size: 1,
            shuffle: false,
            ..hyperparameters()
        };
        let data = examples(&lengths);
        let window = Plan::new(&data, &h, 1).expect("a plan").window(&data, 1);
        assert_eq!((window.len(), window[0].tokens(), window[0].spans.len()), (1, 10, 2));
    }

    #[test]
    fn long_examples_are_cut_and_those_with_nothing_to_learn_are_left_out() {
        let mut data = examples(&[9, 4]);
        data[0].labels[..8].fill(IGNORE_INDEX); // what it teaches lies beyond the cut
        data.push(example(300, 7));
        let h = Hyperparameters { max_seq_length: 5, ..hyperparameters() };
        let plan = Plan::new(&data, &h, 1).expect("a plan");
        assert_eq!((plan.dropped(), plan.cut()), (1, 1));
        let masked = [Example::new(vec![1, 2], vec![IGNORE_INDEX; 2])];
        let refused = Plan::new(&masked, &h, 1);
        assert!(matches!(refused, Err(TrainError::NothingToLearn { examples: 1, .. })));
    }
}
