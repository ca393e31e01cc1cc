//! One small file per family: how its `config.json` and its names map to a [`DecoderConfig`].

mod defaults;
mod gemma;
mod gpt2;
mod llama;
mod llava;
mod mpt;
mod phi3;

use serde_json::{Map, Value, json};

pub use llava::{PROJECTOR, TOWER, canonical_name, decoder_alone, hub_name};

use super::config::{DecoderConfig, LayerConfig, NormConfig};
use super::fields::Fields;
use super::{ModelError, rope};
use crate::backend::{NormKind, Rope};

type Read = fn(&Fields<'_>) -> Result<DecoderConfig, ModelError>;

const FAMILIES: &[(&str, Read)] = &[
    ("llama", llama::llama),
    ("mistral", llama::mistral),
    ("ministral", llama::mistral),
    ("qwen2", llama::qwen2),
    ("qwen3", llama::qwen3),
    ("phi3", phi3::phi3),
    ("gpt2", gpt2::gpt2),
    ("mpt", mpt::mpt),
    ("gemma2", gemma::gemma2),
    ("gemma3_text", gemma::gemma3),
    ("llava", llava::llava),
];

/// Maps a `config.json`.
///
/// # Errors
/// If the family is unknown, a value is malformed, or changes the mathematics in a way that is not
/// supported.
pub fn read(config: &Value) -> Result<DecoderConfig, ModelError> {
    read_fields(&Fields::new(config)?)
}

fn read_fields(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    let family = fields.optional_str("model_type")?.ok_or_else(|| fields.missing("model_type"))?;
    let Some((_, read)) = FAMILIES.iter().find(|(name, _)| *name == family) else {
        let names: Vec<&str> = FAMILIES.iter().map(|(name, _)| *name).collect();
        let (family, supported) = (family.to_owned(), names.join(", "));
        return Err(ModelError::UnknownFamily { family, supported });
    };
    let all = defaults::completed(family, fields.to_map());
    let fields = fields.with(&all);
    quantization(&fields)?;
    let decoder = read(&fields)?;
    check(&fields, &decoder)?;
    Ok(decoder)
}

/// The keys of `config` with those it leaves out.
///
/// # Errors
/// If it is no object.
pub fn completed(config: &Value) -> Result<Map<String, Value>, ModelError> {
    let fields = Fields::new(config)?;
    let family = fields.optional_str("model_type")?.unwrap_or_default();
    Ok(defaults::completed(family, fields.to_map()))
}

/// Of quantised checkpoints, those of bitsandbytes in 4 bits are read.
fn quantization(fields: &Fields<'_>) -> Result<(), ModelError> {
    let Some(quantization) = fields.object("quantization_config")? else { return Ok(()) };
    let method = quantization.get("quant_method").cloned().unwrap_or_default();
    match quantization.bool("load_in_4bit", false)? && method == "bitsandbytes" {
        true => Ok(()),
        false => Err(quantization.unsupported("quant_method", method)),
    }
}

/// What every family must satisfy.
fn check(fields: &Fields<'_>, config: &DecoderConfig) -> Result<(), ModelError> {
    if config.kv_heads == 0 || !config.heads.is_multiple_of(config.kv_heads) {
        let expected = "a divisor of the number of heads";
        return Err(fields.bad("num_key_value_heads", expected, config.kv_heads));
    }
    if config.layers.iter().any(|layer| 2 * layer.rope.pairs() > config.head_dim) {
        return Err(fields.unsupported("head_dim", config.head_dim));
    }
    let turns = |frequency: &f32| frequency.is_finite() && *frequency > 0.0;
    let longest = u32::try_from(config.context_length).unwrap_or(u32::MAX);
    let sound = |Rope { scale, frequencies, .. }: &Rope, longest: &[f32]| {
        scale.is_finite() && frequencies.iter().chain(longest).all(turns)
    };
    match config.layers.iter().all(|layer| sound(&layer.rope, &layer.rope.at(longest))) {
        true => Ok(()),
        false => Err(rope_numbers(fields)),
    }
}

fn rope_numbers(fields: &Fields<'_>) -> ModelError {
    let places = ["rope_parameters", "rope_scaling", "rope_theta"];
    let place = places.into_iter().find(|key| fields.get(key).is_some()).unwrap_or("rope_theta");
    let found = fields.get(place).cloned().unwrap_or_default();
    fields.bad(place, "of numbers that make every frequency finite and above 0", found)
}

/// `head_dim`, or the hidden size shared among the heads.
fn head_dim(fields: &Fields<'_>, hidden: usize, heads: usize) -> Result<usize, ModelError> {
    if fields.get("head_dim").is_some() {
        return fields.small("head_dim");
    }
    match hidden.is_multiple_of(heads) {
        true => Ok(hidden / heads),
        false => {
            let expected = "a multiple of the number of heads where there is no `head_dim`";
            Err(fields.bad("hidden_size", expected, format!("{hidden} for {heads} heads")))
        }
    }
}

fn rms_norm(fields: &Fields<'_>) -> Result<NormConfig, ModelError> {
    let eps = fields.epsilon("rms_norm_eps")?;
    Ok(NormConfig { kind: NormKind::Rms, eps, bias: false, plus_one: false })
}

/// `layers` times the same layer.
fn alike(layers: usize, window: Option<usize>) -> Vec<LayerConfig> {
    vec![LayerConfig { window, rope: Rope::default() }; layers]
}

/// Whether each layer slides: from `layer_types`, or by the family's rule in older files.
fn sliding(
    fields: &Fields<'_>,
    layers: usize,
    rule: impl Fn(usize) -> bool,
) -> Result<Vec<bool>, ModelError> {
    let Some(types) = fields.array("layer_types")? else {
        return Ok((0..layers).map(rule).collect());
    };
    if types.len() != layers {
        return Err(fields.unsupported("layer_types", Value::from(types.clone())));
    }
    let slides = |kind: &Value| match kind.as_str() {
        Some("sliding_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        _ => Err(fields.unsupported("layer_types", kind)),
    };
    types.iter().map(slides).collect()
}

/// Refuses attention that is not causal.
fn causal(fields: &Fields<'_>) -> Result<(), ModelError> {
    fields.only("use_bidirectional_attention", &[json!(false)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama() -> Value {
        json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "vocab_size": 256,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 128, "hidden_act": "silu",
        })
    }

    fn refusal(key: &str, value: Value) -> String {
        let mut config = llama();
        config[key] = value;
        read(&config).expect_err("refused").to_string()
    }

    #[test]
    fn what_changes_the_mathematics_is_refused_by_name() {
        assert!(read(&llama()).is_ok());
        for (key, value) in [
            ("hidden_act", json!("laplace")),
            ("quantization_config", json!({"quant_method": "gptq"})),
            ("num_key_value_heads", json!(3)),
            ("hidden_size", json!("wide")),
            ("vocab_size", json!(0)),
            ("num_hidden_layers", json!(2_000_000_000)),
            ("head_dim", json!(1 << 30)),
            ("hidden_size", json!(65)),
            ("rms_norm_eps", json!(-1)),
            ("rope_theta", json!(0.0)),
            ("rope_scaling", json!({"rope_type": "linear", "factor": 0.0})),
            ("rope_scaling", json!({"rope_type": "yarn", "factor": -1.0})),
            ("rope_scaling", json!({"rope_type": "spiral", "factor": 2.0})),
        ] {
            assert!(refusal(key, value).contains(key), "{key}");
        }
    }

    #[test]
    fn keys_that_are_absent_mean_what_they_mean_to_the_family_and_null_means_none() {
        let of = |family: &str, changes: Value| {
            let mut config = llama();
            config["model_type"] = family.into();
            let (to, from) =
                (config.as_object_mut().unwrap(), changes.as_object().unwrap().clone());
            to.extend(from);
            read(&config).expect("a configuration")
        };
        let windows = |config: &DecoderConfig| -> Vec<Option<usize>> {
            config.layers.iter().map(|layer| layer.window).collect()
        };
        let gemma = json!({
            "query_pre_attn_scalar": 16, "sliding_window": 8, "hidden_activation": "gelu_pytorch_tanh",
        });
        let usual = of("gemma2", gemma.clone());
        assert_eq!((usual.attention_softcap, usual.logit_softcap), (Some(50.0), Some(30.0)));
        let mut capless = gemma;
        capless["attn_logit_softcapping"] = Value::Null;
        capless["final_logit_softcapping"] = Value::Null;
        let capless = of("gemma2", capless);
        assert_eq!((capless.attention_softcap, capless.logit_softcap), (None, None));
        let found = windows(&of("mistral", json!({})));
        assert_eq!(found, [Some(4096); 2]);
        let found = windows(&of("mistral", json!({"sliding_window": null})));
        assert_eq!(found, [None; 2]);
        let kinds = json!(["sliding_attention", "full_attention"]);
        for family in ["mistral", "ministral"] {
            let some = of(family, json!({"sliding_window": 8, "layer_types": kinds}));
            assert_eq!(windows(&some), [Some(8), None], "{family}");
        }
        let slides = json!({"use_sliding_window": true, "sliding_window": 8});
        let found = windows(&of("qwen2", slides));
        assert_eq!(found, [None; 2], "the first 28 layers see all");
    }

    #[test]
    fn an_unknown_family_is_refused_with_the_list_of_known_ones() {
        let message = refusal("model_type", json!("mamba"));
        assert!(message.contains("mamba") && message.contains("llama, mistral"), "{message}");
    }
}
