//! Which files of a repository a model needs, and which of them a folder lacks.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

use super::name::plain;

pub const WEIGHTS: &str = "model.safetensors";
pub const INDEX: &str = "model.safetensors.index.json";
/// Without these there is no model.
pub const NEEDED: [&str; 2] = ["config.json", "tokenizer.json"];
/// Taken where there are any.
pub const WELCOME: [&str; 5] = [
    "generation_config.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
];

/// The first needed file that is not in a snapshot; `gguf` is the one file that was named.
pub fn lacking(folder: &Path, gguf: Option<&str>) -> Option<String> {
    let absent = |file: &str| !folder.join(file).is_file();
    if let Some(file) = gguf {
        return absent(file).then(|| file.to_owned());
    }
    if let Some(file) = NEEDED.into_iter().find(|file| absent(file)) {
        return Some(file.to_owned());
    }
    if !absent(WEIGHTS) {
        return None;
    }
    let index = std::fs::read(folder.join(INDEX)).ok();
    match index.and_then(|index| shards(&index).ok()) {
        Some(shards) => shards.into_iter().find(|file| absent(file)),
        None => Some(WEIGHTS.to_owned()),
    }
}

/// The files that an index names.
///
/// # Errors
/// What is wrong with it; a name that leads out of its folder is.
pub fn shards(index: &[u8]) -> Result<BTreeSet<String>, String> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::HashMap<String, String>,
    }
    let index: Index = serde_json::from_slice(index).map_err(|error| error.to_string())?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    match shards.iter().find(|file| !plain(file) || !file.ends_with(".safetensors")) {
        Some(file) => Err(format!(
            "the shard `{}` is no plain name of a safetensors file",
            file.escape_default()
        )),
        None => Ok(shards),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_whole_when_every_shard_is_there() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let add = |file: &str, text: &str| {
            std::fs::write(folder.path().join(file), text).expect("a file");
        };
        let lacking = || lacking(folder.path(), None);
        assert_eq!(lacking().as_deref(), Some("config.json"));
        NEEDED.iter().for_each(|file| add(file, "{}"));
        assert_eq!(lacking().as_deref(), Some(WEIGHTS));
        add(INDEX, r#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#);
        add("1.safetensors", "");
        assert_eq!(lacking().as_deref(), Some("2.safetensors"));
        add("2.safetensors", "");
        assert_eq!(lacking(), None);
    }

    #[test]
    fn a_shard_outside_of_the_folder_is_refused() {
        for file in ["../../etc/x.safetensors", "/etc/x.safetensors", "x.bin", ".safetensors"] {
            let index = format!(r#"{{"weight_map": {{"a": "{file}"}}}}"#);
            assert!(shards(index.as_bytes()).is_err(), "{file}");
        }
    }
}
