//! Rotary positions (Su et al. 2021, "RoFormer"): frequencies and how long contexts scale them.

use std::f32::consts::PI;

use serde_json::json;

use super::ModelError;
use super::fields::Fields;
use crate::backend::{Beyond, Rope, Stretch, frequencies};

/// Where a configuration speaks of rotary positions, and the base it names.
pub struct Place<'a> {
    pub keys: Fields<'a>,
    pub theta: f32,
}

impl<'a> Place<'a> {
    /// Of all layers alike: `rope_scaling` in the older spelling, or `rope_parameters`, or what
    /// stands in `config` itself.
    pub fn of(config: &Fields<'a>) -> Result<Self, ModelError> {
        let older = config.object("rope_scaling")?.filter(|keys| !keys.is_empty());
        let keys = older.or(config.object("rope_parameters")?).unwrap_or(*config);
        Self::at(keys, config, "rope_theta")
    }

    /// Of the layers of one type, `(sliding, full)`.
    pub fn by_layer_type(config: &Fields<'a>) -> Result<(Self, Self), ModelError> {
        let all = config.object("rope_parameters")?;
        let of = |key| Ok::<_, ModelError>(all.map(|all| all.object(key)).transpose()?.flatten());
        let sliding = of("sliding_attention")?.unwrap_or(Fields::none());
        let older = config.object("rope_scaling")?.filter(|keys| !keys.is_empty());
        let full = older.or(of("full_attention")?).unwrap_or(Fields::none());
        let sliding = Self::at(sliding, config, "rope_local_base_freq")?;
        Ok((sliding, Self::at(full, config, "rope_theta")?))
    }

    /// A place without a base has that of the whole configuration.
    fn at(keys: Fields<'a>, config: &Fields<'_>, whole: &str) -> Result<Self, ModelError> {
        const USUAL: f32 = 10_000.0;
        let theta = keys.optional_f32("rope_theta")?.or(config.optional_f32(whole)?);
        Ok(Self { keys, theta: theta.unwrap_or(USUAL) })
    }
}

/// The rope of a model whose layers all turn alike.
pub fn rope(config: &Fields<'_>, head_dim: usize) -> Result<Rope, ModelError> {
    scaled(config, &Place::of(config)?, head_dim)
}

/// The rope by layer type, `(sliding, full)`: Gemma 3's two bases.
pub fn by_layer_type(config: &Fields<'_>, head_dim: usize) -> Result<(Rope, Rope), ModelError> {
    let (sliding, full) = Place::by_layer_type(config)?;
    Ok((scaled(config, &sliding, head_dim)?, scaled(config, &full, head_dim)?))
}

/// `rope` names the kind of scaling and its numbers; a partial rotary dimension may stand there or
/// in the configuration itself.
fn scaled(config: &Fields<'_>, place: &Place<'_>, head_dim: usize) -> Result<Rope, ModelError> {
    let (rope, theta) = (&place.keys, place.theta);
    let partial = rope.optional_f32("partial_rotary_factor")?;
    let partial = partial.or(config.optional_f32("partial_rotary_factor")?).unwrap_or(1.0);
    let dim = (head_dim as f32 * partial) as usize;
    if dim == 0 || dim > head_dim || dim % 2 == 1 {
        let expected = "such that an even number of a head's values turns";
        let found = format!("{partial} of {head_dim}");
        return Err(rope.bad("partial_rotary_factor", expected, found));
    }
    let frequencies = frequencies(theta, dim);
    let kind = rope.optional_str("rope_type")?.or(rope.optional_str("type")?);
    // Files of Phi-3 called longrope by other names at first.
    let kind = match config.optional_str("model_type")? {
        Some("phi3") => kind.map(|kind| if kind == "yarn" { "longrope" } else { kind }),
        _ => kind,
    };
    match kind.unwrap_or("default") {
        "default" => Ok(Rope::plain(frequencies)),
        "dynamic" => dynamic(config, rope, theta, frequencies),
        "linear" => {
            let factor = rope.f32("factor")?;
            Ok(Rope::plain(frequencies.iter().map(|frequency| frequency / factor).collect()))
        }
        "llama3" => Ok(Rope::plain(llama3(config, rope, &frequencies)?)),
        "yarn" => yarn(config, rope, theta, &frequencies),
        "longrope" | "su" => longrope(config, rope, &frequencies),
        _ => Err(rope.unsupported("rope_type", json!(kind))),
    }
}

/// Positions before the scaling, and how many times as many there are with it.
fn stretch(config: &Fields<'_>, rope: &Fields<'_>) -> Result<(f32, f32), ModelError> {
    const ORIGINAL: &str = "original_max_position_embeddings";
    let context = config.f32("max_position_embeddings")?;
    let original = config.optional_f32(ORIGINAL)?.or(rope.optional_f32(ORIGINAL)?);
    let original = original.unwrap_or(context);
    match original > 1.0 {
        true => Ok((original, context / original)),
        false => Err(rope.unsupported(ORIGINAL, original)),
    }
}

/// Peng et al. 2023, "YaRN", section 3.2 and 3.4: long wavelengths are stretched by `factor`, short
/// ones stay, between the two it goes linearly in the index; attention grows with the stretch.
fn yarn(
    config: &Fields<'_>,
    rope: &Fields<'_>,
    theta: f32,
    frequencies: &[f32],
) -> Result<Rope, ModelError> {
    let (original, ratio) = stretch(config, rope)?;
    let factor = rope.optional_f32("factor")?.unwrap_or(ratio);
    let growth = |times: f32| if factor <= 1.0 { 1.0 } else { 0.1 * times * factor.ln() + 1.0 };
    let number = |key: &str| -> Result<Option<f32>, ModelError> {
        Ok(rope.optional_f32(key)?.filter(|&number| number != 0.0))
    };
    let scale = match (
        rope.optional_f32("attention_factor")?,
        number("mscale")?,
        number("mscale_all_dim")?,
    ) {
        (Some(scale), ..) => scale,
        (None, Some(one), Some(all)) => growth(one) / growth(all),
        _ => growth(1.0),
    };
    let dim = 2.0 * frequencies.len() as f64;
    let index_of = |turns: f32| {
        let wavelengths = f64::from(original) / (f64::from(turns) * 2.0 * f64::from(PI));
        dim * wavelengths.ln() / (2.0 * f64::from(theta).ln())
    };
    let fast = index_of(number("beta_fast")?.unwrap_or(32.0));
    let slow = index_of(number("beta_slow")?.unwrap_or(1.0));
    let whole = rope.bool("truncate", true)?;
    let low = if whole { fast.floor() } else { fast }.max(0.0);
    let high = if whole { slow.ceil() } else { slow }.min(dim - 1.0);
    let high = if low == high { high + 0.001 } else { high };
    let stretched = |(i, frequency): (usize, &f32)| {
        let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0) as f32;
        frequency / factor * ramp + frequency * (1.0 - ramp)
    };
    let frequencies = frequencies.iter().enumerate().map(stretched).collect();
    Ok(Rope { frequencies, scale, beyond: None })
}

/// "Dynamic NTK": behind the context the model was made for the base grows with the sequence.
fn dynamic(
    config: &Fields<'_>,
    rope: &Fields<'_>,
    theta: f32,
    frequencies: Vec<f32>,
) -> Result<Rope, ModelError> {
    let (factor, context) = (rope.f32("factor")?, config.usize("max_position_embeddings")?);
    if !(factor.is_finite() && factor >= 1.0) {
        return Err(rope.bad("factor", "a number of at least 1", factor));
    }
    let stretch = Stretch::Growing { theta, factor };
    Ok(Rope { frequencies, scale: 1.0, beyond: Some(Beyond { context, stretch }) })
}

/// Ding et al. 2024, "LongRoPE": a factor for each frequency, one list up to the original context
/// and another behind it.
fn longrope(
    config: &Fields<'_>,
    rope: &Fields<'_>,
    frequencies: &[f32],
) -> Result<Rope, ModelError> {
    let (original, ratio) = stretch(config, rope)?;
    let factor = rope.optional_f32("factor")?.unwrap_or(ratio);
    let growth = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
    let scale = rope.optional_f32("attention_factor")?.unwrap_or(growth);
    let [short, long] = ["short_factor", "long_factor"].map(|key| divided(rope, key, frequencies));
    let (short, long) = (short?, long?);
    // A file may say in this way what holds for every length.
    let beyond = (short != long)
        .then_some(Beyond { context: original as usize, stretch: Stretch::Other(long) });
    Ok(Rope { frequencies: short, scale, beyond })
}

/// Each frequency divided by its factor.
fn divided(rope: &Fields<'_>, key: &str, frequencies: &[f32]) -> Result<Vec<f32>, ModelError> {
    let factors = rope.array(key)?.ok_or_else(|| rope.missing(key))?;
    let usable = |factor: &f32| factor.is_finite() && *factor > 0.0;
    let factors: Option<Vec<f32>> = factors
        .iter()
        .map(|factor| factor.as_f64().map(|factor| factor as f32).filter(usable))
        .collect();
    match factors.filter(|factors| factors.len() == frequencies.len()) {
        Some(factors) => {
            Ok(frequencies.iter().zip(factors).map(|(f, factor)| f / factor).collect())
        }
        None => {
            let expected = format!("other than {} positive numbers", frequencies.len());
            Err(rope.unsupported(key, expected))
        }
    }
}

/// How many tokens a model reads whose configuration speaks of `context`: dynamic scaling goes on
/// behind it.
pub fn stretched_context(rope: &Rope, context: usize) -> usize {
    match &rope.beyond {
        Some(Beyond { stretch: Stretch::Growing { factor, .. }, .. }) => {
            (context as f64 * f64::from(*factor)).min(f64::from(i32::MAX)) as usize
        }
        _ => context,
    }
}

/// Llama 3.1: long wavelengths are stretched by `factor`, short ones stay, and between the two it
/// goes linearly in `original / wavelength`.
fn llama3(
    config: &Fields<'_>,
    rope: &Fields<'_>,
    frequencies: &[f32],
) -> Result<Vec<f32>, ModelError> {
    let factor = rope.f32("factor")?;
    let (low, high) = (rope.f32("low_freq_factor")?, rope.f32("high_freq_factor")?);
    let (original, _) = stretch(config, rope)?;
    let smoothed = |frequency: &f32| {
        let smooth = (original * frequency / (2.0 * PI) - low) / (high - low);
        let smooth = smooth.clamp(0.0, 1.0);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    };
    Ok(frequencies.iter().map(smoothed).collect())
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
        let config = json!({"rope_theta": 1e4, "rope_scaling": {"type": "spiral", "factor": 4.0}});
        let error = rope(&Fields::new(&config).unwrap(), 8).unwrap_err().to_string();
        assert!(error.contains("rope_scaling.rope_type") && error.contains("spiral"), "{error}");
    }

    /// Against numbers of the formula as `transformers` writes it, in double precision.
    #[test]
    fn yarn_stretches_long_wavelengths_and_scales_attention() {
        let config = json!({
            "max_position_embeddings": 8192,
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                "original_max_position_embeddings": 2048,
            },
        });
        let rope = rope(&Fields::new(&config).unwrap(), 16).unwrap();
        let expected = [
            1.0,
            0.316_227_77,
            0.1,
            0.025_693_506,
            0.006_25,
            0.001_383_496_5,
            2.5e-4,
            7.905_694e-5,
        ];
        for (found, expected) in rope.frequencies.iter().zip(expected) {
            assert!((found / expected - 1.0).abs() < 1e-6, "{found} {expected}");
        }
        assert!((rope.scale - 1.138_629_4).abs() < 1e-6 && rope.beyond.is_none());
    }

    #[test]
    fn longrope_has_other_factors_behind_its_context() {
        let config = json!({
            "max_position_embeddings": 131_072, "original_max_position_embeddings": 4096,
            "rope_theta": 1e4,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [8.0, 16.0]},
        });
        let rope = rope(&Fields::new(&config).unwrap(), 4).unwrap();
        assert_eq!(
            (&*rope.at(4096), &*rope.at(4097)),
            (&[1.0, 0.005][..], &[0.125, 0.000_625][..])
        );
        // sqrt(1 + ln 32 / ln 4096)
        assert!((rope.scale - 1.190_238).abs() < 1e-5, "{}", rope.scale);
    }

    #[test]
    fn dynamic_scaling_begins_behind_the_context() {
        let config = json!({
            "max_position_embeddings": 100, "rope_theta": 1e4,
            "rope_scaling": {"type": "dynamic", "factor": 4.0},
        });
        let rope = rope(&Fields::new(&config).unwrap(), 4).unwrap();
        assert_eq!((&*rope.at(100), stretched_context(&rope, 100)), (&[1.0, 0.01][..], 400));
        // 1e4 · (4 · 300 / 100 − 3)^(4 / 2), to the power of −1/2
        assert!((rope.at(300)[1] - 0.01 / 9.0).abs() < 1e-8, "{:?}", rope.at(300));
    }
}
