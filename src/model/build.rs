//! From a configuration and a checkpoint to layers on the device.

use super::ModelError;
use super::checkpoint::{Checkpoint, Stored};
use super::config::{DecoderConfig, LinearConfig};
use super::decoder::Embedding;
use super::head::Head;
use super::layer::Layer;
use super::linear::{Linear, Projection};
use super::norm::ModelNorm;
use super::progress::Progress;
use super::report::Report;
use super::tensors::{TensorKind, TensorSpec};
use crate::backend::{AttentionSpec, Backend, HeadsSpec, HostWeight, Norm, WeightFormat};
use crate::domain::ModuleShape;

/// Reads tensor after tensor and packs each before it reads the next, so that memory peaks at what
/// stays plus one tensor.
pub(super) struct Builder<'a, B: Backend> {
    pub b: &'a mut B,
    config: &'a DecoderConfig,
    source: &'a mut Checkpoint,
    format: WeightFormat,
    /// Leads names in this copy of the checkpoint: the family's prefix, or nothing.
    prefix: &'static str,
    pub specs: Vec<TensorSpec>,
    pub modules: Vec<ModuleShape>,
    pub report: Report,
    progress: Progress,
}

/// The parts of a decoder.
pub(super) struct Parts<B: Backend> {
    pub embedding: Embedding<B>,
    pub layers: Vec<Layer<B>>,
    pub head: Head<B>,
}

/// How embedding, head and vision are held beside linear layers of `format`.
pub(super) fn dense_format(format: WeightFormat) -> WeightFormat {
    match format {
        WeightFormat::F32 | WeightFormat::F16 | WeightFormat::Q8_0 => format,
        WeightFormat::Q4_0 | WeightFormat::Q4K => WeightFormat::Q8_0,
        WeightFormat::Bf16 | WeightFormat::Nf4 { .. } | WeightFormat::Fp4 { .. } => {
            WeightFormat::Bf16
        }
    }
}

impl<'a, B: Backend> Builder<'a, B> {
    pub fn new(
        b: &'a mut B,
        config: &'a DecoderConfig,
        source: &'a mut Checkpoint,
        format: WeightFormat,
    ) -> Self {
        let names = &config.names;
        let whole = source.has(&format!("{}{}.weight", names.prefix, names.embedding));
        let prefix = if whole { names.prefix } else { "" };
        let (specs, modules, report) = (Vec::new(), Vec::new(), Report::default());
        let progress = Progress::new(source.total_bytes());
        Self { b, config, source, format, prefix, specs, modules, report, progress }
    }

    pub fn build(&mut self) -> Result<Parts<B>, ModelError> {
        let embedding = self.embedding()?;
        let layers = (0..self.config.layers.len()).map(|index| self.layer(index));
        let layers = layers.collect::<Result<_, _>>()?;
        Ok(Parts { embedding, layers, head: self.head()? })
    }

    fn embedding(&mut self) -> Result<Embedding<B>, ModelError> {
        let (config, d) = (self.config, self.config.hidden_size);
        let format = dense_format(self.format);
        let name = format!("{}{}", config.names.prefix, config.names.embedding);
        let table = self.weight(&name, (config.vocab_size, d), format, false)?;
        let positions = match config.names.positions {
            Some(positions) => {
                let name = format!("{}{positions}", config.names.prefix);
                Some(self.weight(&name, (config.context_length, d), WeightFormat::F32, false)?)
            }
            None => None,
        };
        Ok(Embedding { table, positions, scale: config.embedding_scale })
    }

    pub fn layer(&mut self, index: usize) -> Result<Layer<B>, ModelError> {
        let config = self.config;
        let names = &config.names;
        let path = format!("{}{}.{index}.", names.prefix, names.layer);
        let d = config.hidden_size;
        let input_norm = self.norm(&format!("{path}{}", names.input_norm), d)?;
        let qkv = self.projection(&path, Some(index), &names.qkv, d)?;
        let heads = self.heads(&path, index)?;
        let o = self.projection(&path, Some(index), &[names.o], config.attention_width())?;
        let post_attention_norm = self.optional_norm(&path, names.post_attention_norm)?;
        let mlp_norm = self.norm(&format!("{path}{}", names.mlp_norm), d)?;
        let up = self.projection(&path, Some(index), &names.up, d)?;
        let down = self.projection(&path, Some(index), &[names.down], config.intermediate_size)?;
        let held = self.specs[up.linears[0].slot].kind;
        Ok(Layer {
            index,
            input_norm,
            qkv,
            heads,
            attention: attention(config, index),
            o,
            post_attention_norm,
            mlp_norm,
            up,
            activation: config.activation,
            gated: config.gated,
            down,
            post_mlp_norm: self.optional_norm(&path, names.post_mlp_norm)?,
            halves: !self.source.is_exact()
                && held != TensorKind::Weight(WeightFormat::F32)
                && held != TensorKind::Weight(WeightFormat::F16),
        })
    }

    fn heads(&mut self, path: &str, index: usize) -> Result<HeadsSpec<B::Rows>, ModelError> {
        let config = self.config;
        let norms = match config.names.qk_norm {
            Some([q, k]) => {
                let [wide_q, wide_k] = match config.qk_norm_whole {
                    true => [config.attention_width(), config.kv_width()],
                    false => [config.head_dim; 2],
                };
                let q = self.norm(&format!("{path}{q}"), wide_q)?;
                Some([q, self.norm(&format!("{path}{k}"), wide_k)?])
            }
            None => None,
        };
        let (q_norm, k_norm) = norms.map(|[q, k]| (q.norm, k.norm)).unzip();
        Ok(HeadsSpec {
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            clip: config.clip_qkv,
            q_norm,
            k_norm,
            rope: config.layers[index].rope.clone(),
        })
    }

    fn head(&mut self) -> Result<Head<B>, ModelError> {
        let config = self.config;
        let name = format!("{}{}", config.names.prefix, config.names.final_norm);
        let norm = self.norm(&name, config.hidden_size)?;
        let projection = if config.tied {
            None
        } else {
            let linear = LinearConfig::new(config.names.head, config.vocab_size, false);
            Some(self.projection("", None, &[linear], config.hidden_size)?)
        };
        let (scale, softcap) = (config.logit_scale, config.logit_softcap);
        Ok(Head { norm, projection, scale, softcap, vocab_size: config.vocab_size })
    }

    pub fn projection(
        &mut self,
        path: &str,
        layer: Option<usize>,
        linears: &[LinearConfig],
        in_features: usize,
    ) -> Result<Projection<B>, ModelError> {
        let mut out_features = 0;
        let mut built = Vec::new();
        for linear in linears {
            built.push(self.linear(path, layer, linear, in_features, out_features)?);
            out_features += linear.out_features;
        }
        Ok(Projection { linears: built, out_features })
    }

    fn linear(
        &mut self,
        path: &str,
        layer: Option<usize>,
        linear: &LinearConfig,
        in_features: usize,
        at: usize,
    ) -> Result<Linear<B>, ModelError> {
        let (name, out_features) = (format!("{path}{}", linear.name), linear.out_features);
        let (site, slot) = (self.modules.len(), self.specs.len());
        // The head, the one linear outside the layers, is held as the embedding is, never turned.
        let (format, transposed) = match layer {
            Some(_) => (self.format, self.config.names.transposed),
            None => (dense_format(self.format), false),
        };
        let weight = self.weight(&name, (out_features, in_features), format, transposed)?;
        let bias = match linear.bias {
            true => Some(self.vector(&format!("{name}.bias"), out_features, TensorKind::Bias)?),
            false => None,
        };
        self.modules.push(ModuleShape { name, in_features, out_features, layer });
        Ok(Linear { weight, bias, at, site, slot, row_squares: Default::default() })
    }

    fn optional_norm(
        &mut self,
        path: &str,
        name: Option<&str>,
    ) -> Result<Option<ModelNorm<B>>, ModelError> {
        let d = self.config.hidden_size;
        name.map(|name| self.norm(&format!("{path}{name}"), d)).transpose()
    }

    pub fn norm(&mut self, name: &str, width: usize) -> Result<ModelNorm<B>, ModelError> {
        let (norm, slot) = (self.config.norm, self.specs.len());
        let kind = TensorKind::Norm { minus: if norm.plus_one { 1.0 } else { 0.0 } };
        let weight = self.vector(&format!("{name}.weight"), width, kind)?;
        let bias = match norm.bias {
            true => Some(self.vector(&format!("{name}.bias"), width, TensorKind::Bias)?),
            false => None,
        };
        Ok(ModelNorm { norm: Norm { kind: norm.kind, eps: norm.eps, weight, bias }, slot })
    }

    pub fn weight(
        &mut self,
        name: &str,
        shape: (usize, usize),
        format: WeightFormat,
        transposed: bool,
    ) -> Result<B::Weight, ModelError> {
        let name = format!("{name}.weight");
        let kind = TensorKind::Weight(format);
        let mut spec = self.spec(name, shape, kind, transposed);
        let (out_features, in_features) = shape;
        let (weight, held, stored) = match self.source.read(&spec)? {
            Stored::Blocks(blocks) => {
                let held = blocks.format();
                (self.b.adopt(blocks, out_features, in_features), held, held.name())
            }
            Stored::Values { values, held, stored } => {
                let held = held.unwrap_or(format).or_fallback(in_features);
                let host = HostWeight { values, out_features, in_features };
                (self.b.pack_to_stay(host, held), held, stored)
            }
        };
        spec.kind = TensorKind::Weight(held);
        self.read_so_far(spec);
        let bytes = self.b.weight_bytes(&weight);
        self.report.weight(stored, held, out_features * in_features, bytes);
        Ok(weight)
    }

    fn vector(
        &mut self,
        name: &str,
        width: usize,
        kind: TensorKind,
    ) -> Result<B::Rows, ModelError> {
        let mut values = self.values(name.to_owned(), (1, width), kind)?;
        if let TensorKind::Norm { minus } = kind {
            values.iter_mut().for_each(|value| *value += minus);
        }
        self.report.vector(width);
        Ok(self.b.upload(&values, 1, width))
    }

    /// A tensor that is held as values, whatever the format of the matrices.
    pub fn values(
        &mut self,
        name: String,
        shape: (usize, usize),
        kind: TensorKind,
    ) -> Result<Vec<f32>, ModelError> {
        let spec = self.spec(name, shape, kind, false);
        let values = match self.source.read(&spec)? {
            Stored::Values { values, .. } => values.to_vec(&self.b.host_threads()),
            Stored::Blocks(blocks) => {
                return Err(ModelError::TensorType {
                    file: "the checkpoint".to_owned(),
                    tensor: spec.name,
                    dtype: blocks.format().name().to_owned(),
                });
            }
        };
        self.read_so_far(spec);
        Ok(values)
    }

    /// What is to be read next.
    fn spec(
        &self,
        name: String,
        shape: (usize, usize),
        kind: TensorKind,
        transposed: bool,
    ) -> TensorSpec {
        let bare = name.strip_prefix(self.config.names.prefix).map(|rest| (self.prefix, rest));
        let stored = bare.map_or_else(|| name.clone(), |(prefix, rest)| format!("{prefix}{rest}"));
        TensorSpec { name, stored, shape, kind, transposed }
    }

    /// `spec` was read.
    fn read_so_far(&mut self, spec: TensorSpec) {
        self.progress.reach(self.source.read_bytes());
        self.specs.push(spec);
    }
}

fn attention(config: &DecoderConfig, index: usize) -> AttentionSpec {
    let divisor = if config.attention_scale_by_layer { (index + 1) as f32 } else { 1.0 };
    AttentionSpec {
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        scale: config.attention_scale / divisor,
        window: config.layers[index].window,
        softcap: config.attention_softcap,
        alibi: config.alibi.clone(),
        causal: true,
    }
}
