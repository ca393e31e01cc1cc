//! The completion object, whole and as a chunk.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::body::Form;
use super::logprobs::{CompletionLogprobs, prompt_logprobs};
use crate::api::usage::Usage;
use crate::domain::FinishReason;
use crate::engine::{
    Answer, AnsweredChoice, AnsweredPrompt, Generation, PreparedPrompt, pick_best,
};

/// A completion, or one chunk of a streamed one.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CompletionObject {
    /// `cmpl-…`
    pub id: String,
    /// Always `text_completion`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    pub model: String,
    /// Names weights, quantisation, adapter and build.
    pub system_fingerprint: String,
    pub choices: Vec<CompletionChoice>,
    /// In a stream only with `include_usage`, and then `null` but for the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    pub usage: Option<Option<Usage>>,
}

/// One answer, or the next piece of it.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct CompletionChoice {
    pub text: String,
    /// `prompt · n + choice`.
    pub index: usize,
    pub logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`; `null` until a streamed choice ends.
    pub finish_reason: Option<&'static str>,
    /// Extension: for each prompt token a map from token id to `logprob` and `decoded_token`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    pub prompt_logprobs: Option<Vec<Value>>,
    /// Extension, with `return_token_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
    /// Extension, with `return_token_ids`: every token drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

impl CompletionObject {
    /// The object without choices and usage; a stream sends it again and again.
    pub(super) fn empty(generation: &Generation) -> Self {
        Self {
            id: format!("cmpl-{}", Uuid::now_v7().simple()),
            object: "text_completion",
            created: unix_seconds(),
            model: generation.model.name.clone(),
            system_fingerprint: generation.model.fingerprint.clone(),
            choices: Vec::new(),
            usage: None,
        }
    }

    /// The whole answer.
    pub(super) fn new(generation: &Generation, answer: Answer, form: &Form) -> Self {
        let usage = Some(Some(Usage::of_answer(generation, &answer)));
        let mut choices = Vec::new();
        for (prompt, mut answered) in generation.prompts.iter().zip(answer.prompts) {
            let mut answers = std::mem::take(&mut answered.choices);
            if form.best_of > form.n {
                answers = pick_best(answers, form.n);
            }
            for answer in answers {
                choices.push(whole(prompt, &answered, answer, choices.len(), form));
            }
        }
        Self { choices, usage, ..Self::empty(generation) }
    }
}

fn whole(
    prompt: &PreparedPrompt,
    answered: &AnsweredPrompt,
    answer: AnsweredChoice,
    index: usize,
    form: &Form,
) -> CompletionChoice {
    let mut choice = CompletionChoice::opening(prompt, &answered.scored, index, form);
    choice.text.push_str(&answer.text);
    if let (Some(logprobs), Some(top)) = (&mut choice.logprobs, form.logprobs) {
        logprobs.extend(&answer.tokens, answer_start(prompt, form), top);
    }
    choice.finish_reason = answer.reason.map(FinishReason::as_str);
    if form.return_token_ids {
        choice.token_ids = Some(answer.tokens.iter().map(|token| token.id).collect());
    }
    choice
}

impl CompletionChoice {
    /// What is known once the prompt was read: the echo, and what the model thought of it.
    pub(super) fn opening(
        prompt: &PreparedPrompt,
        scored: &[crate::engine::TextToken],
        index: usize,
        form: &Form,
    ) -> Self {
        let mut choice = Self { index, ..Self::default() };
        choice.logprobs = form.logprobs.map(|top| {
            let mut logprobs = CompletionLogprobs::default();
            if form.echo {
                logprobs.extend(scored, 0, top);
            }
            logprobs
        });
        if form.echo {
            choice.text.push_str(&prompt.text);
        }
        choice.prompt_logprobs = form.prompt_logprobs.map(|top| prompt_logprobs(scored, top));
        if form.return_token_ids {
            choice.prompt_token_ids = Some(prompt.ids.clone());
        }
        choice
    }
}

/// Where the answer begins within the text of the choice, in characters.
pub(super) fn answer_start(prompt: &PreparedPrompt, form: &Form) -> usize {
    if form.echo { prompt.characters() } else { 0 }
}

pub(in crate::api) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
