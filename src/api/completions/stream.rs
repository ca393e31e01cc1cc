//! A completion as a stream of chunks.

use futures::stream::{self, Stream, StreamExt};
use serde_json::Value;

use super::body::Form;
use super::logprobs::CompletionLogprobs;
use super::object::{CompletionChoice, CompletionObject, answer_start};
use crate::api::ApiError;
use crate::api::sse::to_value;
use crate::api::usage::Usage;
use crate::engine::{Generation, TextEvent};

/// The chunks of `generation`, in OpenAI's order; the usage comes last if it was asked for.
pub(super) fn chunks(
    generation: Generation,
    form: Form,
) -> impl Stream<Item = Result<Value, ApiError>> + Send {
    let mut empty = CompletionObject::empty(&generation);
    empty.usage = form.include_usage.then_some(None);
    let usage = Usage::of_prompts(&generation);
    let writer = Writer { generation, form, empty, usage, over: false };
    stream::unfold(writer, |mut writer| async move {
        let chunks = writer.next().await?;
        Some((stream::iter(chunks), writer))
    })
    .flatten()
}

struct Writer {
    generation: Generation,
    form: Form,
    empty: CompletionObject,
    usage: Usage,
    over: bool,
}

impl Writer {
    /// The chunks of the next event; `None` after the last.
    async fn next(&mut self) -> Option<Vec<Result<Value, ApiError>>> {
        if self.over {
            return None;
        }
        match self.generation.events.next().await {
            Some(Ok(event)) => {
                self.usage.observe(&event);
                Some(self.choices(event).into_iter().map(|choice| self.chunk(choice)).collect())
            }
            Some(Err(error)) => {
                self.over = true;
                Some(vec![Err(error.into())])
            }
            None => {
                self.over = true;
                let last = CompletionObject { usage: Some(Some(self.usage)), ..self.empty.clone() };
                Some(if self.form.include_usage { vec![to_value(&last)] } else { Vec::new() })
            }
        }
    }

    fn chunk(&self, choice: CompletionChoice) -> Result<Value, ApiError> {
        to_value(&CompletionObject { choices: vec![choice], ..self.empty.clone() })
    }

    fn choices(&self, event: TextEvent) -> Vec<CompletionChoice> {
        let (form, n) = (&self.form, self.form.n);
        match event {
            TextEvent::Started { prompt, scored, .. } => {
                if !form.echo && form.prompt_logprobs.is_none() && !form.return_token_ids {
                    return Vec::new();
                }
                let read = &self.generation.prompts[prompt];
                let index = |choice| prompt * n + choice;
                (0..n)
                    .map(|choice| CompletionChoice::opening(read, &scored, index(choice), form))
                    .collect()
            }
            TextEvent::Delta { prompt, choice, text, tokens } => {
                if text.is_empty() && form.logprobs.is_none() && !form.return_token_ids {
                    return Vec::new();
                }
                let start = answer_start(&self.generation.prompts[prompt], form);
                let logprobs = form.logprobs.map(|top| {
                    let mut logprobs = CompletionLogprobs::default();
                    logprobs.extend(&tokens, start, top);
                    logprobs
                });
                let token_ids = form
                    .return_token_ids
                    .then(|| tokens.iter().map(|token| token.id).collect::<Vec<u32>>());
                let index = prompt * n + choice;
                vec![CompletionChoice { text, index, logprobs, token_ids, ..Default::default() }]
            }
            TextEvent::Finished { prompt, choice, reason, .. } => vec![CompletionChoice {
                index: prompt * n + choice,
                finish_reason: Some(reason.as_str()),
                ..Default::default()
            }],
        }
    }
}
