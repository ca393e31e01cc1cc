//! MPT (MosaicML 2023): ALiBi instead of positions, LayerNorm without bias, one fused `Wqkv`,
//! optionally clipped, and q and k optionally normed.

use super::*;
use crate::model::config::{LinearConfig, Names};

pub fn mpt(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    refuse_variants(fields)?;
    let (hidden_size, heads) = (fields.usize("d_model")?, fields.small("n_heads")?);
    let head_dim = head_dim(fields, hidden_size, heads)?;
    let attention = attention(fields, heads)?;
    let ratio = fields.optional_usize("expansion_ratio")?.unwrap_or(4);
    let eps = fields.epsilon("layer_norm_epsilon")?;
    let intermediate_size = ratio * hidden_size;
    Ok(DecoderConfig {
        family: "mpt".to_owned(),
        hidden_size,
        intermediate_size,
        vocab_size: fields.usize("vocab_size")?,
        context_length: fields.usize("max_seq_len")?,
        heads,
        kv_heads: heads,
        head_dim,
        norm: NormConfig { kind: NormKind::Layer, eps, bias: false, plus_one: false },
        activation: crate::backend::Activation::Gelu,
        gated: false,
        attention_scale: attention.scale.unwrap_or((head_dim as f32).powf(-0.5)),
        attention_scale_by_layer: false,
        attention_softcap: None,
        clip_qkv: attention.clip,
        qk_norm_whole: true,
        alibi: Some(attention.slopes),
        layers: alike(fields.small("n_layers")?, None),
        embedding_scale: 1.0,
        logit_scale: logit_scale(fields, hidden_size)?,
        logit_softcap: None,
        tied: fields.bool("tie_word_embeddings", true)?,
        eos_token_ids: fields.token_ids("eos_token_id")?,
        vision: None,
        default_targets: &["Wqkv"],
        names: Names {
            prefix: "transformer.",
            embedding: "wte",
            positions: None,
            layer: "blocks",
            input_norm: "norm_1",
            qkv: vec![LinearConfig::new("attn.Wqkv", 3 * hidden_size, false)],
            qk_norm: attention.norm.then_some(["attn.q_ln", "attn.k_ln"]),
            o: LinearConfig::new("attn.out_proj", hidden_size, false),
            post_attention_norm: None,
            mlp_norm: "norm_2",
            up: vec![LinearConfig::new("ffn.up_proj", intermediate_size, false)],
            down: LinearConfig::new("ffn.down_proj", hidden_size, false),
            post_mlp_norm: None,
            final_norm: "norm_f",
            head: "lm_head",
            transposed: false,
            ignored: &[],
        },
    })
}

struct Attention {
    slopes: Vec<f32>,
    clip: Option<f32>,
    /// `qk_ln`: a LayerNorm over all of q, and one over all of k, behind the clip.
    norm: bool,
    scale: Option<f32>,
}

/// `attn_config`, whose every variant but ALiBi with one kind of head changes the mathematics.
fn attention(fields: &Fields<'_>, heads: usize) -> Result<Attention, ModelError> {
    let Some(attention) = fields.object("attn_config")? else {
        let slopes = rope::alibi_slopes(heads, 8.0);
        return Ok(Attention { slopes, clip: None, norm: false, scale: None });
    };
    attention.only("alibi", &[json!(true)])?;
    attention.only("attn_type", &[json!("multihead_attention")])?;
    attention.only("kv_n_heads", &[json!(heads)])?;
    for key in ["prefix_lm", "qk_gn", "rope", "attn_uses_sequence_id"] {
        attention.only(key, &[json!(false)])?;
    }
    refuse_unknown(&attention)?;
    attention.only("sliding_window_size", &[json!(-1)])?;
    let max = attention.optional_positive_f32("alibi_bias_max")?.unwrap_or(8.0);
    Ok(Attention {
        slopes: rope::alibi_slopes(heads, max),
        // Zero is no clip to transformers as to the original.
        clip: match attention.optional_f32("clip_qkv")? {
            Some(0.0) => None,
            _ => attention.optional_positive_f32("clip_qkv")?,
        },
        norm: attention.bool("qk_ln", false)?,
        scale: attention.optional_positive_f32("softmax_scale")?,
    })
}

/// Refuses an option of attention that is not known here and is on. Files also keep what has nothing
/// to do with attention in that place.
fn refuse_unknown(attention: &Fields<'_>) -> Result<(), ModelError> {
    const KNOWN: [&str; 7] = [
        "attn_impl",
        "attn_pdrop",
        "attn_type",
        "attn_uses_sequence_id",
        "qk_ln",
        "qk_gn",
        "alibi_bias_max",
    ];
    const KINDS: [&str; 4] = ["attn_", "qk_", "alibi_", "attention_"];
    let off = [json!(false), json!(0), json!(0.0), json!("")];
    let all = attention.to_map();
    let unknown = all.keys().filter(|key| {
        KINDS.iter().any(|kind| key.starts_with(kind)) && !KNOWN.contains(&key.as_str())
    });
    unknown.map(String::as_str).try_for_each(|key| attention.only(key, &off))
}

/// `learned_pos_emb` is no variant: beside ALiBi it means nothing, and most files say `true`.
fn refuse_variants(fields: &Fields<'_>) -> Result<(), ModelError> {
    fields.only("no_bias", &[json!(true)])?;
    fields.only("embedding_fraction", &[json!(1.0), json!(1)])?;
    fields.only("norm_type", &[json!("low_precision_layernorm"), json!("layernorm")])?;
    let ffn = fields.object("ffn_config")?;
    ffn.map_or(Ok(()), |ffn| ffn.only("ffn_type", &[json!("mptmlp")]))
}

/// A number, or `inv_sqrt_d_model`.
fn logit_scale(fields: &Fields<'_>, hidden_size: usize) -> Result<f32, ModelError> {
    match fields.get("logit_scale") {
        None => Ok(1.0),
        Some(Value::String(rule)) if rule == "inv_sqrt_d_model" => {
            Ok((hidden_size as f32).powf(-0.5))
        }
        Some(Value::String(rule)) => Err(fields.unsupported("logit_scale", rule)),
        Some(_) => fields.positive_f32("logit_scale"),
    }
}
