//! Rotary positions in the metadata of a file.

use serde_json::{Map, Value, json};

use super::super::ModelError;
use super::super::fields::Fields;
use super::super::rope::{self, Place};
use super::config::Keys;
use crate::backend::{Rope, frequencies as plain_frequencies};

/// The rope of `keys`, in the older spelling of a `config.json`.
pub(super) fn read(
    keys: &Keys<'_>,
    head_dim: usize,
    config: &mut Map<String, Value>,
    factors: impl Fn(&str) -> Result<Option<Vec<f32>>, ModelError>,
) -> Result<(), ModelError> {
    let theta = keys.number("rope.freq_base")?.unwrap_or(10_000.0);
    config.insert("rope_theta".into(), json!(theta));
    if let Some(local) = keys.number("rope.freq_base_swa")? {
        config.insert("rope_local_base_freq".into(), json!(local));
    }
    let turned = keys.count("rope.dimension_count")?.unwrap_or(head_dim);
    if turned != head_dim {
        let partial = turned as f64 / head_dim.max(1) as f64;
        config.insert("partial_rotary_factor".into(), json!(partial));
    }
    let context = keys.required("context_length")?;
    let original = keys.count("rope.scaling.original_context_length")?;
    // Llama 3 stores what its scaling comes to, one factor per frequency.
    if let Some(factors) = factors("rope_freqs.weight")? {
        insert_factors(config, &factors, &factors, Some(1.0), original.unwrap_or(context));
        return Ok(());
    }
    if let (Some(short), Some(long)) =
        (factors("rope_factors_short.weight")?, factors("rope_factors_long.weight")?)
    {
        let attention = keys.number("rope.scaling.attn_factor")?;
        insert_factors(config, &short, &long, attention, original.unwrap_or(context));
        return Ok(());
    }
    let key = keys.key("rope.scaling.type");
    let old = keys.number("rope.scale_linear")?.filter(|&scale| scale != 1.0);
    let kind = match (keys.metadata().text(&key)?, old) {
        (None, Some(_)) => "linear",
        (kind, _) => kind.unwrap_or("none"),
    };
    let factor = keys.number("rope.scaling.factor")?.or(old);
    match kind {
        "none" => {}
        "linear" => {
            config.insert("rope_scaling".into(), json!({"rope_type": "linear", "factor": factor}));
        }
        "yarn" => {
            let attention = keys.number("rope.scaling.attn_factor")?;
            let beta = |name: &str| keys.number(&format!("rope.scaling.yarn_{name}"));
            let scaling = json!({
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": original,
                "beta_fast": beta("beta_fast")?,
                "beta_slow": beta("beta_slow")?,
                "attention_factor": attention.map(|more| more * yarn_growth(factor.unwrap_or(1.0))),
            });
            config.insert("rope_scaling".into(), scaling);
        }
        other => {
            return Err(keys.metadata().unsupported(&key, other, "none, linear, yarn").into());
        }
    }
    Ok(())
}

fn insert_factors(
    config: &mut Map<String, Value>,
    short: &[f32],
    long: &[f32],
    attention: Option<f32>,
    original: usize,
) {
    let scaling = json!({
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": long,
        "attention_factor": attention,
        "original_max_position_embeddings": original,
    });
    config.insert("rope_scaling".into(), scaling);
    // Phi-3 has one of its own where none stands here.
    config.insert("original_max_position_embeddings".into(), json!(original));
}

/// What YaRN multiplies cos and sin by. In a file stands what comes on top of it.
pub(super) fn yarn_growth(factor: f32) -> f32 {
    if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 }
}

/// What a file says of rotary positions.
pub(super) struct Described {
    pub theta: f32,
    /// The base of sliding layers, where it is another one.
    pub local_theta: Option<f32>,
    pub dimensions: usize,
    pub kind: String,
    pub factor: f32,
    /// What each frequency is divided by, and is behind the original context.
    pub factors: Vec<f32>,
    pub long_factors: Vec<f32>,
    pub original: Option<f32>,
    pub beta_fast: f32,
    pub beta_slow: f32,
    /// YaRN's border frequencies are rounded, as every reader of these files does.
    pub whole_turns: bool,
    pub scale: f32,
}

/// Reads the rope of a `config.json` in either spelling; `by_layer_type` if sliding layers have
/// their own.
pub(super) fn described(
    config: &Fields<'_>,
    head_dim: usize,
    by_layer_type: bool,
) -> Result<Described, ModelError> {
    const ORIGINAL: &str = "original_max_position_embeddings";
    let (main, Place { keys: place, theta }, local_theta) = if by_layer_type {
        let (sliding, full) = Place::by_layer_type(config)?;
        (rope::by_layer_type(config, head_dim)?.1, full, Some(sliding.theta))
    } else {
        (rope::rope(config, head_dim)?, Place::of(config)?, None)
    };
    let kind = place.optional_str("rope_type")?.or(place.optional_str("type")?);
    let Rope { frequencies, scale, .. } = main;
    let plain = plain_frequencies(theta, 2 * frequencies.len());
    let number = |key: &str, default: f32| -> Result<f32, ModelError> {
        Ok(place.optional_f32(key)?.filter(|&number| number != 0.0).unwrap_or(default))
    };
    let long = place.array("long_factor")?.into_iter().flatten();
    let original = config.optional_f32(ORIGINAL)?.or(place.optional_f32(ORIGINAL)?);
    let context = config.f32("max_position_embeddings")?;
    Ok(Described {
        theta,
        local_theta,
        dimensions: 2 * frequencies.len(),
        kind: if kind == Some("su") { "longrope" } else { kind.unwrap_or("default") }.to_owned(),
        factor: number("factor", context / original.unwrap_or(context))?,
        factors: plain.iter().zip(&frequencies).map(|(plain, scaled)| plain / scaled).collect(),
        long_factors: long.filter_map(|factor| factor.as_f64().map(|f| f as f32)).collect(),
        original,
        beta_fast: number("beta_fast", 32.0)?,
        beta_slow: number("beta_slow", 1.0)?,
        whole_turns: place.bool("truncate", true)?,
        scale,
    })
}
