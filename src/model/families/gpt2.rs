//! GPT-2 (Radford et al. 2019): learned positions, LayerNorm, biases everywhere, weights stored
//! `(in, out)`.

use super::*;
use crate::model::config::{LinearConfig, Names};

pub fn gpt2(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    fields.only("add_cross_attention", &[json!(false)])?;
    let (hidden_size, heads) = (fields.usize("n_embd")?, fields.small("n_head")?);
    let head_dim = head_dim(fields, hidden_size, heads)?;
    let intermediate_size = fields.optional_usize("n_inner")?.unwrap_or(4 * hidden_size);
    let scaled = fields.bool("scale_attn_weights", true)?;
    let eps = fields.epsilon("layer_norm_epsilon")?;
    Ok(DecoderConfig {
        family: "gpt2".to_owned(),
        hidden_size,
        intermediate_size,
        vocab_size: fields.usize("vocab_size")?,
        context_length: fields.usize("n_positions")?,
        heads,
        kv_heads: heads,
        head_dim,
        norm: NormConfig { kind: NormKind::Layer, eps, bias: true, plus_one: false },
        activation: fields.activation("activation_function")?,
        gated: false,
        attention_scale: if scaled { (head_dim as f32).powf(-0.5) } else { 1.0 },
        attention_scale_by_layer: fields.bool("scale_attn_by_inverse_layer_idx", false)?,
        attention_softcap: None,
        clip_qkv: None,
        qk_norm_whole: false,
        alibi: None,
        layers: alike(fields.small("n_layer")?, None),
        embedding_scale: 1.0,
        logit_scale: 1.0,
        logit_softcap: None,
        tied: fields.bool("tie_word_embeddings", true)?,
        eos_token_ids: fields.token_ids("eos_token_id")?,
        vision: None,
        default_targets: &["c_attn"],
        names: Names {
            prefix: "transformer.",
            embedding: "wte",
            positions: Some("wpe"),
            layer: "h",
            input_norm: "ln_1",
            qkv: vec![LinearConfig::new("attn.c_attn", 3 * hidden_size, true)],
            qk_norm: None,
            o: LinearConfig::new("attn.c_proj", hidden_size, true),
            post_attention_norm: None,
            mlp_norm: "ln_2",
            up: vec![LinearConfig::new("mlp.c_fc", intermediate_size, true)],
            down: LinearConfig::new("mlp.c_proj", hidden_size, true),
            post_mlp_norm: None,
            final_norm: "ln_f",
            head: "lm_head",
            transposed: true,
            ignored: &["attn.bias", "attn.masked_bias"],
        },
    })
}
