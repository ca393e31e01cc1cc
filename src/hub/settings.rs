//! The hub's own environment variables, as all of its clients read them.

use std::path::PathBuf;
use std::time::Duration;

/// Where the cache lies, and how the hub is asked.
#[derive(Clone)]
pub struct HubSettings {
    pub cache: PathBuf,
    /// `HF_ENDPOINT`, without a slash at its end.
    pub endpoint: String,
    /// `HF_TOKEN`, or what `huggingface-cli login` has stored.
    pub token: Option<String>,
    /// `HF_HUB_OFFLINE`: the cache only.
    pub offline: bool,
    /// Before a broken download is taken up again; doubles with each failure.
    pub pause: Duration,
}

impl HubSettings {
    /// Reads the environment.
    pub fn from_environment() -> Self {
        let home = home();
        let cache = variable("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from);
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let stored = variable("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let token = variable("HF_TOKEN").or_else(|| std::fs::read_to_string(stored).ok());
        let offline = variable("HF_HUB_OFFLINE").unwrap_or_default().to_ascii_lowercase();
        Self {
            cache,
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            offline: ["1", "true", "yes", "on"].contains(&offline.as_str()),
            pause: Duration::from_secs(1),
        }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn home() -> PathBuf {
    let cache = || {
        let cache = variable("XDG_CACHE_HOME").map(PathBuf::from);
        cache.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".cache")))
    };
    match variable("HF_HOME") {
        Some(home) => home.into(),
        None => cache().unwrap_or_default().join("huggingface"),
    }
}
