//! Llama 1 to 3 (Touvron et al. 2023; Grattafiori et al. 2024) and its close relatives: Mistral
//! (sliding window), Qwen 2 (biases on q, k, v), Qwen 3 (norms on q and k).

use super::*;
use crate::model::config::{LinearConfig, Names};

pub fn llama(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    let bias = fields.bool("attention_bias", false)?;
    let mut config = base(fields, bias, bias)?;
    if fields.bool("mlp_bias", false)? {
        config.names.up.iter_mut().for_each(|linear| linear.bias = true);
        config.names.down.bias = true;
    }
    Ok(config)
}

pub fn mistral(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    let mut config = base(fields, false, false)?;
    let window = fields.optional_usize("sliding_window")?;
    // Ministral says of each layer whether it slides, under its own name or under this one.
    let slides = sliding(fields, config.layers.len(), |_| true)?;
    for (layer, slides) in config.layers.iter_mut().zip(slides) {
        layer.window = window.filter(|_| slides);
    }
    Ok(config)
}

pub fn qwen2(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    let mut config = base(fields, true, false)?;
    qwen_windows(fields, &mut config)?;
    Ok(config)
}

pub fn qwen3(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    let bias = fields.bool("attention_bias", false)?;
    let mut config = base(fields, bias, bias)?;
    config.names.qk_norm = Some(["self_attn.q_norm", "self_attn.k_norm"]);
    qwen_windows(fields, &mut config)?;
    Ok(config)
}

/// Qwen slides only where `use_sliding_window` says so, and then from `max_window_layers` on.
fn qwen_windows(fields: &Fields<'_>, config: &mut DecoderConfig) -> Result<(), ModelError> {
    let slides = fields.bool("use_sliding_window", false)?;
    let window = fields.optional_usize("sliding_window")?;
    let Some(window) = window.filter(|_| slides) else { return Ok(()) };
    // Null is what the metadata of a GGUF file becomes that says nothing.
    let first = fields.optional_count("max_window_layers")?.unwrap_or(0);
    let slides = sliding(fields, config.layers.len(), |layer| layer >= first)?;
    for (layer, slides) in config.layers.iter_mut().zip(slides) {
        layer.window = slides.then_some(window);
    }
    Ok(())
}

/// What the whole family shares, its layers alike.
pub fn base(
    fields: &Fields<'_>,
    qkv_bias: bool,
    o_bias: bool,
) -> Result<DecoderConfig, ModelError> {
    let mut config = without_rope(fields, qkv_bias, o_bias, "hidden_act")?;
    let rope = rope::rope(fields, config.head_dim)?;
    config.context_length = rope::stretched_context(&rope, config.context_length);
    config.layers.iter_mut().for_each(|layer| layer.rope.clone_from(&rope));
    Ok(config)
}

/// What Gemma shares as well: everything but RoPE, and the key of the activation.
pub fn without_rope(
    fields: &Fields<'_>,
    qkv_bias: bool,
    o_bias: bool,
    activation: &str,
) -> Result<DecoderConfig, ModelError> {
    let (hidden_size, heads) = (fields.usize("hidden_size")?, fields.small("num_attention_heads")?);
    let kv_heads = fields.optional_usize("num_key_value_heads")?.unwrap_or(heads);
    let head_dim = head_dim(fields, hidden_size, heads)?;
    let intermediate_size = fields.usize("intermediate_size")?;
    let (q, kv) = (heads * head_dim, kv_heads * head_dim);
    Ok(DecoderConfig {
        family: fields.optional_str("model_type")?.unwrap_or("llama").to_owned(),
        hidden_size,
        intermediate_size,
        vocab_size: fields.usize("vocab_size")?,
        context_length: fields.usize("max_position_embeddings")?,
        heads,
        kv_heads,
        head_dim,
        norm: rms_norm(fields)?,
        activation: fields.activation(activation)?,
        gated: true,
        attention_scale: (head_dim as f32).powf(-0.5),
        attention_scale_by_layer: false,
        attention_softcap: None,
        clip_qkv: None,
        qk_norm_whole: false,
        alibi: None,
        layers: alike(fields.small("num_hidden_layers")?, None),
        embedding_scale: 1.0,
        logit_scale: 1.0,
        logit_softcap: None,
        tied: fields.bool("tie_word_embeddings", false)?,
        eos_token_ids: fields.token_ids("eos_token_id")?,
        vision: None,
        default_targets: &["q_proj", "v_proj"],
        names: Names {
            prefix: "model.",
            embedding: "embed_tokens",
            positions: None,
            layer: "layers",
            input_norm: "input_layernorm",
            qkv: vec![
                LinearConfig::new("self_attn.q_proj", q, qkv_bias),
                LinearConfig::new("self_attn.k_proj", kv, qkv_bias),
                LinearConfig::new("self_attn.v_proj", kv, qkv_bias),
            ],
            qk_norm: None,
            o: LinearConfig::new("self_attn.o_proj", hidden_size, o_bias),
            post_attention_norm: None,
            mlp_norm: "post_attention_layernorm",
            up: vec![
                LinearConfig::new("mlp.gate_proj", intermediate_size, false),
                LinearConfig::new("mlp.up_proj", intermediate_size, false),
            ],
            down: LinearConfig::new("mlp.down_proj", hidden_size, false),
            post_mlp_norm: None,
            final_norm: "norm",
            head: "lm_head",
            transposed: false,
            ignored: &["rotary_emb.inv_freq"],
        },
    })
}
