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
use super::tokenizer::{Encoded, TokenizerError};
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
        let (end, closed) = answer_end(model, &text, &turn, &before).ok_or_else(not_a_prefix)?;
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
/// The tokens before an answer are those that serving will have there. They may differ from the
/// tokens of the whole text, where an answer follows: a vocabulary can write `\n\n` as one token
/// at the end of a prompt and as two before a letter.
///
/// # Errors
/// [`MaskError::Tokenizer`].
pub fn example(
    model: &TextModel,
    rendered: &Rendered,
    last_trained: bool,
) -> Result<Example, MaskError> {
    let whole = model.tokenizer().encode_with_offsets(&rendered.text)?;
    let mut labelled = Labelled { model, rendered, whole, done: 0, example: Example::default() };
    for range in &rendered.trained {
        labelled.prompt(range.start)?;
        labelled.answer(range)?;
    }
    let Labelled { whole, done, mut example, .. } = labelled;
    push(&mut example, &whole.ids[done..], false);
    let eos = model.tokenizer().eos_id().filter(|_| rendered.open_end);
    push(&mut example, eos.as_slice(), last_trained);
    Ok(example)
}

/// A conversation on its way to an example.
struct Labelled<'a> {
    model: &'a TextModel,
    rendered: &'a Rendered,
    /// The tokens of the whole text.
    whole: Encoded,
    /// How many of them are dealt with.
    done: usize,
    example: Example,
}

impl Labelled<'_> {
    /// Adds the tokens up to the answer at byte `border`, as serving tokenises them.
    ///
    /// Special tokens divide a text, so only what follows the last of them can differ.
    fn prompt(&mut self, border: usize) -> Result<(), MaskError> {
        let ahead = self.tokens_before(border);
        let tokenizer = self.model.tokenizer();
        let from =
            (0..ahead).rev().find(|&at| tokenizer.is_special(self.whole.ids[at])).unwrap_or(0);
        let start = self.whole.offsets.get(from).map_or(0, |offsets| offsets.0.min(border));
        let served = tokenizer.encode(&self.rendered.text[start..border], false)?;
        let known = &self.whole.ids[from..ahead];
        let common = from + served.iter().zip(known).take_while(|(a, b)| a == b).count();
        if common >= self.done {
            push(&mut self.example, &self.whole.ids[self.done..common], false);
            push(&mut self.example, &served[common - from..], false);
        } else {
            push(&mut self.example, &self.whole.ids[self.done..ahead], false);
        }
        self.done = ahead;
        Ok(())
    }

    /// Adds the tokens of an answer; apart from the prompt if one token covers the border.
    fn answer(&mut self, range: &Range<usize>) -> Result<(), MaskError> {
        let first = self.done;
        self.done = self.tokens_before(range.end);
        let crossed = first.checked_sub(1).is_some_and(|at| self.whole.offsets[at].1 > range.start);
        if crossed {
            let answer = &self.rendered.text[range.clone()];
            let ids = self.model.tokenizer().encode_continuation(answer)?;
            push(&mut self.example, &ids, true);
        } else {
            push(&mut self.example, &self.whole.ids[first..self.done], true);
        }
        Ok(())
    }

    /// How many tokens of the whole text begin before byte `border`.
    fn tokens_before(&self, border: usize) -> usize {
        let rest = &self.whole.offsets[self.done..];
        self.done + rest.iter().take_while(|(start, _)| *start < border).count()
    }
}

fn push(example: &mut Example, ids: &[u32], trained: bool) {
    example.ids.extend(ids);
    example.labels.extend(ids.iter().map(|&id| if trained { id as i32 } else { IGNORE_INDEX }));
}

/// Where the answer that `turn` holds after `before` ends in `text`: with the last special token
/// that both have, or with the turn if there is none; the second tells which.
///
/// Some templates end every rendering with a token that a longer conversation does not have there;
/// nothing else may differ.
fn answer_end(model: &TextModel, text: &str, turn: &str, before: &str) -> Option<(usize, bool)> {
    let answer = turn.strip_prefix(before)?;
    let same = |length: usize| {
        let end = before.len() + length;
        (text.get(..end) == turn.get(..end)).then_some(end)
    };
    let mut rest = answer;
    while let Some(special) = model.tokenizer().last_special(rest) {
        match same(special.end) {
            Some(end) => return Some((end, true)),
            None if rest[special.end..].trim().is_empty() => rest = &rest[..special.start],
            None => return None,
        }
    }
    same(rest.len()).map(|end| (end, false))
}
