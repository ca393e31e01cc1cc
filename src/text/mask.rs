//! Which part of a rendered conversation bears loss: what the assistant says, and the token with
//! which it ends.
//!
//! Found by rendering every beginning of the conversation: the template, asked to open an
//! assistant turn, must have written a beginning of what it writes with the answer. Searching the
//! text for markers would be simpler and fails silently; this fails with the template's name.

use std::ops::Range;

use serde_json::{Map, Value};

use super::model::TextModel;
use super::template::{ChatTemplate, TemplateError};
use super::tokenizer::TokenizerError;
use crate::domain::{Example, IGNORE_INDEX};

/// Why no mask could be made.
#[derive(Debug, thiserror::Error)]
pub enum MaskError {
    #[error(
        "the chat template {template} rewrites earlier turns: the text before the answer at \
         messages[{message}] is not what the model will see; choose another template"
    )]
    NotAPrefix { template: String, message: usize },
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// A conversation in the templates' form, with what the template shall see beside it.
#[derive(Clone, Debug, Default)]
pub struct Conversation {
    pub messages: Vec<Value>,
    /// Beside each message: whether it may bear loss. Only assistant messages do.
    pub trained: Vec<bool>,
    pub tools: Option<Vec<Value>>,
    pub extra: Map<String, Value>,
}

/// A rendered conversation and the byte ranges of it that bear loss.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    pub text: String,
    pub trained: Vec<Range<usize>>,
    /// Whether the conversation ends with an answer that no special token closes.
    pub open_end: bool,
}

/// Renders `conversation` with `model`'s template and finds its answers.
///
/// # Errors
/// [`MaskError::NotAPrefix`] if the template writes history differently from what it was.
pub fn render(
    model: &TextModel,
    template: &ChatTemplate,
    conversation: &Conversation,
) -> Result<Rendered, MaskError> {
    let Conversation { messages, trained, tools, extra } = conversation;
    let render = |upto: usize, prompt: bool| {
        template.render(&messages[..upto], tools.as_deref(), prompt, extra)
    };
    let text = render(messages.len(), false)?;
    let mut ranges = Vec::new();
    let mut open_end = false;
    for (index, message) in messages.iter().enumerate() {
        let last = index + 1 == messages.len();
        if message["role"] != "assistant" || !(trained[index] || last) {
            continue;
        }
        let not_a_prefix =
            || MaskError::NotAPrefix { template: template.name().to_owned(), message: index };
        let before = render(index, true)?;
        let turn = if last { text.clone() } else { render(index + 1, false)? };
        let answer = turn.strip_prefix(&before).ok_or_else(not_a_prefix)?;
        let (length, closed) = answer_length(model, answer);
        let end = before.len() + length;
        if text.get(..end) != turn.get(..end) {
            return Err(not_a_prefix());
        }
        open_end = last && !closed;
        if trained[index] {
            ranges.push(before.len()..end);
        }
    }
    Ok(Rendered { text, trained: ranges, open_end })
}

/// Tokens and labels of a rendered conversation. An answer at the end that the template leaves
/// open is closed with the end-of-sequence token, so that the model learns to stop.
///
/// # Errors
/// [`MaskError::Tokenizer`].
pub fn example(
    model: &TextModel,
    rendered: &Rendered,
    last_trained: bool,
) -> Result<Example, MaskError> {
    let encoded = model.tokenizer().encode_with_offsets(&rendered.text)?;
    let mut ids = encoded.ids;
    let mut ranges = rendered.trained.iter().peekable();
    let mut labels: Vec<i32> = Vec::with_capacity(ids.len() + 1);
    for (&id, &(start, end)) in ids.iter().zip(&encoded.offsets) {
        while ranges.next_if(|range| range.end <= start).is_some() {}
        let inside = ranges
            .peek()
            .is_some_and(|range| start < range.end && (end > range.start || start >= range.start));
        labels.push(if inside { id as i32 } else { IGNORE_INDEX });
    }
    if let Some(eos) = model.tokenizer().eos_id().filter(|_| rendered.open_end) {
        ids.push(eos);
        labels.push(if last_trained { eos as i32 } else { IGNORE_INDEX });
    }
    Ok(Example { ids, labels })
}

/// How much of what the template writes for an answer the model has to say: up to its last
/// special token, or all if there is none. The second tells which.
fn answer_length(model: &TextModel, answer: &str) -> (usize, bool) {
    match model.tokenizer().last_special_end(answer) {
        Some(end) => (end, true),
        None => (answer.len(), false),
    }
}
