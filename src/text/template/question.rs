//! What is rendered: a template's source, and what it is asked. Both go over a pipe as JSON.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A template as it was found, with the special tokens it writes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Source {
    /// What errors call it: a preset or a file.
    pub name: String,
    pub text: String,
    pub bos_token: String,
    pub eos_token: String,
    /// The others, by name: `pad_token`, …
    pub tokens: Map<String, Value>,
}

/// The variables of one rendering.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Question<'a> {
    pub messages: Cow<'a, [Value]>,
    pub tools: Option<Cow<'a, [Value]>>,
    pub add_generation_prompt: bool,
    /// Further ones (`enable_thinking`, …).
    pub extra: Cow<'a, Map<String, Value>>,
}
