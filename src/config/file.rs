//! The configuration file: the same names as the options, in TOML.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::ConfigError;

/// What `--config` may hold; every key is optional and unknown ones are refused.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct ConfigFile {
    pub model: Vec<String>,
    pub adapter: Vec<String>,
    pub database: Option<String>,
    pub storage: Option<String>,
    pub listen: Option<String>,
    pub data: Option<PathBuf>,
    pub device: Option<String>,
    pub cuda_libraries: Option<PathBuf>,
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
    pub training_latency_budget_ms: Option<u64>,
    pub training_memory_mib: Option<usize>,
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
        toml::from_str(&text).map_err(|error| wrong(error.to_string().trim().replace('\n', " ")))
    }
}
