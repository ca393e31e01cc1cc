//! Rotary positions in the metadata of a file.

use serde_json::{Map, Value, json};

use super::super::ModelError;
use super::config::Keys;

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
        return Ok(insert_factors(config, &factors, &factors, Some(1.0), original.unwrap_or(context)));
    }
    if let (Some(short), Some(long)) =
        (factors("rope_factors_short.weight")?, factors("rope_factors_long.weight")?)
    {
        let attention = keys.number("rope.scaling.attn_factor")?;
        return Ok(insert_factors(config, &short, &long, attention, original.unwrap_or(context)));
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
            let beta = |name: &str| keys.number(&format!("rope.scaling.yarn_{name}"));
            let scaling = json!({
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": original,
                "beta_fast": beta("beta_fast")?,
                "beta_slow": beta("beta_slow")?,
                "attention_factor": keys.number("rope.scaling.attn_factor")?,
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
}
