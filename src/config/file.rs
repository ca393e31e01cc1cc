//! The configuration file: the same names as the options, in TOML.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};

use super::ConfigError;

/// What `--config` may hold; every key is optional and unknown ones are refused.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct ConfigFile {
    #[serde(deserialize_with = "one_or_more")]
    pub model: Vec<String>,
    #[serde(deserialize_with = "one_or_more")]
    pub adapter: Vec<String>,
    pub database: Option<String>,
    pub storage: Option<String>,
    pub listen: Option<String>,
    pub data: Option<PathBuf>,
    pub device: Option<String>,
    pub cuda_libraries: Option<PathBuf>,
    #[serde(deserialize_with = "one_or_more")]
    pub api_key: Vec<String>,
    pub organization: Option<String>,
    pub adapter_root: Option<PathBuf>,
    pub threads: Option<usize>,
    pub kv_cache_mib: Option<usize>,
    pub kv_cache_dtype: Option<String>,
    pub adapter_cache_mib: Option<usize>,
    pub max_batch_tokens: Option<usize>,
    pub max_sequences: Option<usize>,
    pub max_waiting: Option<usize>,
    pub max_waiting_tokens: Option<usize>,
    pub speculative: Option<String>,
    #[serde(alias = "training-latency-budget")]
    pub training_latency_budget_ms: Option<u64>,
    pub training_memory_mib: Option<usize>,
    #[serde(alias = "shutdown-timeout")]
    pub shutdown_timeout_secs: Option<u64>,
    pub log_json: Option<bool>,
}

impl ConfigFile {
    /// Reads the file.
    ///
    /// # Errors
    /// [`ConfigError::File`] if it cannot be read, is not TOML or holds an unknown key.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let wrong = |reason: String| ConfigError::File { path: path.to_owned(), reason };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        toml::from_str(&text).map_err(|error| wrong(sentence(&text, &error)))
    }
}

const PLAIN_TYPES: [(&str, &str); 3] = [
    ("expected usize", "expected a whole number that is not negative"),
    ("expected u64", "expected a whole number that is not negative"),
    ("expected path string", "expected a path in quotes"),
];

/// The line and what is wrong there; the picture that TOML's own text draws needs several lines.
fn sentence(text: &str, error: &toml::de::Error) -> String {
    let mut reason = error.message().trim().replace('\n', ", ");
    // What a type of Rust is called says nothing to whoever writes the file.
    for (rust, plain) in PLAIN_TYPES {
        reason = reason.replace(rust, plain);
    }
    match error.span() {
        Some(span) => {
            let before = text.as_bytes().iter().take(span.start);
            format!("line {}: {reason}", 1 + before.filter(|&&byte| byte == b'\n').count())
        }
        None => reason,
    }
}

/// `model = "a"` means `model = ["a"]`.
fn one_or_more<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "it must be a string or a list of strings")]
    enum Texts {
        One(String),
        More(Vec<String>),
    }
    Ok(match Texts::deserialize(deserializer)? {
        Texts::One(text) => vec![text],
        Texts::More(texts) => texts,
    })
}
