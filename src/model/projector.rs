//! The projector of a model that sees: from what the tower says of a picture to what stands in a
//! prompt where its image tokens are.

use super::build::Builder;
use super::config::{LinearConfig, VisionConfig};
use super::families::PROJECTOR;
use super::linear::Linear;
use super::saved;
use super::{Model, ModelError};
use crate::backend::{Activation, Backend};
use crate::domain::{SaveableModule, TensorShape};

const LINEARS: [&str; 2] = ["linear_1", "linear_2"];

/// `W₂ act(W₁ x + b₁) + b₂`, `x (n, f)` to `(n, d)`.
/// Liu et al. 2023, "Improved Baselines with Visual Instruction Tuning", section 3.3.
pub(super) struct Projector<B: Backend> {
    linears: [Dense<B>; 2],
    activation: Activation,
}

struct Dense<B: Backend> {
    weight: B::Weight,
    bias: Option<B::Rows>,
}

/// What an adapter may replace of it.
pub(super) fn saveable(config: &VisionConfig, hidden_size: usize) -> SaveableModule {
    let inputs = [config.feature_width(), hidden_size];
    let tensors = LINEARS.iter().zip(inputs).flat_map(|(linear, width)| {
        let weight = TensorShape::matrix(format!("{linear}.weight"), (hidden_size, width));
        let bias = TensorShape::vector(format!("{linear}.bias"), hidden_size);
        [Some(weight), config.projector_bias.then_some(bias)]
    });
    let name = PROJECTOR.trim_end_matches('.').to_owned();
    SaveableModule { name, tensors: tensors.flatten().collect() }
}

impl<B: Backend> Projector<B> {
    pub fn build(
        builder: &mut Builder<'_, B>,
        config: &VisionConfig,
        hidden_size: usize,
    ) -> Result<Self, ModelError> {
        let mut linear = |name, from| -> Result<Dense<B>, ModelError> {
            let linear = LinearConfig::new(name, hidden_size, config.projector_bias);
            let built = builder.projection(PROJECTOR, None, &[linear], from)?;
            let built = built.linears.into_iter().next();
            let Linear { weight, bias, .. } = built.expect("one linear layer was asked for");
            Ok(Dense { weight, bias })
        };
        let linears =
            [linear(LINEARS[0], config.feature_width())?, linear(LINEARS[1], hidden_size)?];
        Ok(Self { linears, activation: config.projector_activation })
    }

    /// One of these values, in the order of [`saveable`], not rounded.
    pub fn with_values(&self, b: &mut B, values: &[impl AsRef<[f32]>]) -> Self {
        let mut values = values.iter().map(AsRef::as_ref);
        let mut next = || values.next().expect("values for every tensor");
        let linears = self.linears.each_ref().map(|linear| {
            let weight = saved::pack(b, next(), b.weight_shape(&linear.weight));
            let bias = linear.bias.is_some().then(&mut next);
            Dense { weight, bias: bias.map(|bias| b.upload(bias, 1, bias.len())) }
        });
        Self { linears, activation: self.activation }
    }

    /// The values of every tensor, in the order of [`saveable`].
    pub fn values(&self, b: &B) -> Vec<Vec<f32>> {
        let of = |linear: &Dense<B>| {
            let bias = linear.bias.as_ref().map(|bias| b.download(bias));
            [Some(b.unpack(&linear.weight)), bias]
        };
        self.linears.iter().flat_map(of).flatten().collect()
    }

    /// Bytes its matrices take.
    pub fn weight_bytes(&self, b: &B) -> usize {
        self.linears.iter().map(|linear| b.weight_bytes(&linear.weight)).sum()
    }

    pub fn forward(&self, b: &mut B, x: &B::Rows) -> B::Rows {
        let (up, inner) = self.inner(b, x);
        let y = self.linears[1].forward(b, &inner);
        [up, inner].into_iter().for_each(|rows| b.recycle(rows));
        y
    }

    /// Adds to the gradients of every tensor, in the order of [`saveable`]. The tower is frozen, so
    /// that of `x` is nobody's.
    pub fn backward(&self, b: &mut B, dy: &B::Rows, x: &B::Rows, gradients: &mut [&mut B::Rows]) {
        let (first, second) = gradients.split_at_mut(gradients.len() / 2);
        let (up, inner) = self.inner(b, x);
        let (n, width) = b.shape(&inner);
        weight_gradient(b, dy, &inner, second);
        let mut dinner = b.zeros(n, width);
        b.matmul_backward(dy, 0, &self.linears[1].weight, &mut dinner);
        let mut dup = b.zeros(n, width);
        b.mlp_inner_backward(&dinner, &up, self.activation, false, &mut dup);
        weight_gradient(b, &dup, x, first);
        [up, inner, dinner, dup].into_iter().for_each(|rows| b.recycle(rows));
    }

    /// `W₁ x + b₁`, and the activation of it.
    fn inner(&self, b: &mut B, x: &B::Rows) -> (B::Rows, B::Rows) {
        let up = self.linears[0].forward(b, x);
        let (n, width) = b.shape(&up);
        let mut inner = b.zeros(n, width);
        b.mlp_inner(&up, self.activation, false, &mut inner);
        (up, inner)
    }

    /// Gives its memory back.
    pub fn release(self, b: &mut B) {
        // Weights give their memory back when they are dropped here.
        self.linears.into_iter().filter_map(|linear| linear.bias).for_each(|bias| b.recycle(bias));
    }
}

impl<B: Backend> Dense<B> {
    fn forward(&self, b: &mut B, x: &B::Rows) -> B::Rows {
        let (out, _) = b.weight_shape(&self.weight);
        let mut y = b.zeros(b.shape(x).0, out);
        b.matmul(x, &self.weight, self.bias.as_ref(), &mut y, 0);
        y
    }
}

/// Of one linear layer: `gradients` are those of its weight and, where it has one, of its bias.
fn weight_gradient<B: Backend>(
    b: &mut B,
    dy: &B::Rows,
    x: &B::Rows,
    gradients: &mut [&mut B::Rows],
) {
    if let Some((dw, db)) = gradients.split_first_mut() {
        b.weight_gradient(dy, 0, x, dw, db.first_mut().map(|db| &mut **db));
    }
}

impl<B: Backend> Model<B> {
    /// The base's own projector; only models that see have one.
    pub(super) fn projector(&self) -> Option<&Projector<B>> {
        self.vision.as_ref().map(|vision| &vision.projector)
    }
}
