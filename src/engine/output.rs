//! What a running request tells, in text.

use super::tokens::TextToken;
use crate::domain::FinishReason;

/// One piece of news about one prompt or one of its choices. Of a choice, deltas come in order and
/// [`TextEvent::Finished`] last; choices and prompts interleave.
#[derive(Clone, Debug, PartialEq)]
pub enum TextEvent {
    /// Prompt `prompt` was read, `cached_tokens` of it from the prefix cache. `scored` are its
    /// tokens if prompt log-probabilities were asked for.
    Started { prompt: usize, cached_tokens: usize, scored: Vec<TextToken> },
    /// More text of choice `choice` of prompt `prompt`; either part may be empty.
    Delta { prompt: usize, choice: usize, text: String, tokens: Vec<TextToken> },
    /// That choice is complete; it drew `generated` tokens.
    Finished { prompt: usize, choice: usize, reason: FinishReason, generated: usize },
}
