//! From a `tokenizer.json` to the metadata of a file.

use serde_json::Value as Json;

use super::{kind, pre, sentencepiece};
use crate::gguf::Value;
use crate::text::{TextModel, TextSource, TokenizerError};

/// The metadata of a model that has no tokenizer, which llama.cpp knows too.
pub fn without_tokenizer() -> Vec<(String, Value)> {
    vec![("tokenizer.ggml.model".to_owned(), Value::Text("none".to_owned()))]
}

/// The metadata that describe the text side of a model with `vocab_size` rows of embedding.
///
/// The original `tokenizer.json` goes along, so that nothing is lost for readers that know it; the
/// lists of ggml are written for the two kinds of tokenizer that it knows.
///
/// # Errors
/// [`TokenizerError`] if the tokenizer is not valid JSON.
pub fn metadata(
    text: &TextModel,
    source: &TextSource,
    vocab_size: usize,
) -> Result<Vec<(String, Value)>, TokenizerError> {
    let file = "tokenizer.json";
    let wrong = |reason: String| TokenizerError::Json { file, reason };
    let json: Json =
        serde_json::from_slice(&source.tokenizer).map_err(|error| wrong(error.to_string()))?;
    let original = String::from_utf8_lossy(&source.tokenizer).into_owned();
    let mut out = vec![("tokenizer.huggingface.json".to_owned(), Value::Text(original))];
    let mut put = |key: &str, value: Value| out.push((format!("tokenizer.ggml.{key}"), value));
    let model = &json["model"];
    let byte_level = json["decoder"]["type"] == "ByteLevel";
    if model["type"] == "BPE" && (byte_level || model["byte_fallback"] == true) {
        let (tokens, kinds) = tokens(text, &json, vocab_size);
        let merges = merges(model);
        if byte_level {
            put("model", Value::Text("gpt2".into()));
            put("pre", Value::Text(pre::name_of(&json).unwrap_or("default").into()));
            let joined = merges.iter().map(|(left, right)| format!("{left} {right}"));
            put("merges", Value::Texts(joined.collect()));
        } else {
            put("model", Value::Text("llama".into()));
            put("pre", Value::Text("default".into()));
            put("scores", Value::Floats(sentencepiece::scores(&tokens, &merges)));
            put("add_space_prefix", Value::Bool(json.to_string().contains(r#""Prepend""#)));
        }
        put("tokens", Value::Texts(tokens));
        put("token_type", Value::Ints(kinds));
        let begins = text.tokenizer().encode("", true).unwrap_or_default();
        put("add_bos_token", Value::Bool(begins.first() == text.tokenizer().bos_id().as_ref()));
    }
    let tokenizer = text.tokenizer();
    if let Some(id) = model["unk_token"].as_str().and_then(|token| tokenizer.token_id(token)) {
        put("unknown_token_id", Value::Int(id.into()));
    }
    let ids =
        [("bos", tokenizer.bos_id()), ("eos", tokenizer.eos_id()), ("padding", tokenizer.pad_id())];
    for (role, id) in ids {
        if let Some(id) = id {
            put(&format!("{role}_token_id"), Value::Int(id.into()));
        }
    }
    // A second end token is the end of a turn.
    if let Some(&id) = tokenizer.eos_ids().iter().find(|&&id| Some(id) != tokenizer.eos_id()) {
        put("eot_token_id", Value::Int(id.into()));
    }
    if let Some((_, template)) = &source.template {
        out.push(("tokenizer.chat_template".to_owned(), Value::Text(template.clone())));
    }
    Ok(out)
}

/// Every token by its id, and what kind it is; ids that no token has are filled up.
fn tokens(text: &TextModel, json: &Json, vocab_size: usize) -> (Vec<String>, Vec<i64>) {
    let count = vocab_size.max(text.tokenizer().vocab_size());
    let mut tokens: Vec<String> = (0..count).map(|id| format!("[PAD{id}]")).collect();
    let mut kinds = vec![kind::UNUSED; count];
    let vocab = json["model"]["vocab"].as_object().into_iter().flatten();
    let vocab = vocab.filter_map(|(token, id)| Some((token.as_str(), id.as_u64()?, false)));
    let added = json["added_tokens"].as_array().into_iter().flatten();
    let added =
        added.filter_map(|token| Some((token["content"].as_str()?, token["id"].as_u64()?, true)));
    for (token, id, is_added) in vocab.chain(added) {
        let Some(slot) = tokens.get_mut(id as usize) else { continue };
        token.clone_into(slot);
        kinds[id as usize] = match is_added {
            true if text.tokenizer().is_special(id as u32) => kind::CONTROL,
            true => kind::USER_DEFINED,
            false if is_byte(token) => kind::BYTE,
            false => kind::NORMAL,
        };
    }
    if let Some(unknown) = json["model"]["unk_token"].as_str()
        && let Some(id) = text.tokenizer().token_id(unknown)
        && let Some(slot) = kinds.get_mut(id as usize)
    {
        *slot = kind::UNKNOWN;
    }
    (tokens, kinds)
}

/// `<0xE2>`.
fn is_byte(token: &str) -> bool {
    let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    hex.is_some_and(|hex| hex.len() == 2 && u8::from_str_radix(hex, 16).is_ok())
}

/// Merges are written as pairs or, in older files, as one string.
fn merges(model: &Json) -> Vec<(String, String)> {
    let merges = model["merges"].as_array().into_iter().flatten();
    merges
        .filter_map(|merge| match merge {
            Json::String(text) => {
                let (left, right) = text.split_once(' ')?;
                Some((left.to_owned(), right.to_owned()))
            }
            pair => Some((pair[0].as_str()?.to_owned(), pair[1].as_str()?.to_owned())),
        })
        .collect()
}
