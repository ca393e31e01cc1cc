//! `adapter_config.json`: what is understood, what is refused, what is merely kept.
//!
//! PEFT `tuners/lora/config.py`, class `LoraConfig`, and its saved form.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::{PeftError, Result};
use super::targets::{ModuleFilter, Targets};

/// The part of a LoRA configuration that the mathematics needs.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    pub r: usize,
    pub lora_alpha: f64,
    pub lora_dropout: f32,
    pub use_rslora: bool,
    pub use_dora: bool,
    /// Modules replaced whole, by name or the end of it.
    pub modules_to_save: Vec<String>,
    /// `None` where the file names no targets and the family's default applies.
    pub targets: Option<Targets>,
    pub exclude_modules: Option<Targets>,
    pub layers_to_transform: Option<Vec<usize>>,
    pub layers_pattern: Vec<String>,
    /// Patterns on module names and the rank there, first match first.
    pub rank_pattern: Vec<(String, usize)>,
    /// The same for `lora_alpha`.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Facts about the file that a person may want to know.
    pub notes: Vec<String>,
}

/// The keys of the file that are read, as they stand there.
#[derive(Deserialize)]
struct Raw {
    peft_type: Option<String>,
    task_type: Option<String>,
    r: Option<f64>,
    lora_alpha: Option<f64>,
    lora_dropout: Option<f64>,
    use_rslora: Option<bool>,
    use_dora: Option<bool>,
    modules_to_save: Option<Vec<String>>,
    target_modules: Option<Targets>,
    exclude_modules: Option<Targets>,
    layers_to_transform: Option<OneOrMany<usize>>,
    layers_pattern: Option<OneOrMany<String>>,
    rank_pattern: Option<Map<String, Value>>,
    alpha_pattern: Option<Map<String, Value>>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(item) => vec![item],
            Self::Many(items) => items,
        }
    }
}

/// Keys that change what is computed: any value but "off" is refused.
const UNSUPPORTED: [&str; 12] = [
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
];

/// Keys that say where the adapter came from, or how training began: no effect on what it computes.
const HARMLESS: [&str; 17] = [
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "bias",
    "ensure_weight_tying",
    "parent_library",
];

/// Each pattern is compiled and tried on every module.
const MOST_PATTERNS: usize = 1000;

/// Starting values that leave the base weights as they are.
const PLAIN_STARTS: [&str; 4] = ["gaussian", "eva", "orthogonal", "true"];

impl AdapterConfig {
    /// Parses and checks `adapter_config.json`.
    ///
    /// # Errors
    /// [`PeftError::Json`], [`PeftError::Config`] for a value out of range,
    /// [`PeftError::Unsupported`] naming what is not built here.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let raw: Raw = serde_json::from_slice(bytes)
            .map_err(|source| PeftError::Json { file: super::CONFIG_FILE, source })?;
        check_kind(&raw)?;
        refuse_unsupported(&raw.rest)?;
        let notes = notes(&raw.rest);
        Ok(Self {
            r: whole_number("r", raw.r.unwrap_or(8.0))?,
            lora_alpha: positive("lora_alpha", raw.lora_alpha.unwrap_or(8.0))?,
            lora_dropout: probability(raw.lora_dropout.unwrap_or(0.0))?,
            use_rslora: raw.use_rslora.unwrap_or(false),
            use_dora: raw.use_dora.unwrap_or(false),
            modules_to_save: raw.modules_to_save.unwrap_or_default(),
            targets: raw.target_modules,
            exclude_modules: raw.exclude_modules,
            layers_to_transform: raw
                .layers_to_transform
                .map(OneOrMany::into_vec)
                .filter(|layers| !layers.is_empty()),
            layers_pattern: raw.layers_pattern.map(OneOrMany::into_vec).unwrap_or_default(),
            rank_pattern: pattern("rank_pattern", raw.rank_pattern, whole_number)?,
            alpha_pattern: pattern("alpha_pattern", raw.alpha_pattern, positive)?,
            notes,
        })
    }

    /// The choice of modules; `default_targets` stands in where the file names none.
    pub fn filter(&self, default_targets: &[String]) -> ModuleFilter {
        let targets = self.targets.clone();
        ModuleFilter {
            targets: targets.unwrap_or_else(|| Targets::Names(default_targets.to_vec())),
            exclude: self.exclude_modules.clone(),
            layers: self.layers_to_transform.clone(),
            layers_pattern: self.layers_pattern.clone(),
            saved: self.modules_to_save.clone(),
        }
    }

    /// `alpha / r`, or `alpha / sqrt(r)`: Kalajdzievski 2023, "A Rank Stabilization Scaling Factor".
    pub fn scaling(&self, alpha: f64, r: usize) -> f32 {
        scaling(alpha, r, self.use_rslora)
    }
}

/// The factor of `B A x`.
pub(super) fn scaling(alpha: f64, r: usize, use_rslora: bool) -> f32 {
    let divisor = if use_rslora { (r as f64).sqrt() } else { r as f64 };
    (alpha / divisor) as f32
}

fn check_kind(raw: &Raw) -> Result<()> {
    match raw.peft_type.as_deref() {
        Some("LORA") => {}
        Some(other) => return Err(unsupported(format!("peft_type {other}"))),
        None => return Err(config("peft_type", "is missing; it must be \"LORA\"")),
    }
    match raw.task_type.as_deref() {
        None | Some("CAUSAL_LM") => Ok(()),
        Some(other) => Err(unsupported(format!("task_type {other}"))),
    }
}

fn refuse_unsupported(rest: &Map<String, Value>) -> Result<()> {
    if let Some(key) = UNSUPPORTED.iter().find(|&&key| rest.get(key).is_some_and(is_on)) {
        return Err(unsupported((*key).to_owned()));
    }
    match rest.get("bias") {
        None | Some(Value::Null) => {}
        Some(Value::String(bias)) if bias == "none" => {}
        Some(other) => return Err(unsupported(format!("bias {other}"))),
    }
    match rest.get("init_lora_weights") {
        Some(Value::String(start)) if !PLAIN_STARTS.contains(&start.to_lowercase().as_str()) => {
            // PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA also change the base weights.
            Err(unsupported(format!("init_lora_weights {start}")))
        }
        _ => Ok(()),
    }
}

/// Anything but null, false, an empty list, object or text.
fn is_on(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(on) => *on,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(entries) => !entries.is_empty(),
    }
}

fn notes(rest: &Map<String, Value>) -> Vec<String> {
    let known =
        |key: &String| HARMLESS.contains(&key.as_str()) || UNSUPPORTED.contains(&key.as_str());
    rest.iter()
        .filter(|(key, value)| !known(key) && is_on(value))
        .map(|(key, _)| {
            format!("the unknown key `{key}` in adapter_config.json is kept, not applied")
        })
        .collect()
}

fn pattern<T>(
    key: &'static str,
    entries: Option<Map<String, Value>>,
    check: fn(&'static str, f64) -> Result<T>,
) -> Result<Vec<(String, T)>> {
    let entries = entries.unwrap_or_default();
    if entries.len() > MOST_PATTERNS {
        return Err(config(key, &format!("has more than {MOST_PATTERNS} entries")));
    }
    entries
        .into_iter()
        .map(|(name, value)| {
            let number = value.as_f64().ok_or_else(|| config(key, "must map names to numbers"))?;
            Ok((name, check(key, number)?))
        })
        .collect()
}

fn whole_number(key: &'static str, value: f64) -> Result<usize> {
    if value.fract() == 0.0 && (1.0..=65_536.0).contains(&value) {
        return Ok(value as usize);
    }
    Err(config(key, &format!("is {value}; a rank is a whole number from 1 to 65536")))
}

fn positive(key: &'static str, value: f64) -> Result<f64> {
    if value > 0.0 && value <= f64::from(f32::MAX) {
        return Ok(value);
    }
    Err(config(key, &format!("is {value}; it must be above 0, and a number that 32 bits hold")))
}

fn probability(value: f64) -> Result<f32> {
    if (0.0..1.0).contains(&value) {
        return Ok(value as f32);
    }
    Err(config("lora_dropout", &format!("is {value}; it must be at least 0 and below 1")))
}

fn config(key: &'static str, reason: &str) -> PeftError {
    PeftError::Config { key, reason: reason.to_owned() }
}

fn unsupported(feature: String) -> PeftError {
    PeftError::Unsupported { feature }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<AdapterConfig> {
        AdapterConfig::parse(json.as_bytes())
    }

    #[test]
    fn peft_defaults_fill_what_is_absent() {
        let config = parse(r#"{"peft_type": "LORA"}"#).expect("the least configuration");
        assert_eq!((config.r, config.lora_alpha, config.use_rslora), (8, 8.0, false));
        assert_eq!(
            config.filter(&["q_proj".to_owned()]).targets,
            Targets::Names(vec!["q_proj".into()])
        );
    }

    #[test]
    fn what_changes_the_mathematics_is_refused_by_name() {
        for (key, value) in [
            ("lora_bias", "true"),
            ("layer_replication", "[[0, 1]]"),
            ("target_parameters", r#"["x"]"#),
            ("alora_invocation_tokens", "[1]"),
            ("trainable_token_indices", "[0]"),
            ("bias", r#""all""#),
            ("init_lora_weights", r#""pissa""#),
        ] {
            let json = format!(r#"{{"peft_type": "LORA", "{key}": {value}}}"#);
            let error = parse(&json).expect_err(key).to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn an_unknown_key_is_noted_and_harmless() {
        let config = parse(r#"{"peft_type": "LORA", "colour": "red", "revision": "main"}"#);
        let notes = config.expect("harmless keys").notes;
        assert_eq!(notes.len(), 1);
        assert!(notes[0].contains("colour"));
    }

    #[test]
    fn numbers_out_of_range_name_their_key() {
        for (key, value) in [("r", "0"), ("r", "2.5"), ("lora_alpha", "-1"), ("lora_dropout", "1")]
        {
            let json = format!(r#"{{"peft_type": "LORA", "{key}": {value}}}"#);
            assert!(parse(&json).expect_err(key).to_string().contains(key));
        }
    }

    #[test]
    fn rank_stabilised_scaling_divides_by_the_root() {
        assert_eq!(scaling(4.0, 4, true), 2.0);
        assert_eq!(scaling(4.0, 4, false), 1.0);
    }
}
