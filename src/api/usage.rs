//! What a request cost, in tokens.

use serde::Serialize;
use utoipa::ToSchema;

use crate::engine::{Answer, Generation, TextEvent};

/// Tokens read and written. Every choice counts, the prompt once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
    pub prompt_tokens_details: PromptTokensDetails,
}

/// Where prompt tokens came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct PromptTokensDetails {
    /// Read from the prefix cache instead of being computed.
    pub cached_tokens: usize,
}

impl Usage {
    /// Nothing written yet.
    pub(super) fn of_prompts(generation: &Generation) -> Self {
        let prompt_tokens = generation.prompts.iter().map(|prompt| prompt.ids.len()).sum();
        Self { prompt_tokens, total_tokens: prompt_tokens, ..Self::default() }
    }

    /// Everything a request cost, answers that `best_of` dropped included.
    pub(super) fn of_answer(generation: &Generation, answer: &Answer) -> Self {
        let mut usage = Self::of_prompts(generation);
        for prompt in &answer.prompts {
            usage.prompt_tokens_details.cached_tokens += prompt.cached_tokens;
            usage.add(prompt.choices.iter().map(|choice| choice.generated).sum());
        }
        usage
    }

    /// Counts along with a stream.
    pub(super) fn observe(&mut self, event: &TextEvent) {
        match event {
            TextEvent::Started { cached_tokens, .. } => {
                self.prompt_tokens_details.cached_tokens += cached_tokens;
            }
            TextEvent::Finished { generated, .. } => self.add(*generated),
            TextEvent::Delta { .. } => {}
        }
    }

    fn add(&mut self, generated: usize) {
        self.completion_tokens += generated;
        self.total_tokens += generated;
    }
}
