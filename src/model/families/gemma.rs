//! Gemma 2 (Gemma Team 2024) and the text model of Gemma 3 (2025): `1 + w` norms before and after
//! both blocks, scaled embeddings, sliding and full layers in turn; soft caps in the one, norms on
//! q and k and two RoPE bases in the other.

use super::*;
use crate::backend::Rope;

pub fn gemma2(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    let mut config = shared(fields)?;
    config.attention_softcap = fields.optional_positive_f32("attn_logit_softcapping")?;
    let rope = rope::rope(fields, config.head_dim)?;
    config.context_length = rope::stretched_context(&rope, config.context_length);
    let slides = sliding(fields, config.layers.len(), |layer| layer % 2 == 0)?;
    config.layers = layers(fields, &slides, |_| rope.clone())?;
    Ok(config)
}

pub fn gemma3(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    let mut config = shared(fields)?;
    fields.only("attn_logit_softcapping", &[])?;
    config.names.qk_norm = Some(["self_attn.q_norm", "self_attn.k_norm"]);
    let (local, global) = rope::by_layer_type(fields, config.head_dim)?;
    config.context_length = rope::stretched_context(&global, config.context_length);
    let pattern = fields.optional_usize("sliding_window_pattern")?;
    let pattern = pattern.or(fields.optional_usize("_sliding_window_pattern")?).unwrap_or(6);
    let slides = sliding(fields, config.layers.len(), |layer| (layer + 1) % pattern != 0)?;
    let rope = |slides| if slides { local.clone() } else { global.clone() };
    config.layers = layers(fields, &slides, rope)?;
    Ok(config)
}

fn shared(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    causal(fields)?;
    let bias = fields.bool("attention_bias", false)?;
    let mut config = super::llama::without_rope(fields, bias, bias, "hidden_activation")?;
    config.norm.plus_one = true;
    config.embedding_scale = (config.hidden_size as f32).sqrt();
    config.attention_scale = fields.positive_f32("query_pre_attn_scalar")?.powf(-0.5);
    config.logit_softcap = fields.optional_positive_f32("final_logit_softcapping")?;
    config.tied = fields.bool("tie_word_embeddings", true)?;
    config.names.post_attention_norm = Some("post_attention_layernorm");
    config.names.mlp_norm = "pre_feedforward_layernorm";
    config.names.post_mlp_norm = Some("post_feedforward_layernorm");
    Ok(config)
}

fn layers(
    fields: &Fields<'_>,
    slides: &[bool],
    rope: impl Fn(bool) -> Rope,
) -> Result<Vec<LayerConfig>, ModelError> {
    let window = fields.usize("sliding_window")?;
    let layer =
        |&slides: &bool| LayerConfig { window: slides.then_some(window), rope: rope(slides) };
    Ok(slides.iter().map(layer).collect())
}
