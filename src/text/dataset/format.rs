//! The formats of training data and the keys that tell them.

use serde_json::{Map, Value};

/// How the lines of a file are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// OpenAI chat: `{"messages": […], "tools"?}`.
    Messages,
    /// `{"prompt": "…", "completion": "…"}`.
    PromptCompletion,
    /// Stanford Alpaca: `{"instruction", "input"?, "output"}`.
    Alpaca,
    /// `{"conversations": [{"from": "human", "value": "…"}, …]}`.
    #[serde(rename = "sharegpt")]
    ShareGpt,
    /// `{"text": "…"}`.
    Text,
    /// `{"input_ids": […], "labels": […]}`.
    Tokenized,
}

impl Format {
    /// The format told by the keys of one line, or `None`.
    pub(super) fn of(line: &Map<String, Value>) -> Option<Self> {
        let has = |key: &str| line.contains_key(key);
        [
            (Self::Messages, has("messages")),
            (Self::ShareGpt, has("conversations")),
            (Self::Tokenized, has("input_ids") || has("labels")),
            (Self::Alpaca, has("instruction")),
            (Self::PromptCompletion, has("prompt") || has("completion")),
            (Self::Text, has("text")),
        ]
        .into_iter()
        .find_map(|(format, found)| found.then_some(format))
    }

    /// Every key it reads.
    pub(super) fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Messages => &["messages", "tools", "parallel_tool_calls", "functions"],
            Self::PromptCompletion => &["prompt", "completion"],
            Self::Alpaca => &["instruction", "input", "output"],
            Self::ShareGpt => &["conversations", "system"],
            Self::Text => &["text"],
            Self::Tokenized => &["input_ids", "labels"],
        }
    }

    /// Its name in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::PromptCompletion => "prompt_completion",
            Self::Alpaca => "alpaca",
            Self::ShareGpt => "sharegpt",
            Self::Text => "text",
            Self::Tokenized => "tokenized",
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether a line holds preferences, which other training methods read.
pub(super) fn is_preference(line: &Map<String, Value>) -> bool {
    ["chosen", "rejected", "preferred_output", "non_preferred_output"]
        .iter()
        .any(|key| line.contains_key(*key))
}
