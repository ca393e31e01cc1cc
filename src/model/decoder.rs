//! The decoder: embedding, layers, head.

use std::ops::Range;
use std::sync::Arc;

use super::adapter::AdapterRows;
use super::config::DecoderConfig;
use super::gradients::Gradients;
use super::head::Head;
use super::layer::{Keys, Layer, Pass};
use super::linear::Adapters;
use super::report::Report;
use super::saved::{Part, replace_rows};
use super::tensors::TensorSpec;
use super::vision::{PictureRows, Vision};
use crate::backend::{Backend, Beyond, CacheShape, KvFormat, Places, SequenceRows};
use crate::domain::{BaseInfo, WeightFormat};

/// A resident base model.
pub struct Model<B: Backend> {
    pub info: Arc<BaseInfo>,
    /// Tokens after which a generation is over, as the configuration names them.
    pub eos_token_ids: Vec<u32>,
    pub(super) embedding: Embedding<B>,
    pub(super) layers: Vec<Layer<B>>,
    pub(super) head: Head<B>,
    pub(super) vision: Option<Vision<B>>,
    /// Every tensor, by slot.
    pub(super) specs: Vec<TensorSpec>,
    pub(super) config: DecoderConfig,
    /// How exact adapters and the cache beside the linear layers are to be.
    pub(super) beside: WeightFormat,
    pub(super) report: Report,
}

/// Token embeddings, and learned positions where a family has them.
pub(super) struct Embedding<B: Backend> {
    /// `(v, d)`.
    pub table: B::Weight,
    /// `(context, d)`.
    pub positions: Option<B::Weight>,
    pub scale: f32,
}

/// One step of serving: a flat ragged batch. Row `i` is token `tokens[i]` of the sequence whose
/// `rows` hold `i`; prefill chunks and decode tokens of any lengths share it.
pub struct Step<'a, B: Backend> {
    pub tokens: &'a [u32],
    /// Cover every row once, in order.
    pub sequences: &'a [SequenceRows],
    /// Features of pictures, at rows whose tokens stand for them.
    pub pictures: &'a [PictureRows<'a>],
    /// Rows that wear an adapter; the others are served by the base alone.
    pub adapters: &'a [AdapterRows<'a, B>],
    /// The rows whose logits are asked for, in the order of the answer.
    pub logits: &'a [usize],
}

impl<B: Backend> Embedding<B> {
    pub const TABLE_SLOT: usize = 0;
    pub const POSITIONS_SLOT: usize = 1;

    /// `x[i] = scale · E[id]`, `(t, d)`; `E` is the adapter's where it brings one.
    fn tokens(&self, b: &mut B, ids: &[u32], adapters: &[AdapterRows<'_, B>]) -> B::Rows {
        let (_, d) = b.weight_shape(&self.table);
        let mut x = b.room(ids.len(), d);
        b.embed(&self.table, ids, self.scale, &mut x);
        for group in adapters {
            let Some(table) = group.adapter.saved(Part::Embedding) else { continue };
            let mut own = b.zeros(group.rows.len(), d);
            b.embed(table, &ids[group.rows.clone()], self.scale, &mut own);
            replace_rows(b, &mut x, group.rows.clone(), own);
        }
        x
    }

    /// `x[i] += P[position]`, where positions are learned.
    fn add_positions(&self, b: &mut B, positions: &[u32], x: &mut B::Rows) {
        let Some(table) = &self.positions else { return };
        let (t, d) = b.shape(x);
        let mut place = b.room(t, d);
        b.embed(table, positions, 1.0, &mut place);
        b.add(&place, x);
        b.recycle(place);
    }

    /// Adds to the gradient of the token table, where it is trained.
    fn tokens_backward(
        &self,
        b: &mut B,
        dx: &B::Rows,
        ids: &[u32],
        gradients: &mut Gradients<'_, B>,
    ) {
        if let Some(dtable) = gradients.saved(Part::Embedding) {
            b.embed_backward(dx, ids, self.scale, dtable);
        }
        if let Some(dtable) = gradients.tensor(Self::TABLE_SLOT) {
            b.embed_backward(dx, ids, self.scale, dtable);
        }
    }

    /// The same for the positions.
    fn positions_backward(
        &self,
        b: &mut B,
        dx: &B::Rows,
        positions: &[u32],
        gradients: &mut Gradients<'_, B>,
    ) {
        if self.positions.is_some()
            && let Some(dtable) = gradients.tensor(Self::POSITIONS_SLOT)
        {
            b.embed_backward(dx, positions, 1.0, dtable);
        }
    }
}

impl<B: Backend> Model<B> {
    /// Room for `blocks` KV blocks of this model, exact to `f32`.
    pub fn cache(&self, b: &mut B, blocks: usize) -> B::Cache {
        self.cache_as(b, blocks, KvFormat::F32)
    }

    /// Room for `blocks` KV blocks of this model.
    pub fn cache_as(&self, b: &mut B, blocks: usize, format: KvFormat) -> B::Cache {
        b.cache(&self.cache_shape(blocks, format))
    }

    /// How the cache is as exact as the weights, and no more.
    pub fn kv_format(&self) -> KvFormat {
        KvFormat::beside(self.beside)
    }

    /// Bytes one KV block takes over all layers.
    pub fn kv_bytes_per_block(&self, b: &B, format: KvFormat) -> usize {
        b.cache_block_bytes(&self.cache_shape(1, format))
    }

    fn cache_shape(&self, blocks: usize, format: KvFormat) -> CacheShape {
        let (kv_heads, head_dim) = self.kv_shape();
        CacheShape { layers: self.layers.len(), kv_heads, head_dim, blocks, format }
    }

    /// What happens to long sequences, if they are turned otherwise than short ones.
    pub fn beyond(&self) -> Option<&Beyond> {
        self.config.beyond()
    }

    fn kv_shape(&self) -> (usize, usize) {
        self.layers.first().map_or((1, 1), |layer| (layer.heads.kv_heads, layer.heads.head_dim))
    }

    /// One forward pass over `step`, its keys and values written to `cache`: the logits
    /// `(step.logits.len(), v)` of the rows asked for.
    pub fn forward(&self, b: &mut B, cache: &mut B::Cache, step: &Step<'_, B>) -> B::Rows {
        let places = places(step.sequences);
        let keys = Keys::Cached { cache, sequences: step.sequences };
        let x = self.embed(b, step.tokens, &places, step.adapters, step.pictures);
        let x = self.hidden(b, x, &places, step.adapters, keys);
        self.logits(b, x, step.adapters, step.logits)
    }

    /// The same without a cache: each span of `ids` is a whole sequence by itself.
    pub fn forward_spans(
        &self,
        b: &mut B,
        ids: &[u32],
        spans: &[Range<usize>],
        adapters: &[AdapterRows<'_, B>],
        logits: &[usize],
    ) -> B::Rows {
        self.forward_seeing(b, ids, spans, adapters, &[], logits)
    }

    /// The same with pictures among the tokens.
    pub fn forward_seeing(
        &self,
        b: &mut B,
        ids: &[u32],
        spans: &[Range<usize>],
        adapters: &[AdapterRows<'_, B>],
        pictures: &[PictureRows<'_>],
        logits: &[usize],
    ) -> B::Rows {
        let mut places = Places::default();
        spans.iter().for_each(|span| places.push(0..span.len(), span.len()));
        let x = self.embed(b, ids, &places, adapters, pictures);
        let x = self.hidden(b, x, &places, adapters, Keys::Spans(spans));
        self.logits(b, x, adapters, logits)
    }

    /// The first layer's input `(t, d)`: tokens, pictures in their places, positions.
    pub(super) fn embed(
        &self,
        b: &mut B,
        ids: &[u32],
        places: &Places,
        adapters: &[AdapterRows<'_, B>],
        pictures: &[PictureRows<'_>],
    ) -> B::Rows {
        let mut x = self.embedding.tokens(b, ids, adapters);
        self.place_pictures(b, &mut x, adapters, pictures);
        self.embedding.add_positions(b, &places.positions, &mut x);
        x
    }

    /// From the gradient `dx (t, d)` of the first layer's input to those of what is trained before it.
    pub(super) fn embed_backward(
        &self,
        b: &mut B,
        mut dx: B::Rows,
        (ids, positions): (&[u32], &[u32]),
        adapters: &[AdapterRows<'_, B>],
        pictures: &[PictureRows<'_>],
        gradients: &mut Gradients<'_, B>,
    ) {
        self.embedding.positions_backward(b, &dx, positions, gradients);
        self.pictures_backward(b, &mut dx, adapters, pictures, gradients);
        self.embedding.tokens_backward(b, &dx, ids, gradients);
        b.recycle(dx);
    }

    /// The last layer's output `(t, d)`, `x` being the first one's input.
    fn hidden(
        &self,
        b: &mut B,
        mut x: B::Rows,
        places: &Places,
        rows: &[AdapterRows<'_, B>],
        keys: Keys<'_, B>,
    ) -> B::Rows {
        let adapters = Adapters { rows, dropout: None, training: false };
        let mut pass = Pass { places, adapters, keys };
        for layer in &self.layers {
            layer.forward(b, &mut x, &mut pass);
        }
        x
    }

    fn logits(
        &self,
        b: &mut B,
        x: B::Rows,
        adapters: &[AdapterRows<'_, B>],
        rows: &[usize],
    ) -> B::Rows {
        let (_, d) = b.shape(&x);
        if rows.is_empty() {
            // A chunk of a prompt that is not its last.
            b.recycle(x);
            return b.zeros(0, self.head.vocab_size);
        }
        let mut asked = b.room(rows.len(), d);
        b.gather(&x, rows, &mut asked);
        b.recycle(x);
        let adapters = follow(adapters, rows);
        let adapters = Adapters { rows: &adapters, dropout: None, training: false };
        let logits = self.head.logits(b, &asked, &self.embedding, adapters);
        b.recycle(asked);
        logits
    }
}

/// The place of every row.
fn places(sequences: &[SequenceRows]) -> Places {
    let mut places = Places::default();
    for sequence in sequences {
        let end = sequence.start + sequence.rows.len();
        places.push(sequence.start..end, sequence.read);
    }
    places
}

/// The adapters of gathered rows: each stretch of `rows` that lies in one group keeps its adapter.
fn follow<'a, B: Backend>(
    adapters: &[AdapterRows<'a, B>],
    rows: &[usize],
) -> Vec<AdapterRows<'a, B>> {
    let mut followed = Vec::new();
    for group in adapters {
        let mut start = 0;
        for stretch in rows.chunk_by(|a, b| group.rows.contains(a) == group.rows.contains(b)) {
            let end = start + stretch.len();
            if group.rows.contains(&stretch[0]) {
                let (adapter, scale) = (group.adapter, group.scale);
                followed.push(AdapterRows { rows: start..end, adapter, scale });
            }
            start = end;
        }
    }
    followed
}
