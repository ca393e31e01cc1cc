//! Rotary positions (Su et al. 2021, "RoFormer"): frequencies and how long contexts scale them.

use std::f32::consts::PI;

use serde_json::json;

use super::ModelError;
use super::fields::Fields;

/// The frequencies of a model whose layers all turn alike: from `rope_parameters`, or from
/// `rope_theta` and `rope_scaling` in the older spelling.
pub fn frequencies(config: &Fields<'_>, head_dim: usize) -> Result<Vec<f32>, ModelError> {
    match config.object("rope_parameters")? {
        Some(rope) => scaled(config, &rope, rope.f32("rope_theta")?, head_dim),
        None => legacy(config, config.optional_f32("rope_theta")?.unwrap_or(10_000.0), head_dim),
    }
}

/// Frequencies by layer type, `(sliding, full)`: Gemma 3's two bases.
pub fn by_layer_type(
    config: &Fields<'_>,
    head_dim: usize,
) -> Result<(Vec<f32>, Vec<f32>), ModelError> {
    let Some(rope) = config.object("rope_parameters")? else {
        let local = config.optional_f32("rope_local_base_freq")?.unwrap_or(10_000.0);
        let theta = config.optional_f32("rope_theta")?.unwrap_or(1_000_000.0);
        return Ok((base(local, head_dim), legacy(config, theta, head_dim)?));
    };
    let of = |key| {
        let rope: Fields<'_> = rope.object(key)?.ok_or_else(|| rope.missing(key))?;
        scaled(config, &rope, rope.f32("rope_theta")?, head_dim)
    };
    Ok((of("sliding_attention")?, of("full_attention")?))
}

fn legacy(config: &Fields<'_>, theta: f32, head_dim: usize) -> Result<Vec<f32>, ModelError> {
    match config.object("rope_scaling")? {
        Some(scaling) => scaled(config, &scaling, theta, head_dim),
        None => scaled(config, config, theta, head_dim),
    }
}

/// `rope` names the kind of scaling and its numbers; a partial rotary dimension may stand there or
/// in the configuration itself.
fn scaled(
    config: &Fields<'_>,
    rope: &Fields<'_>,
    theta: f32,
    head_dim: usize,
) -> Result<Vec<f32>, ModelError> {
    let partial = rope.optional_f32("partial_rotary_factor")?;
    let partial = partial.or(config.optional_f32("partial_rotary_factor")?).unwrap_or(1.0);
    let dim = (head_dim as f32 * partial) as usize;
    if dim == 0 || dim > head_dim || dim % 2 == 1 {
        return Err(rope.unsupported("partial_rotary_factor", partial));
    }
    let frequencies = base(theta, dim);
    let kind = rope.optional_str("rope_type")?.or(rope.optional_str("type")?);
    match kind.unwrap_or("default") {
        "default" => Ok(frequencies),
        "linear" => {
            let factor = rope.f32("factor")?;
            Ok(frequencies.iter().map(|frequency| frequency / factor).collect())
        }
        "llama3" => llama3(rope, &frequencies),
        _ => Err(rope.unsupported("rope_type", json!(kind))),
    }
}

/// `theta^(−2i/dim)`, `(dim / 2)`.
fn base(theta: f32, dim: usize) -> Vec<f32> {
    (0..dim / 2).map(|i| 1.0 / theta.powf((2 * i) as f32 / dim as f32)).collect()
}

/// Llama 3.1: long wavelengths are stretched by `factor`, short ones stay, and between the two it
/// goes linearly in `original / wavelength`.
fn llama3(rope: &Fields<'_>, frequencies: &[f32]) -> Result<Vec<f32>, ModelError> {
    let factor = rope.f32("factor")?;
    let (low, high) = (rope.f32("low_freq_factor")?, rope.f32("high_freq_factor")?);
    let original = rope.f32("original_max_position_embeddings")?;
    let stretch = |frequency: &f32| {
        let smooth = (original * frequency / (2.0 * PI) - low) / (high - low);
        let smooth = smooth.clamp(0.0, 1.0);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    };
    Ok(frequencies.iter().map(stretch).collect())
}

/// ALiBi's slope per head: `2^(−k max/H)`, `k = 1 .. H`, with `H` the next power of two; where
/// there are fewer heads the second, fourth, ... come first. Press et al. 2022, section 3.
pub fn alibi_slopes(heads: usize, max: f32) -> Vec<f32> {
    let power = heads.next_power_of_two();
    let slopes: Vec<f32> =
        (1..=power).map(|k| 2f32.powf(-(k as f32) * max / power as f32)).collect();
    if power == heads {
        return slopes;
    }
    let (even, odd) = (slopes.iter().skip(1).step_by(2), slopes.iter().step_by(2));
    even.chain(odd).copied().take(heads).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_halve_and_an_odd_number_of_heads_takes_every_second_first() {
        assert_eq!(alibi_slopes(4, 8.0), [0.25, 0.0625, 0.015_625, 0.003_906_25]);
        assert_eq!(alibi_slopes(3, 8.0), [0.0625, 0.003_906_25, 0.25]);
    }

    #[test]
    fn an_unknown_scaling_is_refused_by_name() {
        let config = json!({"rope_theta": 1e4, "rope_scaling": {"type": "yarn", "factor": 4.0}});
        let error = frequencies(&Fields::new(&config).unwrap(), 8).unwrap_err().to_string();
        assert!(error.contains("rope_scaling.rope_type") && error.contains("yarn"), "{error}");
    }
}
