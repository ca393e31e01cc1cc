//! The chat completion object, and the parts it shares with its chunks.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::body::Form;
use crate::api::completions::{escaped, finite, prompt_logprobs, unix_seconds};
use crate::api::usage::Usage;
use crate::domain::FinishReason;
use crate::engine::{Answer, AnsweredChoice, Generation, TextToken};

/// The answer to a conversation.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ChatObject {
    /// `chatcmpl-…`
    pub id: String,
    /// Always `chat.completion`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    pub model: String,
    /// Names weights, quantisation, adapter and build.
    pub system_fingerprint: String,
    pub choices: Vec<ChatChoice>,
    pub usage: Usage,
    /// Extension: for each prompt token a map from token id to `logprob` and `decoded_token`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    pub prompt_logprobs: Option<Vec<Value>>,
    /// Extension, with `return_token_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
}

/// One answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ChatChoice {
    pub index: usize,
    pub message: ChatMessage,
    pub logprobs: Option<ChatLogprobs>,
    /// `stop` or `length`.
    pub finish_reason: Option<&'static str>,
    /// Extension, with `return_token_ids`: every token drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

/// What the assistant says.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ChatMessage {
    /// Always `assistant`.
    pub role: &'static str,
    pub content: Option<String>,
    /// Always `null`.
    pub refusal: Option<String>,
}

/// Log-probabilities of an answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ChatLogprobs {
    pub content: Vec<ChatTokenLogprob>,
    /// Always `null`.
    pub refusal: Option<Vec<ChatTokenLogprob>>,
}

/// A token of the answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ChatTokenLogprob {
    pub token: String,
    pub logprob: f32,
    /// A character may be spread over several tokens.
    pub bytes: Option<Vec<u8>>,
    pub top_logprobs: Vec<ChatTopLogprob>,
}

/// A likely token in its place.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ChatTopLogprob {
    pub token: String,
    pub logprob: f32,
    pub bytes: Option<Vec<u8>>,
}

impl ChatObject {
    /// The whole answer.
    pub(super) fn new(generation: &Generation, answer: Answer, form: &Form) -> Self {
        let usage = Usage::of_answer(generation, &answer);
        let prompt = answer.prompts.into_iter().next().unwrap_or_default();
        Self {
            id: new_id(),
            object: "chat.completion",
            created: unix_seconds(),
            model: generation.model.name.clone(),
            system_fingerprint: generation.model.fingerprint.clone(),
            usage,
            prompt_logprobs: form.prompt_logprobs.map(|top| prompt_logprobs(&prompt.scored, top)),
            prompt_token_ids: prompt_token_ids(generation, form),
            choices: prompt
                .choices
                .into_iter()
                .enumerate()
                .map(|(index, answer)| ChatChoice::new(index, answer, form))
                .collect(),
        }
    }
}

impl ChatChoice {
    fn new(index: usize, answer: AnsweredChoice, form: &Form) -> Self {
        Self {
            index,
            logprobs: form.logprobs.map(|top| ChatLogprobs::new(&answer.tokens, top)),
            finish_reason: answer.reason.map(FinishReason::as_str),
            token_ids: form
                .return_token_ids
                .then(|| answer.tokens.iter().map(|token| token.id).collect()),
            message: ChatMessage { role: "assistant", content: Some(answer.text), refusal: None },
        }
    }
}

impl ChatLogprobs {
    /// Of the tokens that the text shows, with `top` likeliest ones each.
    pub(super) fn new(tokens: &[TextToken], top: usize) -> Self {
        let shown = tokens.iter().filter(|token| token.shown);
        Self {
            content: shown.map(|token| ChatTokenLogprob::new(token, top)).collect(),
            refusal: None,
        }
    }
}

impl ChatTokenLogprob {
    fn new(token: &TextToken, top: usize) -> Self {
        let candidate = |(bytes, logprob): (&Vec<u8>, f32)| ChatTopLogprob {
            token: chat_token(bytes),
            logprob: finite(logprob),
            bytes: Some(bytes.clone()),
        };
        let likeliest = token.top.iter().take(top);
        Self {
            token: chat_token(&token.bytes),
            logprob: finite(token.logprob.unwrap_or(f32::NEG_INFINITY)),
            bytes: Some(token.bytes.clone()),
            top_logprobs: likeliest.map(|top| candidate((&top.bytes, top.logprob))).collect(),
        }
    }
}

/// A token's text; bytes that are not a whole character are spelled out, as OpenAI does.
fn chat_token(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).map_or_else(|_| escaped(bytes), str::to_owned)
}

pub(super) fn new_id() -> String {
    format!("chatcmpl-{}", Uuid::now_v7().simple())
}

pub(super) fn prompt_token_ids(generation: &Generation, form: &Form) -> Option<Vec<u32>> {
    let prompt = generation.prompts.first().filter(|_| form.return_token_ids)?;
    Some(prompt.ids.clone())
}
