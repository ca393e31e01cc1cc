//! Log-probabilities in the form of completions: parallel arrays over tokens.

use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::engine::TextToken;

/// The value written for a probability of 0, as OpenAI does: JSON has no infinity.
pub(in crate::api) const IMPOSSIBLE: f32 = -9999.0;

/// Parallel arrays, one entry per token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct CompletionLogprobs {
    pub tokens: Vec<String>,
    /// `null` for the first token of an echoed prompt.
    pub token_logprobs: Vec<Option<f32>>,
    /// The likeliest tokens in each place, and the chosen one.
    #[schema(value_type = Vec<Option<std::collections::BTreeMap<String, f32>>>)]
    pub top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Where each token begins, in characters of the choice's text.
    pub text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    /// Adds `tokens`, whose offsets count from character `start`, with `top` likeliest ones each.
    /// Tokens behind a stop string are left out; the one that ended the answer is not.
    pub fn extend(&mut self, tokens: &[TextToken], start: usize, top: usize) {
        for token in tokens.iter().filter(|token| token.shown || token.ending) {
            self.tokens.push(token_text(&token.bytes));
            self.token_logprobs.push(token.logprob.map(finite));
            self.top_logprobs.push(token.logprob.map(|_| likeliest(token, top)));
            self.text_offset.push(start + token.offset);
        }
    }
}

/// A token's text; bytes that are not a whole character are spelled out, as OpenAI does.
pub(in crate::api) fn token_text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("bytes:{}", escaped(bytes)),
    }
}

/// `\xf0\x9f…`
pub(in crate::api) fn escaped(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect()
}

pub(in crate::api) fn finite(logprob: f32) -> f32 {
    if logprob.is_nan() { IMPOSSIBLE } else { logprob.max(IMPOSSIBLE) }
}

fn likeliest(token: &TextToken, top: usize) -> Map<String, Value> {
    let mut map = Map::new();
    for candidate in token.top.iter().take(top) {
        map.entry(token_text(&candidate.bytes)).or_insert_with(|| finite(candidate.logprob).into());
    }
    if let Some(logprob) = token.logprob {
        map.entry(token_text(&token.bytes)).or_insert_with(|| finite(logprob).into());
    }
    map
}

/// The extension `prompt_logprobs`: for each prompt token a map from token id to its
/// log-probability and text; `null` for the first.
pub(in crate::api) fn prompt_logprobs(scored: &[TextToken], top: usize) -> Vec<Value> {
    scored.iter().map(|token| prompt_entry(token, top)).collect()
}

fn prompt_entry(token: &TextToken, top: usize) -> Value {
    let Some(logprob) = token.logprob else { return Value::Null };
    let entry = |logprob: f32, bytes: &[u8]| json!({"logprob": finite(logprob), "decoded_token": String::from_utf8_lossy(bytes)});
    let mut map = Map::new();
    map.insert(token.id.to_string(), entry(logprob, &token.bytes));
    for candidate in token.top.iter().take(top) {
        map.entry(candidate.id.to_string())
            .or_insert_with(|| entry(candidate.logprob, &candidate.bytes));
    }
    Value::Object(map)
}
