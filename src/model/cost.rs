//! What a token costs in training, told from shapes alone.

use super::Model;
use super::layer::{Keys, Layer, Pass};
use super::linear::Adapters;
use super::micro_batch::HEAD_CHUNK;
use super::vision::Vision;
use crate::backend::{Backend, Places};
use crate::domain::TrainingCost;

impl<B: Backend> Layer<B> {
    /// Values per token of this layer's backward that live beside what [`Layer::kept_values`]
    /// counts: the MLP's inner values with their gradients, heads with theirs, rows of the
    /// residual's width on the way, and the MLP's projection again where it was put by in halves.
    fn working_values(&self, hidden_size: usize) -> usize {
        let heads = self.qkv.out_features;
        let inner = if self.gated { self.up.out_features / 2 } else { self.up.out_features };
        let widened = if self.halves { self.up.out_features + hidden_size } else { 0 };
        self.up.out_features + 2 * inner + 3 * heads + 5 * hidden_size + widened
    }

    /// The most values per token that one operation of this layer rounds to bf16 at a time.
    fn rounded_values(&self, hidden_size: usize) -> usize {
        let inner = if self.gated { self.up.out_features / 2 } else { self.up.out_features };
        self.up.out_features.max(self.qkv.out_features) + inner.max(hidden_size)
    }
}

impl<B: Backend> Vision<B> {
    /// Values at work in the widest block, forward, and the picture before it.
    fn working_values(&self) -> usize {
        let d = self.config.tower.hidden_size;
        let block = |layer: &Layer<B>| {
            let inner = 2 * layer.up.out_features;
            4 * d + (2 * layer.qkv.out_features + 2 * d).max(inner)
        };
        let widest = self.layers.iter().map(block).max().unwrap_or(0);
        (self.config.patches() + 1) * widest + 3 * self.config.image_size.pow(2)
    }

    /// Multiply-adds of all blocks.
    fn products(&self) -> usize {
        let (tokens, d) = (self.config.patches() + 1, self.config.tower.hidden_size);
        let block = |layer: &Layer<B>| {
            let attention = layer.attention.heads * layer.attention.head_dim;
            let weights =
                d * layer.qkv.out_features + attention * d + 2 * d * layer.up.out_features;
            tokens * (weights + 2 * tokens * attention)
        };
        self.layers.iter().map(block).sum()
    }
}

impl<B: Backend> Model<B> {
    /// What one token of a training run costs on this model.
    pub(super) fn training_cost(&self) -> TrainingCost {
        let d = self.info.hidden_size;
        let most = |values: fn(&Layer<B>, usize) -> usize| {
            self.layers.iter().map(|layer| values(layer, d)).max().unwrap_or(0)
        };
        TrainingCost {
            kept_values: most(Layer::kept_values),
            working_values: most(Layer::working_values),
            rounded_values: most(Layer::rounded_values),
            head_rows: HEAD_CHUNK,
            attention_width: most(|layer, _| layer.attention.heads * layer.attention.head_dim),
            picture_values: self.vision.as_ref().map_or(0, Vision::working_values),
            projector_values: self.info.vision.map_or(0, |vision| {
                // Two inner products and their gradients; a picture's rows taken out and put back.
                vision.tokens_per_image * (vision.feature_width + 7 * d)
            }),
            picture_products: self.vision.as_ref().map_or(0, Vision::products),
        }
    }

    /// Runs the first layer forward over `rows` tokens, for somebody who wants to know how long that
    /// takes.
    pub fn try_layer(&self, b: &mut B, rows: usize) {
        let Some(layer) = self.layers.first() else { return };
        let places = Places::whole(rows);
        let whole = 0..rows;
        let adapters = Adapters { rows: &[], dropout: None, training: true };
        let keys = Keys::Spans(std::slice::from_ref(&whole));
        let mut x = b.zeros(rows, self.info.hidden_size);
        layer.forward(b, &mut x, &mut Pass { places: &places, adapters, keys });
        b.recycle(x);
    }
}
