//! Seeing: a picture through the vision tower and the projector, to features that stand in a prompt
//! where its image tokens are.
//!
//! Shapes: `n` patches of a picture, `p` their side, `d` the tower's hidden size.

use super::ModelError;
use super::build::{Builder, dense_format};
use super::checkpoint::Checkpoint;
use super::config::{LinearConfig, VisionConfig};
use super::decoder::Model;
use super::families::PROJECTOR;
use super::layer::{Keys, Layer, Pass};
use super::linear::{Adapters, Projection};
use super::norm::ModelNorm;
use super::tensors::TensorKind;
use crate::backend::{Activation, Backend, HostWeight, WeightFormat};
use crate::domain::Picture;

/// Tower and projector of a model that sees.
pub(super) struct Vision<B: Backend> {
    pub config: VisionConfig,
    /// `(d, 3 p²)`.
    filters: B::Weight,
    /// `(n + 1, d)`: what every picture begins with: positions, and in the first row the class token.
    beginning: B::Rows,
    pre_norm: ModelNorm<B>,
    layers: Vec<Layer<B>>,
    /// Two linear layers with a non-linearity between them.
    projector: [Projection<B>; 2],
    activation: Activation,
    pub parameters: u64,
    pub size_bytes: usize,
}

/// A picture on its way through the tower: one block per call, so that nobody waits for all.
pub struct PictureRun<B: Backend> {
    /// `(n + 1, d)`.
    x: B::Rows,
    next_layer: usize,
}

/// Features that take the place of token embeddings: of the batch's rows from `row` on.
#[derive(Clone, Copy, Debug)]
pub struct PictureRows<'a> {
    pub row: usize,
    /// `(rows, hidden)`.
    pub features: &'a [f32],
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
        let mut linear = |name, from| {
            let linear = LinearConfig::new(name, hidden_size, config.projector_bias);
            builder.projection(PROJECTOR, None, &[linear], from)
        };
        let projector = [linear("linear_1", tower.hidden_size)?, linear("linear_2", hidden_size)?];
        Ok(Self {
            config: config.clone(),
            filters,
            beginning,
            pre_norm,
            layers,
            projector,
            activation: config.projector_activation,
            parameters: builder.specs.iter().map(|spec| spec.parameters() as u64).sum(),
            size_bytes: builder.report.size_bytes,
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
        PictureRun { x: normed, next_layer: 0 }
    }

    fn block(&self, b: &mut B, run: &mut PictureRun<B>) {
        let (tokens, _) = b.shape(&run.x);
        let positions: Vec<u32> = (0..tokens as u32).collect();
        let (whole, adapters) = (0..tokens, Adapters { rows: &[], dropout: None, training: false });
        let keys = Keys::Spans(std::slice::from_ref(&whole));
        let mut pass = Pass { positions: &positions, adapters, keys };
        self.layers[run.next_layer].forward(b, &mut run.x, &mut pass);
        run.next_layer += 1;
    }

    /// `linear_2(act(linear_1(x)))` of the rows that are features.
    fn project(&self, b: &mut B, x: &B::Rows) -> B::Rows {
        let (tokens, d) = b.shape(x);
        let rows: Vec<usize> = (usize::from(!self.config.keep_class)..tokens).collect();
        let mut chosen = b.zeros(rows.len(), d);
        b.gather(x, &rows, &mut chosen);
        let none = Adapters { rows: &[], dropout: None, training: false };
        let up = self.projector[0].forward(b, &chosen, none);
        let mut inner = b.zeros(rows.len(), self.projector[0].out_features);
        b.mlp_inner(&up, self.activation, false, &mut inner);
        let features = self.projector[1].forward(b, &inner, none);
        [chosen, up, inner].into_iter().for_each(|rows| b.recycle(rows));
        features
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

impl<B: Backend> PictureRun<B> {
    /// One block more; at the end the features `(tokens_per_image, hidden)`. To be called no more
    /// after that.
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
        let features = vision.project(b, &self.x);
        let values = b.download(&features);
        b.recycle(features);
        Some(values)
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
    let weight = builder.b.pack(HostWeight { values: &values, out_features, in_features }, format);
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
