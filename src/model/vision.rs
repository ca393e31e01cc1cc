//! Seeing: a picture through the vision tower, to features of which a projector makes what stands in
//! a prompt where its image tokens are. The tower is always the base's; the projector may be an
//! adapter's own, so that features are kept as the tower gives them.
//!
//! Shapes: `n` patches of a picture, `p` their side, `w` the tower's hidden size, `f` the width of
//! features: `w` for each layer they are taken from.

use std::ops::Range;
use std::sync::Arc;

use super::ModelError;
use super::adapter::AdapterRows;
use super::build::{Builder, dense_format};
use super::checkpoint::Checkpoint;
use super::config::VisionConfig;
use super::decoder::Model;
use super::gradients::Gradients;
use super::layer::{Keys, Layer, Pass};
use super::linear::Adapters;
use super::norm::ModelNorm;
use super::projector::Projector;
use super::saved::replace_rows;
use super::tensors::{TensorKind, TensorSpec};
use crate::backend::{Backend, HostWeight, Places, WeightFormat};
use crate::domain::Picture;

/// Tower and projector of a model that sees.
pub(super) struct Vision<B: Backend> {
    pub config: VisionConfig,
    /// `(w, 3 p²)`.
    filters: B::Weight,
    /// `(n + 1, w)`: what every picture begins with: positions, and in the first row the class token.
    beginning: B::Rows,
    pre_norm: ModelNorm<B>,
    pub layers: Vec<Layer<B>>,
    pub projector: Projector<B>,
    /// Every tensor of both.
    pub specs: Vec<TensorSpec>,
    pub parameters: u64,
    pub size_bytes: usize,
}

/// A picture on its way through the tower: one block per call, so that nobody waits for all.
pub struct PictureRun<B: Backend> {
    /// `(n + 1, w)`.
    x: B::Rows,
    next_layer: usize,
    /// What was taken so far, `(tokens_per_image, w)`, and behind how many blocks.
    taken: Vec<(usize, Vec<f32>)>,
}

/// Features that, projected, take the place of token embeddings: of the batch's rows from `row` on.
#[derive(Clone, Copy, Debug)]
pub struct PictureRows<'a> {
    pub row: usize,
    /// `(rows, f)`.
    pub features: &'a [f32],
}

impl<'a> PictureRows<'a> {
    /// The part that lies within `rows`, counted from their first; `width` values describe a row.
    pub fn within(&self, rows: &Range<usize>, width: usize) -> Option<PictureRows<'a>> {
        let end = (self.row + self.features.len() / width).min(rows.end);
        let start = self.row.max(rows.start);
        let part = |row: usize| (row - self.row) * width;
        (start < end).then(|| PictureRows {
            row: start - rows.start,
            features: &self.features[part(start)..part(end)],
        })
    }
}

/// The same of a training batch, which outlives a call.
#[derive(Clone, Debug)]
pub struct SeenPicture {
    /// Its first row.
    pub row: usize,
    /// `(tokens_per_image, f)`.
    pub features: Arc<[f32]>,
}

impl SeenPicture {
    /// As the model wants it.
    pub fn rows(&self) -> PictureRows<'_> {
        PictureRows { row: self.row, features: &self.features }
    }
}

impl<B: Backend> Vision<B> {
    /// Reads tower and projector; they are held densely beside a decoder of `format`.
    ///
    /// # Errors
    /// If a tensor is missing, misshapen or not finite.
    pub fn build(
        b: &mut B,
        config: &VisionConfig,
        hidden_size: usize,
        checkpoint: &mut Checkpoint,
        format: WeightFormat,
    ) -> Result<Self, ModelError> {
        // Rows of a patch are no whole blocks of any quantised format.
        let format = match dense_format(format) {
            WeightFormat::F32 => WeightFormat::F32,
            _ => WeightFormat::Bf16,
        };
        let tower = &*config.tower;
        let mut builder = Builder::new(b, tower, checkpoint, format);
        let filters = filters(&mut builder, config, format)?;
        let beginning = beginning(&mut builder, config)?;
        let pre_norm =
            builder.norm(&format!("{}pre_layrnorm", tower.names.prefix), tower.hidden_size)?;
        let layers = (0..tower.layers.len()).map(|index| builder.layer(index));
        let mut layers = layers.collect::<Result<Vec<_>, _>>()?;
        layers.iter_mut().for_each(|layer| layer.attention.causal = false);
        let projector = Projector::build(&mut builder, config, hidden_size)?;
        Ok(Self {
            config: config.clone(),
            filters,
            beginning,
            pre_norm,
            layers,
            projector,
            parameters: builder.specs.iter().map(|spec| spec.parameters() as u64).sum(),
            size_bytes: builder.report.size_bytes,
            specs: builder.specs,
        })
    }

    /// The tower's embedding of a picture.
    fn start(&self, b: &mut B, picture: &Picture) -> PictureRun<B> {
        let patches = unfold(&picture.pixels, self.config.image_size, self.config.patch_size);
        let (n, (_, d)) = (self.config.patches(), b.shape(&self.beginning));
        let patches = b.upload(&patches, n, 3 * self.config.patch_size.pow(2));
        let mut embedded = b.zeros(n, d);
        b.matmul(&patches, &self.filters, None, &mut embedded, 0);
        let mut x = b.duplicate(&self.beginning);
        let rows: Vec<usize> = (1..=n).collect();
        b.scatter_add(&embedded, &rows, &mut x);
        let normed = self.pre_norm.forward(b, &x);
        [patches, embedded, x].into_iter().for_each(|rows| b.recycle(rows));
        let mut run = PictureRun { x: normed, next_layer: 0, taken: Vec::new() };
        self.take(b, &mut run);
        run
    }

    fn block(&self, b: &mut B, run: &mut PictureRun<B>) {
        let (tokens, _) = b.shape(&run.x);
        let places = Places::whole(tokens);
        let (whole, adapters) = (0..tokens, Adapters { rows: &[], dropout: None, training: false });
        let keys = Keys::Spans(std::slice::from_ref(&whole));
        let mut pass = Pass { places: &places, adapters, keys };
        self.layers[run.next_layer].forward(b, &mut run.x, &mut pass);
        run.next_layer += 1;
        self.take(b, run);
    }

    /// Keeps the rows that are features, if features are taken here.
    fn take(&self, b: &mut B, run: &mut PictureRun<B>) {
        if !self.config.feature_layers.contains(&run.next_layer) {
            return;
        }
        let (_, width) = b.shape(&run.x);
        let mut values = b.download(&run.x);
        values.drain(..if self.config.keep_class { 0 } else { width });
        run.taken.push((run.next_layer, values));
    }

    /// What was taken, of each row side by side: `(tokens_per_image, f)`.
    fn features(&self, taken: &mut Vec<(usize, Vec<f32>)>) -> Vec<f32> {
        if let ([_], [_]) = (&self.config.feature_layers[..], &taken[..]) {
            return taken.remove(0).1;
        }
        let width = self.config.tower.hidden_size;
        let of = |layer: &usize| taken.iter().find(|(blocks, _)| blocks == layer);
        let places = self.config.feature_layers.iter().filter_map(of);
        let places: Vec<_> = places.map(|(_, values)| values).collect();
        let rows = (0..self.config.tokens()).map(|row| row * width..(row + 1) * width);
        rows.flat_map(|row| places.iter().flat_map(move |values| &values[row.clone()]))
            .copied()
            .collect()
    }
}

impl<B: Backend> Model<B> {
    /// Begins to look at a picture; `None` if this model sees none, or none of that size.
    pub fn see(&self, b: &mut B, picture: &Picture) -> Option<PictureRun<B>> {
        let vision = self.vision.as_ref()?;
        let fits = picture.pixels.len() == 3 * vision.config.image_size.pow(2);
        fits.then(|| vision.start(b, picture))
    }
}

impl<B: Backend> Model<B> {
    /// Puts projected features into the rows of `x (t, d)` where pictures are.
    ///
    /// # Panics
    /// If there are pictures and the model sees none.
    pub(super) fn place_pictures(
        &self,
        b: &mut B,
        x: &mut B::Rows,
        adapters: &[AdapterRows<'_, B>],
        pictures: &[PictureRows<'_>],
    ) {
        for picture in pictures {
            let (projector, features) = self.shown(b, adapters, picture);
            let projected = projector.forward(b, &features);
            let count = b.shape(&features).0;
            b.recycle(features);
            replace_rows(b, x, picture.row..picture.row + count, projected);
        }
    }

    /// Takes the pictures' rows out of the gradient `dx (t, d)` of [`Model::place_pictures`], and adds
    /// to those of the projector where it is trained.
    pub(super) fn pictures_backward(
        &self,
        b: &mut B,
        dx: &mut B::Rows,
        adapters: &[AdapterRows<'_, B>],
        pictures: &[PictureRows<'_>],
        gradients: &mut Gradients<'_, B>,
    ) {
        for picture in pictures {
            let (projector, features) = self.shown(b, adapters, picture);
            let (count, d) = (b.shape(&features).0, b.shape(dx).1);
            let rows: Vec<usize> = (picture.row..picture.row + count).collect();
            let mut own = b.zeros(count, d);
            b.gather(dx, &rows, &mut own);
            if let Some(gradients) = gradients.projector() {
                projector.backward(b, &own, &features, gradients);
            }
            let nothing = b.zeros(count, d);
            replace_rows(b, dx, picture.row..picture.row + count, nothing);
            [own, features].into_iter().for_each(|rows| b.recycle(rows));
        }
    }

    /// The projector that the rows of `picture` wear, and its features on the device.
    fn shown<'a>(
        &'a self,
        b: &mut B,
        adapters: &[AdapterRows<'a, B>],
        picture: &PictureRows<'_>,
    ) -> (&'a Projector<B>, B::Rows) {
        let worn = adapters.iter().find(|group| group.rows.contains(&picture.row));
        let own = worn.and_then(|group| group.adapter.projector.as_ref());
        let projector = own.or(self.projector()).expect("pictures are shown to models that see");
        let width = self.info.vision.map_or(1, |vision| vision.feature_width);
        (projector, b.upload(picture.features, picture.features.len() / width, width))
    }
}

impl<B: Backend> PictureRun<B> {
    /// One block more; at the end the features `(tokens_per_image, f)`. To be called no more after
    /// that.
    ///
    /// # Panics
    /// If `model` is not the one that began.
    pub fn advance(&mut self, b: &mut B, model: &Model<B>) -> Option<Vec<f32>> {
        let vision = model.vision.as_ref().expect("a run began with a model that sees");
        if self.next_layer < vision.layers.len() {
            vision.block(b, self);
        }
        if self.next_layer < vision.layers.len() {
            return None;
        }
        Some(vision.features(&mut self.taken))
    }

    /// Gives its memory back.
    pub fn release(self, b: &mut B) {
        b.recycle(self.x);
    }
}

/// The convolution of the patches as one product.
fn filters<B: Backend>(
    builder: &mut Builder<'_, B>,
    config: &VisionConfig,
    format: WeightFormat,
) -> Result<B::Weight, ModelError> {
    let names = &config.tower.names;
    let (out_features, side) = (config.tower.hidden_size, config.patch_size);
    let in_features = 3 * side * side;
    let kind = TensorKind::Patches { side, format };
    let name = format!("{}{}.weight", names.prefix, names.embedding);
    let values = builder.values(name, (out_features, in_features), kind)?;
    let weight =
        builder.b.pack(HostWeight { values: (&values).into(), out_features, in_features }, format);
    builder.report.size_bytes += builder.b.weight_bytes(&weight);
    Ok(weight)
}

fn beginning<B: Backend>(
    builder: &mut Builder<'_, B>,
    config: &VisionConfig,
) -> Result<B::Rows, ModelError> {
    let (names, d) = (&config.tower.names, config.tower.hidden_size);
    let rows = config.patches() + 1;
    let positions = names.positions.expect("CLIP learns positions");
    let name = format!("{}{positions}.weight", names.prefix);
    let kind = TensorKind::Weight(WeightFormat::F32);
    let mut values = builder.values(name, (rows, d), kind)?;
    let name = format!("{}embeddings.class_embedding", names.prefix);
    let class = builder.values(name, (1, d), TensorKind::Bias)?;
    values.iter_mut().zip(class).for_each(|(value, class)| *value += class);
    builder.report.size_bytes += size_of_val(&values[..]);
    Ok(builder.b.upload(&values, rows, d))
}

/// Planes `(3, side, side)` as patches `(n, 3 p²)`, each in the order of its planes, row by row.
fn unfold(pixels: &[f32], side: usize, patch: usize) -> Vec<f32> {
    let mut patches = Vec::with_capacity(pixels.len());
    for (top, left) in (0..side)
        .step_by(patch)
        .flat_map(|top| (0..side).step_by(patch).map(move |left| (top, left)))
    {
        for (plane, y) in (0..3).flat_map(|plane| (0..patch).map(move |y| (plane, y))) {
            let at = (plane * side + top + y) * side + left;
            patches.extend_from_slice(&pixels[at..at + patch]);
        }
    }
    patches
}
