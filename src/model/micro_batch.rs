//! One micro-batch as a value with a next step.

use super::adapter::AdapterRows;
use super::layer::{Kept, KeptAttention, Keys, Pass};
use super::linear::Adapters;
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

/// What the next unit works on.
enum State<B: Backend> {
    Embed,
    /// `x (t, d)` is the input of `layer`.
    Forward {
        layer: usize,
        x: B::Rows,
    },
    /// `x (t, d)` is the last layer's output; `dx` its gradient as far as the chunks have come.
    Head {
        chunk: usize,
        x: B::Rows,
        dx: B::Rows,
    },
    /// `dx (t, d)` is the gradient of the output of the last layer whose input is left.
    Backward {
        dx: B::Rows,
    },
    /// The same of that layer's attention block, whose input is `x`.
    BackwardAttention {
        layer: usize,
        x: B::Rows,
        kept: KeptAttention<B>,
        dx: B::Rows,
    },
    Done,
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

    /// Does one small unit: one layer forward, one chunk of head and loss, one layer recomputed, or half
    /// of one backward. When the micro-batch is done its loss is returned, and the gradients have been
    /// added to those of `trainee`. A batch without labels is done at once.
    pub fn advance(
        &mut self,
        b: &mut B,
        model: &Model<B>,
        trainee: &mut Trainee<B>,
    ) -> Option<LossSum> {
        self.state = match std::mem::replace(&mut self.state, State::Done) {
            State::Embed => {
                trainee.renew(b, model);
                let x = self.embed(b, model, trainee);
                self.forward_unit(b, model, trainee, 0, x)
            }
            State::Forward { layer, x } => self.forward_unit(b, model, trainee, layer, x),
            State::Head { chunk, x, dx } => self.head_unit(b, model, trainee, chunk, x, dx),
            State::Backward { dx } => self.backward_unit(b, model, trainee, dx),
            State::BackwardAttention { layer, x, kept, dx } => {
                self.backward_attention_unit(b, model, trainee, layer, (x, kept, dx))
            }
            State::Done => State::Done,
        };
        matches!(self.state, State::Done).then_some(self.loss)
    }

    /// Calls of [`MicroBatch::advance`] a whole micro-batch takes, at most.
    pub fn units(&self, model: &Model<B>) -> usize {
        let units_of_a_layer = if self.options.evaluate { 1 } else { 4 };
        units_of_a_layer * model.layers.len() + self.labelled.len().div_ceil(HEAD_CHUNK)
    }

    fn embed(&self, b: &mut B, model: &Model<B>, trainee: &mut Trainee<B>) -> B::Rows {
        let TrainBatch { ids, positions, .. } = &self.batch;
        let (worn, _) = trainee.parts(ids.len());
        let mut x = model.embed(b, ids, positions, worn.as_slice(), &self.pictures());
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
        mut x: B::Rows,
    ) -> State<B> {
        let backward_comes = !self.options.evaluate
            && trainee.first_layer(model).is_some_and(|first| layer >= first);
        let (keeps, block) = (self.keeps(model, layer), &model.layers[layer]);
        let (worn, _) = trainee.parts(self.batch.tokens());
        let mut pass = self.pass(worn.as_slice());
        if backward_comes && keeps {
            let (y, kept) = block.forward_keeping(b, &x, &mut pass);
            self.inputs.push((std::mem::replace(&mut x, y), Some(kept)));
        } else {
            let input = backward_comes.then(|| b.duplicate(&x));
            block.forward(b, &mut x, &mut pass);
            self.inputs.extend(input.map(|input| (input, None)));
        }
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
        x: B::Rows,
        mut dx: B::Rows,
    ) -> State<B> {
        let rows = self.labelled.chunks(HEAD_CHUNK).nth(chunk).expect("a chunk is left");
        let labels: Vec<i32> = rows.iter().map(|&row| self.batch.targets[row]).collect();
        let (worn, mut gradients) = trainee.parts(rows.len());
        let dropout = self.head_dropout(chunk);
        let adapters = Adapters { rows: worn.as_slice(), dropout, training: true };
        let mut labelled = b.zeros(rows.len(), b.shape(&x).1);
        b.gather(&x, rows, &mut labelled);
        let (head, table) = (&model.head, &model.embedding);
        let sum = if self.options.evaluate {
            head.loss(b, &labelled, &labels, table, adapters)
        } else {
            let weight = self.options.weight;
            let (sum, part) = head.loss_and_gradient(
                b,
                &labelled,
                &labels,
                weight,
                table,
                adapters,
                &mut gradients,
            );
            b.scatter_add(&part, rows, &mut dx);
            b.recycle(part);
            sum
        };
        b.recycle(labelled);
        self.add_loss(sum);
        self.after_chunk(b, chunk, x, dx)
    }

    fn after_chunk(&mut self, b: &mut B, chunk: usize, x: B::Rows, dx: B::Rows) -> State<B> {
        if (chunk + 1) * HEAD_CHUNK < self.labelled.len() {
            return State::Head { chunk: chunk + 1, x, dx };
        }
        b.recycle(x);
        if self.inputs.is_empty() {
            b.recycle(dx);
            return State::Done;
        }
        State::Backward { dx }
    }

    /// Computes the last layer again whose input is left, or goes back through its MLP.
    fn backward_unit(
        &mut self,
        b: &mut B,
        model: &Model<B>,
        trainee: &mut Trainee<B>,
        dx: B::Rows,
    ) -> State<B> {
        let first = trainee.first_layer(model).expect("inputs are kept for trained layers");
        let layer = first + self.inputs.len() - 1;
        let (x, kept) = self.inputs.pop().expect("an input is left");
        let (worn, mut gradients) = trainee.parts(self.batch.tokens());
        let mut pass = self.pass(worn.as_slice());
        let block = &model.layers[layer];
        let Some(kept) = kept else {
            let kept = block.compute_again(b, &x, &mut pass);
            self.inputs.push((x, Some(kept)));
            return State::Backward { dx };
        };
        let (kept, dx) = block.backward_mlp(b, &x, kept, dx, pass.adapters, &mut gradients);
        State::BackwardAttention { layer, x, kept, dx }
    }

    fn backward_attention_unit(
        &mut self,
        b: &mut B,
        model: &Model<B>,
        trainee: &mut Trainee<B>,
        layer: usize,
        (x, kept, dx): (B::Rows, KeptAttention<B>, B::Rows),
    ) -> State<B> {
        let need_dx = !self.inputs.is_empty() || trainee.trains_input();
        let (worn, mut gradients) = trainee.parts(self.batch.tokens());
        let pass = self.pass(worn.as_slice());
        let block = &model.layers[layer];
        let dx = block.backward_attention(b, &x, kept, dx, &pass, &mut gradients, need_dx);
        b.recycle(x);
        if !self.inputs.is_empty() {
            return State::Backward { dx };
        }
        let TrainBatch { ids, positions, .. } = &self.batch;
        let (tokens, pictures) = ((&ids[..], &positions[..]), self.pictures());
        model.embed_backward(b, dx, tokens, worn.as_slice(), &pictures, &mut gradients);
        State::Done
    }

    fn pictures(&self) -> Vec<PictureRows<'_>> {
        self.options.pictures.iter().map(SeenPicture::rows).collect()
    }

    fn pass<'a>(&'a self, worn: &'a [AdapterRows<'a, B>]) -> Pass<'a, B> {
        Pass {
            positions: &self.batch.positions,
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
