//! Training the demo model from nothing: every weight, on the corpus alone.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokenizers::Tokenizer;

use super::corpus::{Kind, Sample};
use super::shape::Shape;
use super::{DemoError, exam, files, tokenizer};
use crate::backend::{Backend, LossSum, WeightFormat};
use crate::domain::{Example, Hyperparameters, LrScheduler};
use crate::model::{LoadOptions, Model, TrainBatch, Trainee};
use crate::train::{Decay, Evaluation, Optimizer, Window, schedule};

/// What to make and where.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder the model is written to.
    pub out: PathBuf,
    /// Of the corpus, the tokenizer and the first weights.
    pub seed: u64,
    /// Optimiser steps, of about [`BATCH_TOKENS`] tokens each.
    pub steps: usize,
    /// Threads of the device; 0: one per core.
    pub threads: usize,
    /// The folder is written anew after so long, so that a run cut short leaves a model.
    pub save_every: Duration,
}

impl Options {
    /// What the embedded model was made with.
    pub fn new(out: PathBuf) -> Self {
        Self { out, seed: 1, steps: STEPS, threads: 0, save_every: Duration::from_secs(240) }
    }
}

/// Steps the embedded model was trained for.
pub const STEPS: usize = 4200;

/// Tokens per optimiser step, about.
pub const BATCH_TOKENS: usize = 2048;

/// The learning rate after the warm-up.
const PEAK_RATE: f64 = 3e-3;

/// Samples looked through for held-out ones when the loss is stated.
pub const HELD_OUT_SAMPLES: u64 = 24_000;

/// Where the held-out samples are drawn: far behind any sample that is trained on.
const HELD_OUT_FROM: u64 = 1 << 40;

/// How training goes.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    pub step: usize,
    pub total_steps: usize,
    /// Mean loss per token of this step.
    pub loss: f64,
    pub learning_rate: f64,
    pub grad_norm: f64,
    /// Tokens seen since the start.
    pub tokens: u64,
    pub elapsed: Duration,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Summary {
    pub parameters: usize,
    pub steps: usize,
    pub tokens: u64,
    pub elapsed: Duration,
    pub train_loss: f64,
    /// Mean loss per token and tokens looked at, by kind, of the model as it was written.
    pub held_out: BTreeMap<Kind, (f64, usize)>,
    /// Questions of [`exam::QUESTIONS`] answered right, and how many there are.
    pub answered: (usize, usize),
}

/// Trains the demo model on the backend `b` and writes it to `options.out`.
///
/// # Errors
/// [`DemoError`] if the folder cannot be written, the loss stops being a number, or tokenizer or
/// model refuse what they are given.
pub fn train_on<B: Backend>(
    b: &mut B,
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> Result<Summary, DemoError> {
    let shape = Shape::DEMO;
    let tokenizer = tokenizer::train(options.seed, shape.vocab_size)?;
    files::write_tokenizer(&options.out, &tokenizer, &shape)?;
    // Products run on the weights as they will be served, rounded to bf16; the optimiser moves
    // the `f32` originals.
    let load = LoadOptions { name: "demo".to_owned(), format: Some(WeightFormat::Bf16) };
    let mut model = Model::load(b, &shape.initial(options.seed)?, &load)?;
    let mut run = Run::new(b, &mut model, &tokenizer, options)?;
    let mut saved = Instant::now();
    while run.step < options.steps {
        let report = run.step(b, &mut model)?;
        progress(report);
        if saved.elapsed() > options.save_every {
            files::write_weights(b, &options.out, &mut run.trainee, &shape)?;
            saved = Instant::now();
        }
    }
    files::write_weights(b, &options.out, &mut run.trainee, &shape)?;
    let summary = run.summary(b, options, &tokenizer)?;
    files::write_card(&options.out, options, &summary)?;
    Ok(summary)
}

/// The run under way.
struct Run<'a, B: Backend> {
    trainee: Trainee<B>,
    optimizer: Optimizer<B>,
    documents: Documents<'a>,
    hyperparameters: Hyperparameters,
    step: usize,
    steps: usize,
    tokens: u64,
    loss: f64,
    begun: Instant,
}

impl<'a, B: Backend> Run<'a, B> {
    fn new(
        b: &mut B,
        model: &mut Model<B>,
        tokenizer: &'a Tokenizer,
        options: &Options,
    ) -> Result<Self, DemoError> {
        let mut trainee = Trainee::full(b, model)?;
        let optimizer = Optimizer::new(b, &mut trainee, Decay::Matrices);
        Ok(Self {
            trainee,
            optimizer,
            documents: Documents { tokenizer, seed: options.seed, next: 0 },
            hyperparameters: hyperparameters(options.steps),
            step: 0,
            steps: options.steps,
            tokens: 0,
            loss: f64::NAN,
            begun: Instant::now(),
        })
    }

    fn step(&mut self, b: &mut B, model: &mut Model<B>) -> Result<Progress, DemoError> {
        let step = self.step + 1;
        let mut window = Window::plain(vec![self.documents.batch()?]);
        let found = loop {
            if let Some(found) = window.advance(b, model, &mut self.trainee) {
                break found;
            }
        };
        let rate = schedule::learning_rate(&self.hyperparameters, step, self.steps);
        let squares = self.optimizer.gradient_squares(b, &mut self.trainee);
        let norm = squares.iter().sum::<f64>().sqrt();
        self.loss = found.loss / found.tokens as f64;
        if !(self.loss.is_finite() && norm.is_finite()) {
            return Err(DemoError::Diverged { step, loss: self.loss });
        }
        let moved =
            self.optimizer.step(b, &mut self.trainee, &self.hyperparameters, rate, norm, step);
        moved.expect("moments on the device need no file");
        self.trainee.zero_gradients(b);
        self.trainee.refresh(b, model);
        self.step = step;
        self.tokens += window.tokens() as u64;
        Ok(Progress {
            step,
            total_steps: self.steps,
            loss: self.loss,
            learning_rate: rate,
            grad_norm: norm,
            tokens: self.tokens,
            elapsed: self.begun.elapsed(),
        })
    }

    /// Reads back what was written and examines that.
    fn summary(
        &self,
        b: &mut B,
        options: &Options,
        tokenizer: &Tokenizer,
    ) -> Result<Summary, DemoError> {
        let elapsed = self.begun.elapsed();
        let load = LoadOptions { name: "demo".to_owned(), format: None };
        let source = crate::model::ModelSource::Folder(options.out.clone());
        let model = Model::load(b, &source, &load)?;
        let mut answered = 0;
        for (question, expected) in exam::QUESTIONS {
            let (text, ended) = exam::answer(b, &model, tokenizer, question)?;
            answered += usize::from(ended && text.contains(expected));
        }
        Ok(Summary {
            parameters: Shape::DEMO.parameters(),
            steps: self.step,
            tokens: self.tokens,
            elapsed,
            train_loss: self.loss,
            held_out: held_out_loss(b, &model, tokenizer, options.seed, HELD_OUT_SAMPLES)?,
            answered: (answered, exam::QUESTIONS.len()),
        })
    }
}

/// The corpus as a stream of batches: samples in order, held-out ones passed over.
struct Documents<'a> {
    tokenizer: &'a Tokenizer,
    seed: u64,
    next: u64,
}

impl Documents<'_> {
    /// Documents end to end, none seeing another, until there are [`BATCH_TOKENS`].
    fn batch(&mut self) -> Result<TrainBatch, DemoError> {
        let (mut examples, mut tokens) = (Vec::new(), 0);
        while tokens < BATCH_TOKENS {
            let sample = Sample::draw(self.seed, self.next);
            self.next += 1;
            if !sample.held_out() {
                let example = tokenizer::example(self.tokenizer, &sample.document)?;
                tokens += example.ids.len();
                examples.push(example);
            }
        }
        Ok(TrainBatch::new(&examples))
    }
}

/// Mean loss per token and tokens, by kind, over the held-out ones of `samples` samples.
///
/// # Errors
/// [`DemoError`] if the model cannot be evaluated.
pub fn held_out_loss<B: Backend>(
    b: &mut B,
    model: &Model<B>,
    tokenizer: &Tokenizer,
    seed: u64,
    samples: u64,
) -> Result<BTreeMap<Kind, (f64, usize)>, DemoError> {
    let mut by_kind: BTreeMap<Kind, Vec<Example>> = BTreeMap::new();
    let mut seen = std::collections::HashSet::new();
    for index in HELD_OUT_FROM..HELD_OUT_FROM + samples {
        let sample = Sample::draw(seed, index);
        if sample.held_out() && seen.insert(sample.document.plain()) {
            let example = tokenizer::example(tokenizer, &sample.document)?;
            by_kind.entry(sample.kind).or_default().push(example);
        }
    }
    let loss = |(kind, examples): (Kind, Vec<Example>)| {
        let sum = evaluate(b, model, &examples);
        (kind, (sum.loss / sum.tokens as f64, sum.tokens))
    };
    Ok(by_kind.into_iter().map(loss).collect())
}

fn evaluate<B: Backend>(b: &mut B, model: &Model<B>, examples: &[Example]) -> LossSum {
    let mut nothing = Trainee::nothing();
    let mut pass = Evaluation::new(examples, model.info.context_length);
    loop {
        if let Some(sum) = pass.advance(b, model, &mut nothing) {
            return sum;
        }
    }
}

/// AdamW as for small GPTs: a short warm-up, a cosine to 0, decay on matrices alone.
fn hyperparameters(steps: usize) -> Hyperparameters {
    Hyperparameters {
        n_epochs: 1,
        batch_size: 1,
        micro_batch_size: 1,
        gradient_accumulation_steps: 1,
        learning_rate: PEAK_RATE,
        learning_rate_multiplier: 1.0,
        lr_scheduler: LrScheduler::Cosine,
        warmup_steps: (steps / 20).min(100),
        weight_decay: 0.1,
        adam_beta1: 0.9,
        adam_beta2: 0.98,
        adam_epsilon: 1e-8,
        max_grad_norm: 1.0,
        max_steps: Some(steps),
        max_seq_length: Shape::DEMO.context_length,
        packing: true,
        shuffle: false,
        neftune_alpha: 0.0,
        eval_steps: None,
        checkpoint_steps: None,
        ..Hyperparameters::default()
    }
}
