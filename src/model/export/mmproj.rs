//! The vision tower and the projector of a model that sees, as ggml's tools keep them: in a file of
//! their own beside the decoder's, usually called `mmproj`.

use std::collections::BTreeMap;
use std::path::Path;

use super::gguf::{File, Plan};
use super::{Meta, ModelError, TensorType, Weights, Written, unsupported};
use crate::backend::Activation;
use crate::gguf::NewTensor;
use crate::model::config::{DecoderConfig, VisionConfig};
use crate::model::families::{PROJECTOR, TOWER};
use crate::model::tensors::{TensorKind, TensorSpec};

/// What pictures lose and are divided by before the tower sees them, of red, green and blue.
#[derive(Clone, Copy, Debug)]
pub struct Normalisation {
    pub mean: [f32; 3],
    pub std: [f32; 3],
}

pub(super) fn write(
    weights: &mut Weights<'_>,
    path: &Path,
    name: &str,
    kind: TensorType,
    normalisation: &Normalisation,
) -> Result<Written, ModelError> {
    let config = weights.config;
    let vision = config.vision.as_ref().ok_or_else(|| unsupported("the family", &config.family))?;
    check(vision)?;
    // Quantised towers are not what other programs expect.
    let kind = if kind.block() > 1 { TensorType::F16 } else { kind };
    let mut specs = std::mem::take(&mut weights.specs);
    specs.retain(|spec| stored_name(&spec.name).is_some());
    let plans = specs.iter().map(|spec| plan(spec, kind)).collect();
    let blocks = blocks(&specs);
    let mut metadata = described(vision, config.hidden_size, blocks, normalisation);
    metadata.insert("general.name".into(), Meta::Text(name.to_owned()));
    metadata.insert("general.file_type".into(), Meta::Int(kind.file_type()));
    let vectors = match vision.projector_bias {
        true => Vec::new(),
        // Readers add one, whether there is one or not.
        false => {
            ["mm.0.bias", "mm.2.bias"].map(|name| (name, vec![0.0; config.hidden_size])).into()
        }
    };
    File { path, metadata, vectors, plans }.write(weights, config)
}

/// What the format takes for granted.
fn check(vision: &VisionConfig) -> Result<(), ModelError> {
    if vision.keep_class {
        return Err(unsupported("vision_feature_select_strategy", "full"));
    }
    if !matches!(vision.projector_activation, Activation::Gelu | Activation::GeluTanh) {
        let activation = format!("{:?}", vision.projector_activation);
        return Err(unsupported("projector_hidden_act", activation));
    }
    if !vision.feature_layers.is_sorted_by(|a, b| a < b) {
        return Err(unsupported("vision_feature_layer", format!("{:?}", vision.feature_layers)));
    }
    let tower = &vision.tower;
    if tower.intermediate_size == tower.hidden_size {
        // Readers tell the two matrices of a block apart by their shapes.
        return Err(unsupported("vision_config.intermediate_size", tower.intermediate_size));
    }
    match tower.activation {
        Activation::QuickGelu | Activation::GeluTanh | Activation::Gelu | Activation::Silu => {
            Ok(())
        }
        other => Err(unsupported("vision_config.hidden_act", format!("{other:?}"))),
    }
}

fn described(
    vision: &VisionConfig,
    projection: usize,
    blocks: usize,
    normalisation: &Normalisation,
) -> BTreeMap<String, Meta> {
    let tower: &DecoderConfig = &vision.tower;
    let count = |count: usize| Meta::Int(count as i64);
    let mut metadata = BTreeMap::from([
        ("general.architecture".into(), Meta::Text("clip".into())),
        ("general.type".into(), Meta::Text("mmproj".into())),
        ("clip.has_vision_encoder".into(), Meta::Bool(true)),
        ("clip.projector_type".into(), Meta::Text("mlp".into())),
        ("clip.use_gelu".into(), Meta::Bool(is_gelu(tower.activation))),
        ("clip.use_silu".into(), Meta::Bool(tower.activation == Activation::Silu)),
    ]);
    let mut put = |key: &str, value| metadata.insert(format!("clip.vision.{key}"), value);
    put("image_size", count(vision.image_size));
    put("patch_size", count(vision.patch_size));
    put("embedding_length", count(tower.hidden_size));
    put("feed_forward_length", count(tower.intermediate_size));
    put("block_count", count(blocks));
    put("projection_dim", count(projection));
    put("attention.head_count", count(tower.heads));
    put("attention.layer_norm_epsilon", Meta::Float(tower.norm.eps));
    put("image_mean", Meta::Floats(normalisation.mean.to_vec()));
    put("image_std", Meta::Floats(normalisation.std.to_vec()));
    // Without the key, readers take what the last block but one gives.
    if vision.feature_layers != [blocks - 1] {
        let layers = vision.feature_layers.iter().map(|layer| *layer as i64).collect();
        put("feature_layer", Meta::Ints(layers));
    }
    metadata
}

fn is_gelu(activation: Activation) -> bool {
    matches!(activation, Activation::Gelu | Activation::GeluTanh)
}

/// Blocks of the tower that are written.
fn blocks(specs: &[TensorSpec]) -> usize {
    let index = |spec: &TensorSpec| {
        let block = spec.name.strip_prefix(TOWER)?.strip_prefix("encoder.layers.")?;
        block.split_once('.')?.0.parse::<usize>().ok()
    };
    specs.iter().filter_map(index).max().map_or(0, |last| last + 1)
}

fn plan(spec: &TensorSpec, kind: TensorType) -> Plan<'_> {
    let name = stored_name(&spec.name).expect("others were left out");
    // A convolution is computed in f16 or f32; positions are looked up in f32.
    let (kind, shape) = match spec.kind {
        TensorKind::Weight(_) if name != "v.position_embd.weight" => (kind, spec.stored_shape()),
        _ => (TensorType::F32, spec.stored_shape()),
    };
    Plan { spec, tensor: NewTensor { name, shape, kind } }
}

/// GGUF's name for a tensor of the tower or the projector; `None` for the norm at the tower's end,
/// which readers would apply, and for what belongs to the decoder.
fn stored_name(name: &str) -> Option<String> {
    let (stem, kind) = name.rsplit_once('.')?;
    if let Some(linear) = stem.strip_prefix(PROJECTOR) {
        let index = if linear == "linear_1" { 0 } else { 2 };
        return Some(format!("mm.{index}.{kind}"));
    }
    let rest = stem.strip_prefix(TOWER)?;
    if let Some(block) = rest.strip_prefix("encoder.layers.") {
        let (index, part) = block.split_once('.')?;
        let role = match part {
            "layer_norm1" => "ln1",
            "layer_norm2" => "ln2",
            "self_attn.q_proj" => "attn_q",
            "self_attn.k_proj" => "attn_k",
            "self_attn.v_proj" => "attn_v",
            "self_attn.out_proj" => "attn_out",
            "mlp.fc1" => "ffn_up",
            "mlp.fc2" => "ffn_down",
            _ => return None,
        };
        return Some(format!("v.blk.{index}.{role}.{kind}"));
    }
    Some(match rest {
        "embeddings" => "v.class_embd".to_owned(),
        "embeddings.patch_embedding" => "v.patch_embd.weight".to_owned(),
        "embeddings.position_embedding" => "v.position_embd.weight".to_owned(),
        "pre_layrnorm" => format!("v.pre_ln.{kind}"),
        _ => return None,
    })
}
