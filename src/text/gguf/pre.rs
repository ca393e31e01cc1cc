//! How a text is cut before byte-level merging: ggml has names for what `tokenizer.json` spells out.

use serde_json::{Value, json};

/// Splits as Llama 3 does; `{1,3}` is how many digits stay together.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What a name stands for.
pub(super) struct Pre {
    pub normalizer: Value,
    pub pre_tokenizer: Value,
    /// Whole words in the vocabulary are taken as they are.
    pub ignore_merges: bool,
}

/// Names that mean the same as an earlier one are written as that.
pub(super) const NAMES: [&str; 9] =
    ["gpt-2", "llama-bpe", "qwen2", "smollm", "default", "mpt", "phi-2", "llama3", "llama-v3"];

/// The steps called `name`.
pub(super) fn named(name: &str) -> Option<Pre> {
    let byte_level = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let split = |pattern: &str| {
        let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        json!({"type": "Sequence", "pretokenizers": [split, byte_level(false)]})
    };
    let (normalizer, pre_tokenizer, ignore_merges) = match name {
        "gpt-2" | "default" | "mpt" | "phi-2" => (Value::Null, byte_level(true), false),
        "llama-bpe" | "llama3" | "llama-v3" => (Value::Null, split(LLAMA3), true),
        "qwen2" => (json!({"type": "NFC"}), split(QWEN2), false),
        "smollm" => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            let steps = json!({"type": "Sequence", "pretokenizers": [digits, byte_level(true)]});
            (Value::Null, steps, false)
        }
        _ => return None,
    };
    Some(Pre { normalizer, pre_tokenizer, ignore_merges })
}

/// The name of the steps of a `tokenizer.json`, if ggml has one for them.
pub(super) fn name_of(tokenizer: &Value) -> Option<&'static str> {
    NAMES.into_iter().find(|name| {
        named(name).is_some_and(|pre| same(&pre.pre_tokenizer, &tokenizer["pre_tokenizer"]))
    })
}

/// Whether two steps cut alike: offsets and omitted defaults do not matter.
fn same(ours: &Value, theirs: &Value) -> bool {
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(_)) => {
            ours.iter().all(|(key, value)| match theirs.get(key) {
                _ if key == "trim_offsets" => true,
                Some(theirs) => same(value, theirs),
                None => key == "use_regex" && *value == true,
            })
        }
        (Value::Array(ours), Value::Array(theirs)) => {
            ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(a, b)| same(a, b))
        }
        _ => ours == theirs,
    }
}
