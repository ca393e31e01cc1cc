//! The units that go back.

use super::MicroBatch;
use crate::backend::Backend;
use crate::model::head::Scored;
use crate::model::layer::{BackAtQkv, BackAtUp, Begun, Kept, KeptAttention};
use crate::model::unit::State;
use crate::model::{Model, TrainBatch, Trainee};

impl<B: Backend> MicroBatch<B> {
    pub(super) fn loss_unit(
        &mut self,
        b: &mut B,
        model: &Model<B>,
        chunk: usize,
        (x, dx, scored): (B::Rows, B::Rows, Scored<B>),
    ) -> State<B> {
        let (labels, weight) = (self.labels(chunk), self.options.weight);
        let (sum, scored) = model.head.loss_of(b, scored, &labels, weight);
        self.add_loss(sum);
        State::HeadBackward { chunk, x, dx, scored }
    }

    pub(super) fn head_backward_unit(
        &mut self,
        b: &mut B,
        model: &Model<B>,
        trainee: &mut Trainee<B>,
        chunk: usize,
        (x, mut dx, scored): (B::Rows, B::Rows, Scored<B>),
    ) -> State<B> {
        let rows = self.chunk(chunk);
        let (worn, mut gradients) = trainee.parts(rows.len());
        let adapters = self.head_adapters(chunk, worn.as_slice());
        let part = model.head.backward(b, scored, &model.embedding, adapters, &mut gradients);
        b.scatter_add(&part, rows, &mut dx);
        b.recycle(part);
        self.after_chunk(b, chunk, x, dx)
    }

    pub(super) fn again_unit(
        &mut self,
        b: &mut B,
        model: &Model<B>,
        trainee: &mut Trainee<B>,
        (x, dx): (B::Rows, B::Rows),
    ) -> State<B> {
        let block = self.layer(model, trainee);
        let (worn, _) = trainee.parts(self.batch.tokens());
        let begun = block.begin(b, &x, &mut self.pass(worn.as_slice()), true);
        State::UpAgain { x, begun, dx }
    }

    pub(super) fn up_again_unit(
        &mut self,
        b: &mut B,
        model: &Model<B>,
        trainee: &mut Trainee<B>,
        (x, begun, dx): (B::Rows, Begun<B>, B::Rows),
    ) -> State<B> {
        let block = self.layer(model, trainee);
        let (worn, _) = trainee.parts(self.batch.tokens());
        let raised = block.raise(b, begun, self.pass(worn.as_slice()).adapters);
        State::Backward { x, kept: Some(block.keep_raised(b, raised)), dx }
    }

    pub(super) fn backward_down_unit(
        &mut self,
        b: &mut B,
        model: &Model<B>,
        trainee: &mut Trainee<B>,
        (x, kept, dx): (B::Rows, Kept<B>, B::Rows),
    ) -> State<B> {
        let block = self.layer(model, trainee);
        let (worn, mut gradients) = trainee.parts(self.batch.tokens());
        let adapters = self.pass(worn.as_slice()).adapters;
        let back = block.backward_down(b, kept, dx, adapters, &mut gradients);
        State::BackwardUp { x, back }
    }

    pub(super) fn backward_up_unit(
        &mut self,
        b: &mut B,
        model: &Model<B>,
        trainee: &mut Trainee<B>,
        (x, back): (B::Rows, BackAtUp<B>),
    ) -> State<B> {
        let block = self.layer(model, trainee);
        let (worn, mut gradients) = trainee.parts(self.batch.tokens());
        let adapters = self.pass(worn.as_slice()).adapters;
        let (kept, dx) = block.backward_up(b, &x, back, adapters, &mut gradients);
        State::BackwardAttention { x, kept, dx }
    }

    pub(super) fn backward_attention_unit(
        &mut self,
        b: &mut B,
        model: &Model<B>,
        trainee: &mut Trainee<B>,
        (x, kept, dx): (B::Rows, KeptAttention<B>, B::Rows),
    ) -> State<B> {
        let block = self.layer(model, trainee);
        let (worn, mut gradients) = trainee.parts(self.batch.tokens());
        let pass = self.pass(worn.as_slice());
        let back = block.backward_attention(b, kept, dx, &pass, &mut gradients);
        State::BackwardQkv { x, back }
    }

    pub(super) fn backward_qkv_unit(
        &mut self,
        b: &mut B,
        model: &Model<B>,
        trainee: &mut Trainee<B>,
        (x, back): (B::Rows, BackAtQkv<B>),
    ) -> State<B> {
        let need_dx = !self.inputs.is_empty() || trainee.trains_input();
        let block = self.layer(model, trainee);
        let (worn, mut gradients) = trainee.parts(self.batch.tokens());
        let adapters = self.pass(worn.as_slice()).adapters;
        let dx = block.backward_qkv(b, &x, back, adapters, &mut gradients, need_dx);
        b.recycle(x);
        if let Some((x, kept)) = self.inputs.pop() {
            return State::Backward { x, kept, dx };
        }
        let TrainBatch { ids, places, .. } = &self.batch;
        let (tokens, pictures) = ((&ids[..], &places.positions[..]), self.pictures());
        model.embed_backward(b, dx, tokens, worn.as_slice(), &pictures, &mut gradients);
        State::Done
    }
}
