//! What a decoder is made of, whatever family it comes from.

use crate::backend::{Activation, Beyond, NormKind, Rope};

/// The configuration that [`super::families`] maps every `config.json` to.
///
/// One layer is `x += post(attention(norm x))`, `x += post(mlp(norm x))`; most families have no
/// `post` norm. Dropout probabilities of `config.json` are not part of it: they belong to
/// pre-training.
#[derive(Clone, Debug)]
pub struct DecoderConfig {
    /// `model_type`.
    pub family: String,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub vocab_size: usize,
    /// Most positions a sequence may hold.
    pub context_length: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub norm: NormConfig,
    pub activation: Activation,
    /// `act(gate) · up` instead of `act(up)`.
    pub gated: bool,
    /// Multiplies `q · k`.
    pub attention_scale: f32,
    /// The scale is divided by the layer's number, from 1 on (GPT-2 in Mistral's trainings).
    pub attention_scale_by_layer: bool,
    pub attention_softcap: Option<f32>,
    pub clip_qkv: Option<f32>,
    /// The norms on q and k, where there are any, are over all heads together, not over each.
    pub qk_norm_whole: bool,
    pub alibi: Option<Vec<f32>>,
    pub layers: Vec<LayerConfig>,
    /// Multiplies embeddings: √d in Gemma, 1 elsewhere.
    pub embedding_scale: f32,
    pub logit_scale: f32,
    pub logit_softcap: Option<f32>,
    /// The head is the embedding.
    pub tied: bool,
    pub eos_token_ids: Vec<u32>,
    /// `target_modules` where a request names none, as PEFT chooses.
    pub default_targets: &'static [&'static str],
    pub vision: Option<VisionConfig>,
    pub names: Names,
}

/// A vision tower (CLIP; Radford et al. 2021) and the projector that joins it to the decoder.
#[derive(Clone, Debug)]
pub struct VisionConfig {
    /// Stands in a prompt where features go.
    pub image_token: u32,
    /// Side of the pictures, and of the patches they are cut into.
    pub image_size: usize,
    pub patch_size: usize,
    /// The blocks up to the last one whose output is taken. They are a decoder's in all but the
    /// mask, so one description does for both.
    pub tower: Box<DecoderConfig>,
    /// Behind how many blocks features are taken; those of several places stand side by side.
    pub feature_layers: Vec<usize>,
    /// Whether the class token's output is a feature too.
    pub keep_class: bool,
    pub projector_activation: Activation,
    pub projector_bias: bool,
}

/// What every norm of the model does.
#[derive(Clone, Copy, Debug)]
pub struct NormConfig {
    pub kind: NormKind,
    pub eps: f32,
    pub bias: bool,
    /// The checkpoint stores `weight − 1` (Gemma).
    pub plus_one: bool,
}

/// Where layers differ from each other.
#[derive(Clone, Debug)]
pub struct LayerConfig {
    pub window: Option<usize>,
    pub rope: Rope,
}

/// How the checkpoint calls its tensors; `.weight` and `.bias` are added.
#[derive(Clone, Debug)]
pub struct Names {
    /// Leads every name but the head's, and is missing in some copies: `model.`, `transformer.`.
    pub prefix: &'static str,
    pub embedding: &'static str,
    /// Learned positions.
    pub positions: Option<&'static str>,
    /// Followed by the layer's number.
    pub layer: &'static str,
    pub input_norm: &'static str,
    /// Several side by side, or one fused.
    pub qkv: Vec<LinearConfig>,
    pub qk_norm: Option<[&'static str; 2]>,
    pub o: LinearConfig,
    pub post_attention_norm: Option<&'static str>,
    pub mlp_norm: &'static str,
    pub up: Vec<LinearConfig>,
    pub down: LinearConfig,
    pub post_mlp_norm: Option<&'static str>,
    pub final_norm: &'static str,
    pub head: &'static str,
    /// Weights are stored `(in, out)`: GPT-2's Conv1D.
    pub transposed: bool,
    /// Buffers some files carry beside the weights, by the end of their name.
    pub ignored: &'static [&'static str],
}

/// One linear layer of a block.
#[derive(Clone, Copy, Debug)]
pub struct LinearConfig {
    pub name: &'static str,
    pub out_features: usize,
    pub bias: bool,
}

impl LinearConfig {
    pub fn new(name: &'static str, out_features: usize, bias: bool) -> Self {
        Self { name, out_features, bias }
    }
}

impl VisionConfig {
    /// Patches of a picture.
    pub fn patches(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }

    /// Values that describe each of them.
    pub fn feature_width(&self) -> usize {
        self.feature_layers.len() * self.tower.hidden_size
    }

    /// Tokens a picture becomes.
    pub fn tokens(&self) -> usize {
        self.patches() + usize::from(self.keep_class)
    }
}

impl DecoderConfig {
    /// Width of the attention output, `h · hd`.
    pub fn attention_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// What happens to long sequences, if layers turn them otherwise than short ones.
    pub fn beyond(&self) -> Option<&Beyond> {
        self.layers.iter().find_map(|layer| layer.rope.beyond.as_ref())
    }

    /// Width of keys, or of values, `kv · hd`.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}
