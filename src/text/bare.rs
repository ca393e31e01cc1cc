//! A model folder without a tokenizer: it answers token ids, which stand in texts by their number.

use std::path::Path;

use serde_json::{Map, Value, json};

/// What a tokenizer is kept in. A folder with one of these was meant to have one.
const FILES: [&str; 7] = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
];
/// More tokens than any model has; a larger number in a file is a mistake.
const MOST: u64 = 1 << 22;

/// How token `id` is written.
pub(super) fn token(id: u64) -> String {
    format!("token_id:{id}")
}

/// A `tokenizer.json` of the ids of the model in `folder`, whose `config.json` is `config`; `None`
/// if the folder holds a tokenizer of any kind or does not say how many tokens there are.
pub(super) fn tokenizer_json(folder: &Path, config: &Value) -> Option<Vec<u8>> {
    let size = config["vocab_size"].as_u64().or(config["text_config"]["vocab_size"].as_u64())?;
    if FILES.iter().any(|file| folder.join(file).exists()) {
        return None;
    }
    of_size(size)
}

/// A `tokenizer.json` of so many ids; `None` if there are too many.
pub(super) fn of_size(size: u64) -> Option<Vec<u8>> {
    if size > MOST {
        return None;
    }
    let ids: Map<String, Value> = (0..size).map(|id| (token(id), id.into())).collect();
    let json = json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": ids, "unk_token": "<unk>"},
    });
    Some(json.to_string().into_bytes())
}
