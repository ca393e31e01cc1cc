//! Which tokens begin, end and pad a text, gathered from the files of a model folder.

use serde_json::{Map, Value};

/// The named tokens of a model, as its `tokenizer_config.json`, `generation_config.json` and
/// `config.json` give them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// As written in `tokenizer_config.json`.
    pub bos: Option<String>,
    pub eos: Option<String>,
    pub pad: Option<String>,
    /// Ids from `config.json`, used where no name is given.
    pub bos_id: Option<u32>,
    pub pad_id: Option<u32>,
    /// Every id that ends a generation, from `generation_config.json` and `config.json`.
    pub eos_ids: Vec<u32>,
    /// What templates know by name besides beginning and end: `pad_token`, `unk_token`, the
    /// `image_token` of a model that sees, …
    pub named: Map<String, Value>,
}

impl SpecialTokens {
    /// Reads what is there; a missing file is `Value::Null`.
    pub fn read(tokenizer_config: &Value, generation_config: &Value, config: &Value) -> Self {
        // A model that sees keeps what concerns text in an object of its own.
        let text = &config["text_config"];
        let config = |key: &str| if config[key].is_null() { &text[key] } else { &config[key] };
        let mut eos_ids = ids(&generation_config["eos_token_id"]);
        for id in ids(config("eos_token_id")) {
            if !eos_ids.contains(&id) {
                eos_ids.push(id);
            }
        }
        let first =
            |key: &str| ids(&generation_config[key]).first().or(ids(config(key)).first()).copied();
        Self {
            bos: token_text(&tokenizer_config["bos_token"]),
            eos: token_text(&tokenizer_config["eos_token"]),
            pad: token_text(&tokenizer_config["pad_token"]),
            bos_id: first("bos_token_id"),
            pad_id: first("pad_token_id"),
            eos_ids,
            named: named(tokenizer_config),
        }
    }
}

/// Tokens stand under keys that end in `_token`, a model's own also in an object of theirs, and a
/// list holds those without a role.
fn named(tokenizer_config: &Value) -> Map<String, Value> {
    const LIST: &str = "additional_special_tokens";
    let own = &tokenizer_config["extra_special_tokens"];
    let keys = [tokenizer_config, own].into_iter().filter_map(Value::as_object).flatten();
    let roles = keys.filter(|(key, _)| key.ends_with("_token"));
    let mut named: Map<String, Value> =
        roles.filter_map(|(key, token)| Some((key.clone(), token_text(token)?.into()))).collect();
    if let Some(tokens) = tokenizer_config[LIST].as_array() {
        named.insert(LIST.to_owned(), tokens.iter().filter_map(token_text).collect());
    }
    named
}

/// A token is written as a string, or as an object with `content`.
fn token_text(token: &Value) -> Option<String> {
    token.as_str().or_else(|| token["content"].as_str()).map(str::to_owned)
}

/// An id is written as a number, or as a list of them.
fn ids(value: &Value) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value.as_array() {
        Some(list) => list.iter().filter_map(one).collect(),
        None => one(value).into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_end_token_of_every_file_is_kept() {
        let special = SpecialTokens::read(
            &json!({"eos_token": {"content": "</s>"}, "bos_token": "<s>", "pad_token": null}),
            &json!({"eos_token_id": [7, 9]}),
            &json!({"eos_token_id": 2, "bos_token_id": 1}),
        );
        assert_eq!(special.eos_ids, [7, 9, 2]);
        assert_eq!((special.eos.as_deref(), special.bos.as_deref()), (Some("</s>"), Some("<s>")));
        assert_eq!((special.pad, special.bos_id), (None, Some(1)));
    }

    #[test]
    fn tokens_are_known_by_their_names() {
        let config = json!({
            "unk_token": {"content": "<unk>"}, "pad_token": "<pad>", "sep_token": null,
            "add_bos_token": true, "extra_special_tokens": {"image_token": "<image>"},
            "additional_special_tokens": ["<a>", {"content": "<b>"}], "model_max_length": 7,
        });
        let special = SpecialTokens::read(&config, &Value::Null, &Value::Null);
        let expected = json!({
            "unk_token": "<unk>", "pad_token": "<pad>", "image_token": "<image>",
            "additional_special_tokens": ["<a>", "<b>"],
        });
        assert_eq!(Value::Object(special.named), expected);
    }
}
