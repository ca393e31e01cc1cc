//! A chat completion as a stream of chunks: the role, the content, the reason, the usage.

use futures::stream::{self, Stream, StreamExt};
use serde::Serialize;
use serde_json::Value;

use super::body::Form;
use super::object::{ChatLogprobs, new_id, prompt_token_ids};
use crate::api::ApiError;
use crate::api::completions::{prompt_logprobs, unix_seconds};
use crate::api::sse::to_value;
use crate::api::usage::Usage;
use crate::engine::{Generation, TextEvent, TextToken};

/// One chunk; `id` and `created` are the same in all of a stream.
#[derive(Clone, Debug, Serialize)]
struct Chunk {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: String,
    choices: Vec<ChunkChoice>,
    /// With `include_usage`, `null` but for the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<Vec<Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
}

#[derive(Clone, Debug, Default, Serialize)]
struct ChunkChoice {
    index: usize,
    delta: Delta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

/// The chunks of `generation`, in OpenAI's order.
pub(super) fn chunks(
    generation: Generation,
    form: Form,
) -> impl Stream<Item = Result<Value, ApiError>> + Send {
    let empty = Chunk {
        id: new_id(),
        object: "chat.completion.chunk",
        created: unix_seconds(),
        model: generation.model.name.clone(),
        system_fingerprint: generation.model.fingerprint.clone(),
        choices: Vec::new(),
        usage: form.include_usage.then_some(None),
        prompt_logprobs: None,
        prompt_token_ids: None,
    };
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
    empty: Chunk,
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
                Some(self.chunks(event).iter().map(to_value).collect())
            }
            Some(Err(error)) => {
                self.over = true;
                Some(vec![Err(error.into())])
            }
            None => {
                self.over = true;
                let last = Chunk { usage: Some(Some(self.usage)), ..self.empty.clone() };
                Some(if self.form.include_usage { vec![to_value(&last)] } else { Vec::new() })
            }
        }
    }

    fn chunks(&self, event: TextEvent) -> Vec<Chunk> {
        match event {
            TextEvent::Started { scored, .. } => self.opening(&scored),
            TextEvent::Delta { choice, text, tokens, .. } => {
                let silent = self.form.logprobs.is_none() && !self.form.return_token_ids;
                match text.is_empty() && silent {
                    true => Vec::new(),
                    false => vec![self.chunk(self.content(choice, text, &tokens))],
                }
            }
            TextEvent::Finished { choice, reason, .. } => vec![self.chunk(ChunkChoice {
                index: choice,
                finish_reason: Some(reason.as_str()),
                ..ChunkChoice::default()
            })],
        }
    }

    fn chunk(&self, choice: ChunkChoice) -> Chunk {
        Chunk { choices: vec![choice], ..self.empty.clone() }
    }

    /// The role, for each choice; what was asked about the prompt goes with the first.
    fn opening(&self, scored: &[TextToken]) -> Vec<Chunk> {
        let role = Delta { role: Some("assistant"), content: Some(String::new()) };
        let opening = |index| {
            let choice = ChunkChoice { index, delta: role.clone(), ..ChunkChoice::default() };
            self.chunk(choice)
        };
        let mut chunks: Vec<_> = (0..self.form.n).map(opening).collect();
        if let Some(first) = chunks.first_mut() {
            first.prompt_logprobs =
                self.form.prompt_logprobs.map(|top| prompt_logprobs(scored, top));
            first.prompt_token_ids = prompt_token_ids(&self.generation, &self.form);
        }
        chunks
    }

    fn content(&self, index: usize, text: String, tokens: &[TextToken]) -> ChunkChoice {
        ChunkChoice {
            index,
            delta: Delta { role: None, content: Some(text) },
            logprobs: self.form.logprobs.map(|top| ChatLogprobs::new(tokens, top)),
            finish_reason: None,
            token_ids: self
                .form
                .return_token_ids
                .then(|| tokens.iter().map(|token| token.id).collect()),
        }
    }
}
