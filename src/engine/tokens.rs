//! Tokens as clients see them: id, text, bytes, log-probability.

use crate::domain::{PromptToken, SampledToken, TokenLogprob};
use crate::text::Tokenizer;

/// One token of a prompt or an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct TextToken {
    pub id: u32,
    /// The bytes it stands for; for a special token the name it has in the vocabulary.
    pub bytes: Vec<u8>,
    /// `None` for the first token of a prompt, or if nobody asked.
    pub logprob: Option<f32>,
    /// The likeliest tokens in its place, best first.
    pub top: Vec<TopToken>,
    /// Where it begins: characters of prompt or answer before it.
    pub offset: usize,
    /// Whether the text shows it: not a token that ended the answer or lies behind a stop string.
    pub shown: bool,
    /// Whether it is the token that ended the answer.
    pub ending: bool,
}

/// One candidate for a token's place.
#[derive(Clone, Debug, PartialEq)]
pub struct TopToken {
    pub id: u32,
    pub bytes: Vec<u8>,
    pub logprob: f32,
}

impl TextToken {
    pub(super) fn sampled(tokenizer: &Tokenizer, token: &SampledToken, offset: usize) -> Self {
        Self {
            id: token.token,
            bytes: tokenizer.token_bytes(token.token),
            logprob: token.logprob,
            top: TopToken::list(tokenizer, &token.top),
            offset,
            shown: true,
            ending: false,
        }
    }

    pub(super) fn scored(tokenizer: &Tokenizer, token: &PromptToken, offset: usize) -> Self {
        Self {
            id: token.token,
            bytes: tokenizer.token_bytes(token.token),
            logprob: token.logprob,
            top: TopToken::list(tokenizer, &token.top),
            offset,
            shown: true,
            ending: false,
        }
    }
}

impl TopToken {
    fn list(tokenizer: &Tokenizer, top: &[TokenLogprob]) -> Vec<Self> {
        top.iter()
            .map(|candidate| Self {
                id: candidate.token,
                bytes: tokenizer.token_bytes(candidate.token),
                logprob: candidate.logprob,
            })
            .collect()
    }
}
