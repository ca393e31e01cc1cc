//! Between strings and token ids: golden tokenizers and templates, streams, masks, training data.

mod dataset;
mod malformed;
mod masks;
mod templates;
mod tokens;

use std::path::PathBuf;

use serde_json::Value;
use tandem::text::{TextFiles, TextModel};

/// A file of golden data.
fn golden(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

fn golden_json(path: &str) -> Value {
    let text = std::fs::read_to_string(golden(path)).expect("golden data is there");
    serde_json::from_str(&text).expect("golden data is JSON")
}

/// Both golden tokenizers.
const TOKENIZERS: [&str; 2] = ["bytelevel", "metaspace"];

/// A golden tokenizer under a template: a preset, or none.
fn model(tokenizer: &str, template: Option<&str>) -> TextModel {
    TextModel::from_folder(&golden(&format!("tokenizers/{tokenizer}")), template)
        .expect("the golden tokenizer loads")
}

/// A tokenizer that knows the end of a ChatML turn, as models taught ChatML do.
fn chatml_model() -> TextModel {
    chatml_model_with(tandem::text::template::preset("chatml").expect("a preset"))
}

/// The same tokenizer under another template.
fn chatml_model_with(template: &str) -> TextModel {
    let mut tokenizer = golden_json("tokenizers/bytelevel/tokenizer.json");
    let next = 320;
    for (offset, token) in ["<|im_start|>", "<|im_end|>"].into_iter().enumerate() {
        let added = serde_json::json!({"id": next + offset, "content": token, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false, "special": true});
        tokenizer["added_tokens"].as_array_mut().expect("a list").push(added);
    }
    let tokenizer = tokenizer.to_string();
    let files = TextFiles {
        tokenizer: tokenizer.as_bytes(),
        tokenizer_config: Some(br#"{"bos_token": "<s>", "eos_token": "</s>"}"#),
        chat_template: Some(template),
        ..TextFiles::default()
    };
    TextModel::from_bytes(&files, None).expect("the tokenizer loads")
}
