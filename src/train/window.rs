//! One accumulation window: the micro-batches whose gradients make one optimiser step.

use std::time::Instant;

use super::evaluate::add;
use super::rng::{Site, Stream};
use super::sight::Sight;
use super::{TrainError, TrainRequest};
use crate::backend::{Backend, LossSum};
use crate::domain::LossNormalization;
use crate::model::{
    LoraDropout, MicroBatch, MicroBatchOptions, Model, PassUnit, SeenPicture, TrainBatch, Trainee,
};

/// A window under way.
///
/// Every token's loss weighs `1 /` labels of the *whole* window, however they fall on its
/// micro-batches; or, where it is asked for, `1 /` labels of its micro-batch and the micro-batches'
/// count.
pub struct Window<B: Backend> {
    waiting: std::vec::IntoIter<TrainBatch>,
    running: Option<Running<B>>,
    /// The pictures of the micro-batch that comes next, once they are seen.
    seen: Vec<SeenPicture>,
    /// Micro-batches begun.
    begun: usize,
    loss: LossSum,
    labels: usize,
    micro_batches: usize,
    tokens: usize,
    since: Instant,
    options: Options,
}

struct Running<B: Backend> {
    micro_batch: MicroBatch<B>,
    /// What its labels weigh against those of the whole window.
    share: f64,
}

/// What differs from one run to the next.
#[derive(Clone, Copy)]
struct Options {
    seed: u64,
    step: usize,
    dropout: f32,
    neftune_alpha: f32,
    hidden_size: usize,
    keep_bytes: usize,
    normalization: LossNormalization,
}

impl<B: Backend> Window<B> {
    /// The window of step `step`; `hidden_size` is the width of the embedding, `keep_bytes` what may
    /// be kept of activations.
    pub fn new(
        batches: Vec<TrainBatch>,
        request: &TrainRequest,
        step: usize,
        hidden_size: usize,
        keep_bytes: usize,
    ) -> Self {
        let options = Options {
            seed: request.seed,
            step,
            dropout: request.lora.dropout as f32,
            neftune_alpha: request.hyperparameters.neftune_alpha as f32,
            hidden_size,
            keep_bytes,
            normalization: request.hyperparameters.loss_normalization,
        };
        Self::with(batches, options)
    }

    /// A window without dropout or noise that keeps nothing, as a model trained in full has it.
    pub fn plain(batches: Vec<TrainBatch>) -> Self {
        let options = Options {
            seed: 0,
            step: 0,
            dropout: 0.0,
            neftune_alpha: 0.0,
            hidden_size: 0,
            keep_bytes: 0,
            normalization: LossNormalization::Window,
        };
        Self::with(batches, options)
    }

    fn with(batches: Vec<TrainBatch>, options: Options) -> Self {
        Self {
            labels: batches.iter().map(TrainBatch::trained_tokens).sum(),
            micro_batches: batches.len(),
            tokens: batches.iter().map(TrainBatch::tokens).sum(),
            waiting: batches.into_iter(),
            running: None,
            seen: Vec::new(),
            begun: 0,
            loss: LossSum::default(),
            since: Instant::now(),
            options,
        }
    }

    /// Tokens of all micro-batches.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// When the window was opened.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// One unit of looking at the pictures of the micro-batch that comes next; true if none is left
    /// to look at before [`Window::advance`].
    ///
    /// # Errors
    /// [`TrainError::Picture`].
    pub fn look(
        &mut self,
        b: &mut B,
        model: &Model<B>,
        sight: &mut Sight<B>,
    ) -> Result<bool, TrainError> {
        let next = self.waiting.as_slice().first().filter(|_| self.running.is_none());
        sight.prepare(b, model, next, &mut self.seen)
    }

    /// The kind of the next unit; `None` for one that may look at pictures.
    pub fn next_unit(&self) -> Option<PassUnit> {
        match &self.running {
            Some(running) => running.micro_batch.next_unit(),
            None => {
                let next = self.waiting.as_slice().first();
                next.is_none_or(|batch| batch.pictures.is_empty()).then_some(PassUnit::Embed)
            }
        }
    }

    /// One unit of work; the window's loss when its last micro-batch is done, its gradients then
    /// lying in `trainee`.
    pub fn advance(
        &mut self,
        b: &mut B,
        model: &Model<B>,
        trainee: &mut Trainee<B>,
    ) -> Option<LossSum> {
        if self.running.is_none() {
            let Some(batch) = self.waiting.next() else { return Some(self.loss) };
            self.running = Some(self.begin(batch));
            self.begun += 1;
        }
        let Running { micro_batch, share } = self.running.as_mut()?;
        let mut found = micro_batch.advance(b, model, trainee)?;
        found.loss *= *share;
        add(&mut self.loss, found);
        self.running = None;
        (self.waiting.len() == 0).then_some(self.loss)
    }

    fn begin(&mut self, batch: TrainBatch) -> Running<B> {
        let share = match self.options.normalization {
            LossNormalization::Window => 1.0,
            LossNormalization::MicroBatch => {
                let even = self.labels as f64 / self.micro_batches as f64;
                even / batch.trained_tokens().max(1) as f64
            }
        };
        let weight = (share / self.labels as f64) as f32;
        let mut options = self.options.micro_batch(&batch, self.begun, weight);
        options.pictures = std::mem::take(&mut self.seen);
        Running { micro_batch: MicroBatch::start(batch, options), share }
    }
}

impl Options {
    fn micro_batch(&self, batch: &TrainBatch, number: usize, weight: f32) -> MicroBatchOptions {
        let stream = |site| Stream::new(self.seed, self.step as u64, site);
        MicroBatchOptions {
            weight,
            dropout: (self.dropout > 0.0)
                .then(|| LoraDropout { p: self.dropout, key: stream(Site::Dropout(number)).key() }),
            noise: (self.neftune_alpha > 0.0)
                .then(|| self.noise(batch, stream(Site::Noise(number)))),
            keep_bytes: self.keep_bytes,
            ..MicroBatchOptions::default()
        }
    }

    /// `U(−1, 1) · α / √(L d)` for each number of each embedding, `L` the example's length.
    /// Jain et al. 2023, "NEFTune: Noisy Embeddings Improve Instruction Finetuning". Pictures are no
    /// embeddings, and get none.
    fn noise(&self, batch: &TrainBatch, stream: Stream) -> Vec<f32> {
        let d = self.hidden_size;
        let mut noise = Vec::with_capacity(batch.tokens() * d);
        for span in &batch.spans {
            let bound = self.neftune_alpha / ((span.len() * d) as f32).sqrt();
            noise.extend((0..span.len() * d).map(|_| 0.0));
            let from = span.start * d;
            for (i, value) in noise[from..].iter_mut().enumerate() {
                *value = stream.symmetric((from + i) as u64, bound);
            }
        }
        for (rows, _) in &batch.pictures {
            noise[rows.start * d..rows.end * d].fill(0.0);
        }
        noise
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_bounded_by_the_length_of_its_example() {
        let options = Options {
            seed: 1,
            step: 2,
            dropout: 0.0,
            neftune_alpha: 5.0,
            hidden_size: 4,
            keep_bytes: 0,
            normalization: LossNormalization::Window,
        };
        let example = |n: usize| crate::domain::Example::new(vec![1; n], vec![1; n]);
        let batch = TrainBatch::new(&[example(25), example(4)]);
        let noise = options.noise(&batch, Stream::new(1, 2, Site::Noise(0)));
        let widest = |part: &[f32]| part.iter().fold(0f32, |max, x| max.max(x.abs()));
        assert_eq!(noise.len(), 29 * 4);
        assert!((0.4..=0.5).contains(&widest(&noise[..100])), "5 / √(25 · 4) = 0.5");
        assert!((0.9..=1.25).contains(&widest(&noise[100..])), "5 / √(4 · 4) = 1.25");
    }
}
