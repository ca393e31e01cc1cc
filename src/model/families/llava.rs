//! LLaVA 1.5 (Liu et al. 2023, "Improved Baselines with Visual Instruction Tuning"): a CLIP tower
//! and a two-layer projector before a decoder of the Llama kind.

use serde_json::Map;

use super::*;
use crate::model::config::{LinearConfig, Names, VisionConfig};

/// Leads every tensor of the tower, of the projector and of the decoder.
pub const TOWER: &str = "model.vision_tower.vision_model.";
pub const PROJECTOR: &str = "model.multi_modal_projector.";
const DECODER: &str = "model.language_model.";

pub fn llava(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    let text = text_config(fields)?;
    let mut config = read_fields(&Fields::inside(&text, "text_config"))?;
    if config.vision.is_some() || config.names.prefix != "model." {
        return Err(fields.unsupported("text_config.model_type", &config.family));
    }
    config.family = "llava".to_owned();
    config.names.prefix = DECODER;
    config.vision = Some(vision(fields, config.vocab_size)?);
    Ok(config)
}

/// The decoder of a model that sees, as its family has it, and its part of the configuration; any other
/// model as it is.
///
/// # Errors
/// As [`super::read`].
pub fn decoder_alone(
    config: &DecoderConfig,
    json: &Value,
) -> Result<(DecoderConfig, Value), ModelError> {
    let mut alone = config.clone();
    if alone.vision.take().is_none() {
        return Ok((alone, json.clone()));
    }
    let text = text_config(&Fields::new(json)?)?;
    alone.family = read_fields(&Fields::inside(&text, "text_config"))?.family;
    Ok((alone, Value::Object(text)))
}

/// The name that transformers writes today for a tensor of any layout in circulation: that of the
/// hub (`language_model.model.…`, `vision_tower.…`), or its own (`model.language_model.…`).
pub fn canonical_name(name: &str) -> String {
    let rest = |prefix| name.strip_prefix("model.").unwrap_or(name).strip_prefix(prefix);
    if let Some(rest) = rest("vision_tower.") {
        return format!("{TOWER}{}", rest.strip_prefix("vision_model.").unwrap_or(rest));
    }
    if let Some(rest) = rest("multi_modal_projector.") {
        return format!("{PROJECTOR}{rest}");
    }
    match name.strip_prefix("language_model.") {
        Some(head) if head.starts_with("lm_head.") => head.to_owned(),
        Some(rest) => format!("{DECODER}{}", rest.strip_prefix("model.").unwrap_or(rest)),
        None => name.to_owned(),
    }
}

/// What the hub's files call a tensor of that canonical name: every version of transformers reads it.
pub fn hub_name(name: &str) -> String {
    match (name.strip_prefix(DECODER), name.strip_prefix("model.")) {
        (Some(rest), _) => format!("language_model.model.{rest}"),
        (None, Some(rest)) => rest.to_owned(),
        (None, None) => format!("language_model.{name}"),
    }
}

/// A decoder that does not name its family is a Llama.
fn text_config(fields: &Fields<'_>) -> Result<Map<String, Value>, ModelError> {
    let mut text = fields.object("text_config")?.map(Fields::to_map).unwrap_or_default();
    text.entry("model_type").or_insert_with(|| "llama".into());
    if fields.bool("tie_word_embeddings", false)? {
        text.entry("tie_word_embeddings").or_insert(Value::Bool(true));
    }
    Ok(text)
}

fn vision(fields: &Fields<'_>, vocab_size: usize) -> Result<VisionConfig, ModelError> {
    let tower = vision_config(fields)?;
    let tower = Fields::inside(&tower, "vision_config");
    tower.only("model_type", &[json!("clip_vision_model")])?;
    tower.only("num_channels", &[json!(3)])?;
    let (image_size, patch_size) = (tower.usize("image_size")?, tower.usize("patch_size")?);
    if image_size > 4096 || !image_size.is_multiple_of(patch_size) {
        return Err(tower.unsupported("patch_size", patch_size));
    }
    let feature_layers = feature_layers(fields, tower.small("num_hidden_layers")?)?;
    let layers = feature_layers.iter().copied().max().unwrap_or(0);
    let patches = (image_size / patch_size).pow(2);
    Ok(VisionConfig {
        image_token: image_token(fields, vocab_size)?,
        image_size,
        patch_size,
        tower: Box::new(clip(&tower, layers, patches + 1)?),
        feature_layers,
        keep_class: keeps_class(fields)?,
        projector_activation: fields.activation("projector_hidden_act")?,
        projector_bias: fields.bool("multimodal_projector_bias", true)?,
    })
}

fn vision_config(fields: &Fields<'_>) -> Result<Map<String, Value>, ModelError> {
    let usual = defaults::vision_of_llava();
    let usual = Fields::inside(usual.as_object().expect("written as one"), "vision_config");
    let tower = fields.object("vision_config")?.unwrap_or(usual);
    Ok(defaults::completed("clip_vision_model", tower.to_map()))
}

fn image_token(fields: &Fields<'_>, vocab_size: usize) -> Result<u32, ModelError> {
    const KEY: &str = "image_token_index";
    match fields.token_ids(KEY)?.as_slice() {
        [id] if (*id as usize) < vocab_size => Ok(*id),
        ids => Err(fields.unsupported(KEY, format!("{ids:?}"))),
    }
}

/// `vision_feature_layer`, one or a list, counts the embedding as 0, or from the end: −2 leaves the
/// last block out.
fn feature_layers(fields: &Fields<'_>, layers: usize) -> Result<Vec<usize>, ModelError> {
    const KEY: &str = "vision_feature_layer";
    let value = fields.get(KEY).ok_or_else(|| fields.missing(KEY))?;
    let blocks = |value: &Value| {
        let layer = value.as_i64()?;
        let layer = if layer < 0 { layer.checked_add_unsigned(layers as u64 + 1)? } else { layer };
        usize::try_from(layer).ok().filter(|blocks| *blocks <= layers)
    };
    let taken = match value {
        Value::Array(list) => list.iter().map(blocks).collect(),
        one => blocks(one).map(|blocks| vec![blocks]),
    };
    // One more than there are places says the same twice.
    let usable = taken.filter(|taken: &Vec<usize>| (1..=layers + 1).contains(&taken.len()));
    usable.ok_or_else(|| fields.unsupported(KEY, value))
}

fn keeps_class(fields: &Fields<'_>) -> Result<bool, ModelError> {
    const KEY: &str = "vision_feature_select_strategy";
    match fields.optional_str(KEY)? {
        None | Some("default") => Ok(false),
        Some("full") => Ok(true),
        Some(other) => Err(fields.unsupported(KEY, other)),
    }
}

/// CLIP's blocks, in the words of a decoder.
fn clip(fields: &Fields<'_>, layers: usize, tokens: usize) -> Result<DecoderConfig, ModelError> {
    let (hidden_size, heads) = (fields.usize("hidden_size")?, fields.small("num_attention_heads")?);
    let head_dim = head_dim(fields, hidden_size, heads)?;
    let intermediate_size = fields.usize("intermediate_size")?;
    let eps = fields.epsilon("layer_norm_eps")?;
    let linear = |name, out_features| LinearConfig::new(name, out_features, true);
    Ok(DecoderConfig {
        family: "clip_vision_model".to_owned(),
        hidden_size,
        intermediate_size,
        vocab_size: 0,
        context_length: tokens,
        heads,
        kv_heads: heads,
        head_dim,
        norm: NormConfig { kind: NormKind::Layer, eps, bias: true, plus_one: false },
        activation: fields.activation("hidden_act")?,
        gated: false,
        attention_scale: (head_dim as f32).powf(-0.5),
        attention_scale_by_layer: false,
        attention_softcap: None,
        clip_qkv: None,
        qk_norm_whole: false,
        alibi: None,
        layers: alike(layers, None),
        embedding_scale: 1.0,
        logit_scale: 1.0,
        logit_softcap: None,
        tied: true,
        eos_token_ids: Vec::new(),
        vision: None,
        default_targets: &[],
        names: Names {
            prefix: TOWER,
            embedding: "embeddings.patch_embedding",
            positions: Some("embeddings.position_embedding"),
            layer: "encoder.layers",
            input_norm: "layer_norm1",
            qkv: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
                .map(|name| linear(name, hidden_size))
                .to_vec(),
            qk_norm: None,
            o: linear("self_attn.out_proj", hidden_size),
            post_attention_norm: None,
            mlp_norm: "layer_norm2",
            up: vec![linear("mlp.fc1", intermediate_size)],
            down: linear("mlp.fc2", hidden_size),
            post_mlp_norm: None,
            final_norm: "post_layernorm",
            head: "",
            transposed: false,
            ignored: &[],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_in_circulation_has_one_name() {
        for (name, canonical) in [
            ("language_model.lm_head.weight", "lm_head.weight"),
            ("language_model.model.norm.weight", "model.language_model.norm.weight"),
            (
                "vision_tower.post_layernorm.bias",
                "model.vision_tower.vision_model.post_layernorm.bias",
            ),
            ("multi_modal_projector.linear_1.bias", "model.multi_modal_projector.linear_1.bias"),
        ] {
            assert_eq!(canonical_name(name), canonical);
            assert_eq!(canonical_name(canonical), canonical);
        }
        let hub = "vision_tower.vision_model.post_layernorm.bias";
        assert_eq!(canonical_name(hub), format!("model.{hub}"));
    }

    #[test]
    fn names_of_the_hub_are_the_canonical_ones_turned_back() {
        for name in [
            "language_model.lm_head.weight",
            "language_model.model.layers.0.mlp.up_proj.weight",
            "vision_tower.vision_model.pre_layrnorm.weight",
            "multi_modal_projector.linear_1.bias",
        ] {
            assert_eq!(hub_name(&canonical_name(name)), name);
        }
    }
}
