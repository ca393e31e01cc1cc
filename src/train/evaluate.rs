//! Loss over the validation examples, one small unit at a time.

use super::TrainError;
use super::sight::Sight;
use crate::backend::{Backend, LossSum};
use crate::domain::Example;
use crate::model::{
    MicroBatch, MicroBatchOptions, Model, PassUnit, SeenPicture, TrainBatch, Trainee,
};

/// Tokens per validation batch; a longer example makes a batch of its own.
const BATCH_TOKENS: usize = 2048;

/// One pass over the validation examples.
pub struct Evaluation<B: Backend> {
    batches: std::vec::IntoIter<TrainBatch>,
    running: Option<MicroBatch<B>>,
    /// The pictures of the batch that comes next, once they are seen.
    seen: Vec<SeenPicture>,
    sum: LossSum,
}

impl<B: Backend> Evaluation<B> {
    /// Sets the pass up. Examples are cut to `max_seq_length`.
    pub fn new(examples: &[Example], max_seq_length: usize) -> Self {
        let batches = batches(examples, max_seq_length);
        let (running, seen, sum) = (None, Vec::new(), LossSum::default());
        Self { batches: batches.into_iter(), running, seen, sum }
    }

    /// One unit of looking at the pictures of the batch that comes next; true if none is left to
    /// look at before [`Evaluation::advance`].
    ///
    /// # Errors
    /// [`TrainError::Picture`].
    pub fn look(
        &mut self,
        b: &mut B,
        model: &Model<B>,
        sight: &mut Sight<B>,
    ) -> Result<bool, TrainError> {
        let next = self.batches.as_slice().first().filter(|_| self.running.is_none());
        sight.prepare(b, model, next, &mut self.seen)
    }

    /// The kind of the next unit of the batch under way.
    pub fn next_unit(&self) -> Option<PassUnit> {
        self.running.as_ref().and_then(MicroBatch::next_unit)
    }

    /// One unit of work; the sum over all examples when the pass is over.
    pub fn advance(
        &mut self,
        b: &mut B,
        model: &Model<B>,
        trainee: &mut Trainee<B>,
    ) -> Option<LossSum> {
        if self.running.is_none() {
            let Some(batch) = self.batches.next() else { return Some(self.sum) };
            let pictures = std::mem::take(&mut self.seen);
            let options =
                MicroBatchOptions { evaluate: true, pictures, ..MicroBatchOptions::default() };
            self.running = Some(MicroBatch::start(batch, options));
        }
        let found = self.running.as_mut().and_then(|micro| micro.advance(b, model, trainee));
        if let Some(found) = found {
            add(&mut self.sum, found);
            self.running = None;
        }
        None
    }
}

/// Adds one micro-batch's loss.
pub fn add(sum: &mut LossSum, found: LossSum) {
    sum.loss += found.loss;
    sum.tokens += found.tokens;
    sum.correct += found.correct;
}

/// Examples that bear loss, laid end to end up to [`BATCH_TOKENS`].
fn batches(examples: &[Example], max_seq_length: usize) -> Vec<TrainBatch> {
    let (mut batches, mut group, mut tokens) = (Vec::new(), Vec::new(), 0);
    for example in examples {
        let cut = example.beginning(max_seq_length);
        let len = cut.ids.len();
        if cut.trained_tokens() == 0 {
            continue;
        }
        if tokens + len > BATCH_TOKENS && !group.is_empty() {
            batches.push(TrainBatch::new(&std::mem::take(&mut group)));
            tokens = 0;
        }
        tokens += len;
        group.push(cut);
    }
    if !group.is_empty() {
        batches.push(TrainBatch::new(&group));
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::IGNORE_INDEX;

    #[test]
    fn batches_hold_every_labelled_token_once_and_stay_small() {
        let example = |len: usize| Example::new(vec![1; len], vec![1; len]);
        let mut examples = vec![example(1500), example(700), example(3000), example(10)];
        examples.push(Example::new(vec![1; 5], vec![IGNORE_INDEX; 5]));
        let batches = batches(&examples, 2500);
        let sizes: Vec<usize> = batches.iter().map(TrainBatch::tokens).collect();
        assert_eq!(sizes, [1500, 700, 2500, 10]);
    }
}
