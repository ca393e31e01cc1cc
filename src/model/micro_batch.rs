//! One micro-batch as a value with a next step.

mod backward;

use super::adapter::AdapterRows;
use super::layer::{Kept, Keys, Layer, Pass, Raised};
use super::linear::Adapters;
use super::unit::{PassUnit, State};
use super::vision::{PictureRows, SeenPicture};
use super::{Model, TrainBatch, Trainee};
use crate::backend::{Backend, LossSum};
use crate::domain::IGNORE_INDEX;

/// Rows whose logits live at one time. With a vocabulary of 50,000 a chunk is work as of a layer.
pub(super) const HEAD_CHUNK: usize = 64;

/// How a micro-batch is run.
#[derive(Clone, Debug, Default)]
pub struct MicroBatchOptions {
    /// Multiplies each token's loss in the gradient: `1 /` labels of the accumulation window.
    pub weight: f32,
    /// Dropout before `A` of every site.
    pub dropout: Option<LoraDropout>,
    /// Added to the embeddings, `(t, d)`: NEFTune's noise (Jain et al. 2023), drawn by the caller.
    pub noise: Option<Vec<f32>>,
    /// What the tower saw of the batch's pictures.
    pub pictures: Vec<SeenPicture>,
    /// Bytes of activations that may be kept for the backward beside the layers' inputs. What is
    /// not kept is computed again, to the same bits.
    pub keep_bytes: usize,
    /// Loss alone: no gradient is formed, and neither dropout nor noise should be given.
    pub evaluate: bool,
}

/// `lora_dropout`: the mask is drawn from `key`, the site and the element's index, so that the
/// recomputation meets it again.
#[derive(Clone, Copy, Debug)]
pub struct LoraDropout {
    pub p: f32,
    /// Differs between micro-batches.
    pub key: u64,
}

/// A micro-batch under way. Between two calls of [`MicroBatch::advance`] the device may serve.
///
/// Of the forward pass each layer's input is kept, and of the last layers what their backward needs,
/// as far as memory is given for it: the backward computes the others again before it goes through
/// them (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost").
pub struct MicroBatch<B: Backend> {
    batch: TrainBatch,
    options: MicroBatchOptions,
    /// The rows that bear loss.
    labelled: Vec<usize>,
    /// Of each layer whose backward is to come: its input, and what was kept besides.
    inputs: Vec<(B::Rows, Option<Kept<B>>)>,
    state: State<B>,
    loss: LossSum,
}

impl<B: Backend> MicroBatch<B> {
    /// Sets a micro-batch up; nothing is computed yet. `options` bring what was seen of the batch's
    /// pictures.
    pub fn start(batch: TrainBatch, options: MicroBatchOptions) -> Self {
        let rows = batch.targets.iter().enumerate();
        let labelled = rows.filter(|&(_, &target)| target != IGNORE_INDEX).map(|(row, _)| row);
        let labelled: Vec<usize> = labelled.collect();
        let state = if labelled.is_empty() { State::Done } else { State::Embed };
        Self { batch, options, labelled, inputs: Vec::new(), state, loss: LossSum::default() }
    }

    /// The kind of the next unit; `None` if none is left.
    pub fn next_unit(&self) -> Option<PassUnit> {
        self.state.next()
    }

    /// Does one small unit: a product or two of a layer, forward, anew or backward, or of a chunk of
    /// the head. When the micro-batch is done its loss is returned, and the gradients have been added
    /// to those of `trainee`. A batch without labels is done at once.
    pub fn advance(
        &mut self,
        b: &mut B,
        model: &Model<B>,
        trainee: &mut Trainee<B>,
    ) -> Option<LossSum> {
        self.state = match std::mem::replace(&mut self.state, State::Done) {
            State::Embed => {
                trainee.renew(b, model);
                State::Forward { layer: 0, x: self.embed(b, model, trainee) }
            }
            State::Forward { layer, x } => self.forward_unit(b, model, trainee, layer, x),
            State::Head { chunk, x, dx } => self.head_unit(b, model, trainee, chunk, (x, dx)),
            State::ForwardUp { layer, input, begun } => {
                let (worn, _) = trainee.parts(self.batch.tokens());
                let adapters = self.pass(worn.as_slice()).adapters;
                let raised = model.layers[layer].raise(b, begun, adapters);
                State::ForwardDown { layer, input, raised }
            }
            State::ForwardDown { layer, input, raised } => {
                self.forward_down_unit(b, model, trainee, layer, (input, raised))
            }
            State::Loss { chunk, x, dx, scored } => {
                self.loss_unit(b, model, chunk, (x, dx, scored))
            }
            State::HeadBackward { chunk, x, dx, scored } => {
                self.head_backward_unit(b, model, trainee, chunk, (x, dx, scored))
            }
            State::Backward { x, kept: None, dx } => self.again_unit(b, model, trainee, (x, dx)),
            State::UpAgain { x, begun, dx } => {
                self.up_again_unit(b, model, trainee, (x, begun, dx))
            }
            State::Backward { x, kept: Some(kept), dx } => {
                self.backward_down_unit(b, model, trainee, (x, kept, dx))
            }
            State::BackwardUp { x, back } => self.backward_up_unit(b, model, trainee, (x, back)),
            State::BackwardAttention { x, kept, dx } => {
                self.backward_attention_unit(b, model, trainee, (x, kept, dx))
            }
            State::BackwardQkv { x, back } => self.backward_qkv_unit(b, model, trainee, (x, back)),
            State::Done => State::Done,
        };
        matches!(self.state, State::Done).then_some(self.loss)
    }

    /// Calls of [`MicroBatch::advance`] a whole micro-batch takes, at most.
    pub fn units(&self, model: &Model<B>) -> usize {
        let (of_a_layer, of_a_chunk) = if self.options.evaluate { (3, 1) } else { (9, 3) };
        1 + of_a_layer * model.layers.len() + of_a_chunk * self.labelled.len().div_ceil(HEAD_CHUNK)
    }

    fn embed(&self, b: &mut B, model: &Model<B>, trainee: &mut Trainee<B>) -> B::Rows {
        let TrainBatch { ids, places, .. } = &self.batch;
        let (worn, _) = trainee.parts(ids.len());
        let mut x = model.embed(b, ids, places, worn.as_slice(), &self.pictures());
        if let Some(noise) = &self.options.noise {
            let (t, d) = b.shape(&x);
            let noise = b.upload(noise, t, d);
            b.add(&noise, &mut x);
            b.recycle(noise);
        }
        x
    }

    fn forward_unit(
        &mut self,
        b: &mut B,
        model: &Model<B>,
        trainee: &mut Trainee<B>,
        layer: usize,
        x: B::Rows,
    ) -> State<B> {
        let backward_comes = !self.options.evaluate
            && trainee.first_layer(model).is_some_and(|first| layer >= first);
        let (keeps, block) = (self.keeps(model, layer), &model.layers[layer]);
        let (worn, _) = trainee.parts(self.batch.tokens());
        let mut pass = self.pass(worn.as_slice());
        let begun = block.begin(b, &x, &mut pass, backward_comes && keeps);
        if backward_comes {
            return State::ForwardUp { layer, input: Some(x), begun };
        }
        b.recycle(x);
        State::ForwardUp { layer, input: None, begun }
    }

    fn forward_down_unit(
        &mut self,
        b: &mut B,
        model: &Model<B>,
        trainee: &mut Trainee<B>,
        layer: usize,
        (input, raised): (Option<B::Rows>, Raised<B>),
    ) -> State<B> {
        let (worn, _) = trainee.parts(self.batch.tokens());
        let adapters = self.pass(worn.as_slice()).adapters;
        let (x, kept) = model.layers[layer].finish(b, raised, adapters);
        self.inputs.extend(input.map(|input| (input, kept)));
        if layer + 1 < model.layers.len() {
            return State::Forward { layer: layer + 1, x };
        }
        let (t, d) = b.shape(&x);
        let dx = b.zeros(t, d);
        State::Head { chunk: 0, x, dx }
    }

    /// Whether memory is given to keep this layer and all that follow: the last layers go first,
    /// so that theirs is free again when the first are computed anew.
    fn keeps(&self, model: &Model<B>, layer: usize) -> bool {
        let d = model.info.hidden_size;
        let values: usize = model.layers[layer..].iter().map(|layer| layer.kept_values(d)).sum();
        values * self.batch.tokens() * size_of::<f32>() <= self.options.keep_bytes
    }

    fn head_unit(
        &mut self,
        b: &mut B,
        model: &Model<B>,
        trainee: &mut Trainee<B>,
        chunk: usize,
        (x, dx): (B::Rows, B::Rows),
    ) -> State<B> {
        let rows = self.chunk(chunk);
        let (worn, _) = trainee.parts(rows.len());
        let adapters = self.head_adapters(chunk, worn.as_slice());
        let mut labelled = b.zeros(rows.len(), b.shape(&x).1);
        b.gather(&x, rows, &mut labelled);
        if !self.options.evaluate {
            let scored = model.head.score(b, labelled, &model.embedding, adapters);
            return State::Loss { chunk, x, dx, scored };
        }
        let labels = self.labels(chunk);
        let sum = model.head.loss(b, &labelled, &labels, &model.embedding, adapters);
        b.recycle(labelled);
        self.add_loss(sum);
        self.after_chunk(b, chunk, x, dx)
    }

    /// The rows of a chunk of the head.
    fn chunk(&self, chunk: usize) -> &[usize] {
        self.labelled.chunks(HEAD_CHUNK).nth(chunk).expect("a chunk is left")
    }

    fn labels(&self, chunk: usize) -> Vec<i32> {
        self.chunk(chunk).iter().map(|&row| self.batch.targets[row]).collect()
    }

    fn head_adapters<'a>(&self, chunk: usize, rows: &'a [AdapterRows<'a, B>]) -> Adapters<'a, B> {
        Adapters { rows, dropout: self.head_dropout(chunk), training: true }
    }

    fn after_chunk(&mut self, b: &mut B, chunk: usize, x: B::Rows, dx: B::Rows) -> State<B> {
        if (chunk + 1) * HEAD_CHUNK < self.labelled.len() {
            return State::Head { chunk: chunk + 1, x, dx };
        }
        b.recycle(x);
        let Some((x, kept)) = self.inputs.pop() else {
            b.recycle(dx);
            return State::Done;
        };
        State::Backward { x, kept, dx }
    }

    /// The layer whose input was taken last.
    fn layer<'a>(&self, model: &'a Model<B>, trainee: &mut Trainee<B>) -> &'a Layer<B> {
        let first = trainee.first_layer(model).expect("inputs are kept for trained layers");
        &model.layers[first + self.inputs.len()]
    }

    fn pictures(&self) -> Vec<PictureRows<'_>> {
        self.options.pictures.iter().map(SeenPicture::rows).collect()
    }

    fn pass<'a>(&'a self, worn: &'a [AdapterRows<'a, B>]) -> Pass<'a, B> {
        Pass {
            places: &self.batch.places,
            adapters: Adapters { rows: worn, dropout: self.options.dropout, training: true },
            keys: Keys::Spans(&self.batch.spans),
        }
    }

    /// Each chunk of the head draws a mask of its own.
    fn head_dropout(&self, chunk: usize) -> Option<LoraDropout> {
        let turn = (chunk as u64 + 1).wrapping_mul(0xa076_1d64_78bd_642f);
        self.options.dropout.map(|dropout| LoraDropout { key: dropout.key ^ turn, ..dropout })
    }

    fn add_loss(&mut self, part: LossSum) {
        self.loss.loss += part.loss;
        self.loss.tokens += part.tokens;
        self.loss.correct += part.correct;
    }
}
