//! The metadata of a decoder: the way back from [`super::config`].

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::ModelError;
use super::super::config::DecoderConfig;
use super::super::families;
use super::super::fields::Fields;
use super::rope::{self, yarn_growth};
use crate::backend::{Activation, Beyond, NormKind, Stretch};
use crate::gguf::Value as Meta;

/// What a file says of a decoder.
#[derive(Debug, Default)]
pub struct Described {
    pub metadata: BTreeMap<String, Meta>,
    /// Frequencies that are stored as tensors.
    pub vectors: Vec<(&'static str, Vec<f32>)>,
}

/// Collects metadata under the name of an architecture.
struct Keys {
    architecture: &'static str,
    described: Described,
}

impl Keys {
    fn put(&mut self, name: &str, value: Meta) {
        self.described.metadata.insert(format!("{}.{name}", self.architecture), value);
    }

    fn count(&mut self, name: &str, count: usize) {
        self.put(name, Meta::Int(count as i64));
    }

    fn number(&mut self, name: &str, number: f32) {
        self.put(name, Meta::Float(number));
    }
}

/// The metadata of `config`, which was read from `json`.
///
/// # Errors
/// [`ModelError::NotExportable`] for what GGUF has no words for.
pub fn described(config: &DecoderConfig, json: &Value) -> Result<Described, ModelError> {
    let architecture = match config.family.as_str() {
        "llama" | "mistral" => "llama",
        "qwen2" => "qwen2",
        "qwen3" => "qwen3",
        "phi3" => "phi3",
        "gemma2" => "gemma2",
        "gemma3_text" => "gemma3",
        "gpt2" => "gpt2",
        "mpt" => "mpt",
        other => return Err(not_exportable("the family", other)),
    };
    check(config, architecture)?;
    let mut keys = Keys { architecture, described: Described::default() };
    let general = Meta::Text(architecture.to_owned());
    keys.described.metadata.insert("general.architecture".to_owned(), general);
    keys.count("context_length", context(config, architecture));
    keys.count("embedding_length", config.hidden_size);
    keys.count("block_count", config.layers.len());
    keys.count("feed_forward_length", config.intermediate_size);
    keys.count("attention.head_count", config.heads);
    keys.count("attention.head_count_kv", config.kv_heads);
    keys.count("vocab_size", config.vocab_size);
    match config.norm.kind {
        NormKind::Rms => keys.number("attention.layer_norm_rms_epsilon", config.norm.eps),
        NormKind::Layer => keys.number("attention.layer_norm_epsilon", config.norm.eps),
    }
    let complete = families::completed(json)?;
    let fields = Fields::inside(&complete, "");
    if architecture == "mpt" {
        mpt(&mut keys, config, &fields)?;
    } else if architecture != "gpt2" {
        keys.count("attention.key_length", config.head_dim);
        keys.count("attention.value_length", config.head_dim);
        windows(&mut keys, config);
        positions(&mut keys, config, &fields)?;
    }
    if architecture.starts_with("gemma") {
        keys.number("attention.scale", config.attention_scale);
    }
    for (name, cap) in [
        ("attn_logit_softcapping", config.attention_softcap),
        ("final_logit_softcapping", config.logit_softcap),
    ] {
        if let Some(cap) = cap {
            keys.number(name, cap);
        }
    }
    Ok(keys.described)
}

/// What an architecture takes for granted.
fn check(config: &DecoderConfig, architecture: &str) -> Result<(), ModelError> {
    let activation = match architecture {
        "gpt2" | "gemma2" | "gemma3" => Activation::GeluTanh,
        "mpt" => Activation::Gelu,
        _ => Activation::Silu,
    };
    if config.activation != activation {
        return Err(not_exportable("the activation", format!("{:?}", config.activation)));
    }
    let usual = (config.head_dim as f32).powf(-0.5);
    if !architecture.starts_with("gemma") && config.attention_scale != usual {
        return Err(not_exportable("the attention scale", config.attention_scale));
    }
    if architecture == "qwen3" && config.names.o.bias {
        // Its readers know biases of q, k and v, and none of the output.
        return Err(not_exportable("attention_bias", true));
    }
    if config.attention_scale_by_layer {
        return Err(not_exportable("the attention scale", "by layer"));
    }
    if config.logit_scale != 1.0 {
        return Err(not_exportable("the logit scale", config.logit_scale));
    }
    Ok(())
}

fn mpt(keys: &mut Keys, config: &DecoderConfig, fields: &Fields<'_>) -> Result<(), ModelError> {
    let attention = fields.object("attn_config")?;
    let max = attention.map(|attention| attention.optional_f32("alibi_bias_max")).transpose()?;
    keys.number("attention.max_alibi_bias", max.flatten().unwrap_or(8.0));
    if let Some(clip) = config.clip_qkv {
        keys.number("attention.clamp_kqv", clip);
    }
    Ok(())
}

/// One window for all layers, or which of them slide.
fn windows(keys: &mut Keys, config: &DecoderConfig) {
    let Some(window) = config.layers.iter().find_map(|layer| layer.window) else { return };
    keys.count("attention.sliding_window", window);
    let slides: Vec<bool> = config.layers.iter().map(|layer| layer.window.is_some()).collect();
    if slides.contains(&false) {
        keys.put("attention.sliding_window_pattern", Meta::Bools(slides));
    }
}

/// How far the frequencies go that a file holds: it has others for longer texts with Phi-3 alone, and
/// none that grow.
fn context(config: &DecoderConfig, architecture: &str) -> usize {
    match config.beyond() {
        Some(Beyond { stretch: Stretch::Other(_), .. }) if architecture == "phi3" => {
            config.context_length
        }
        Some(beyond) => beyond.context.min(config.context_length),
        None => config.context_length,
    }
}

fn positions(
    keys: &mut Keys,
    config: &DecoderConfig,
    fields: &Fields<'_>,
) -> Result<(), ModelError> {
    let rope = rope::described(fields, config.head_dim, keys.architecture == "gemma3")?;
    keys.number("rope.freq_base", rope.theta);
    keys.count("rope.dimension_count", rope.dimensions);
    if let Some(local) = rope.local_theta {
        keys.number("rope.freq_base_swa", local);
    }
    let phi = keys.architecture == "phi3";
    if let Some(original) = rope.original.filter(|_| rope.kind == "yarn" || phi) {
        keys.count("rope.scaling.original_context_length", original as usize);
    }
    match rope.kind.as_str() {
        "linear" => {
            keys.put("rope.scaling.type", Meta::Text("linear".into()));
            keys.number("rope.scaling.factor", rope.factor);
        }
        "yarn" if !rope.whole_turns => return Err(not_exportable("truncate", false)),
        "yarn" => {
            keys.put("rope.scaling.type", Meta::Text("yarn".into()));
            keys.number("rope.scaling.factor", rope.factor);
            for (name, number) in [("beta_fast", rope.beta_fast), ("beta_slow", rope.beta_slow)] {
                keys.number(&format!("rope.scaling.yarn_{name}"), number);
            }
            // Readers multiply what the paper recommends by this.
            keys.number("rope.scaling.attn_factor", rope.scale / yarn_growth(rope.factor));
        }
        "llama3" if keys.architecture == "llama" => {
            keys.described.vectors.push(("rope_freqs.weight", rope.factors))
        }
        "longrope" if phi => {
            keys.number("rope.scaling.attn_factor", rope.scale);
            keys.described.vectors.push(("rope_factors_short.weight", rope.factors));
            keys.described.vectors.push(("rope_factors_long.weight", rope.long_factors));
        }
        "longrope" if rope.scale == 1.0 && keys.architecture == "llama" => {
            keys.described.vectors.push(("rope_freqs.weight", rope.factors));
        }
        "default" | "dynamic" => {}
        other => return Err(not_exportable("rope_type", other)),
    }
    Ok(())
}

pub(super) fn not_exportable(key: &str, value: impl ToString) -> ModelError {
    ModelError::NotExportable { key: key.to_owned(), value: value.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The context and the factors of frequencies in the file of a model of `family` with this rope.
    fn written(family: &str, rope: Value) -> (Meta, usize) {
        let json = json!({
            "model_type": family, "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
            "max_position_embeddings": 100, "rms_norm_eps": 1e-5, "rope_scaling": rope,
            "pad_token_id": null,
        });
        let config = families::read(&json).expect("a configuration");
        let Described { metadata, vectors } = described(&config, &json).expect("its metadata");
        let architecture = if family == "phi3" { family } else { "llama" };
        (metadata[&format!("{architecture}.context_length")].clone(), vectors.len())
    }

    #[test]
    fn a_file_promises_no_context_that_its_frequencies_do_not_reach() {
        let factors = |long: f32| {
            json!({
                "rope_type": "longrope", "short_factor": [1, 1, 1, 1], "attention_factor": 1.0,
                "long_factor": [long, long, long, long], "original_max_position_embeddings": 40,
            })
        };
        assert_eq!(
            written("llama", json!({"rope_type": "dynamic", "factor": 4.0})),
            (Meta::Int(100), 0)
        );
        assert_eq!(written("llama", factors(2.0)), (Meta::Int(40), 1));
        assert_eq!(written("llama", factors(1.0)), (Meta::Int(100), 1));
        assert_eq!(written("phi3", factors(2.0)), (Meta::Int(100), 2));
    }
}
