//! The text of one choice as its tokens arrive: whole characters, no part of a stop string.

use std::collections::VecDeque;
use std::sync::Arc;

use super::tokens::TextToken;
use crate::domain::{FinishReason, SampledToken};
use crate::text::{Detokenizer, StopMatcher, Tokenizer};

/// What one token made visible.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Delta {
    pub text: String,
    pub tokens: Vec<TextToken>,
}

/// How the tokens of one choice become text.
#[derive(Debug)]
pub(super) struct ChoiceText {
    tokenizer: Arc<Tokenizer>,
    detokenizer: Detokenizer,
    stops: StopMatcher,
    /// Tokens that end the answer; empty if it goes on past them.
    ending: Arc<[u32]>,
    /// Tokens among which no stop string is looked for.
    min_tokens: usize,
    /// Tokens whose text is held back, because it may become a stop string.
    held: VecDeque<TextToken>,
    /// Characters that came out of the detokenizer, and that were released.
    detokenized: usize,
    released: usize,
    generated: usize,
    finished: Option<FinishReason>,
}

impl ChoiceText {
    pub fn new(
        tokenizer: Arc<Tokenizer>,
        detokenizer: Detokenizer,
        stops: StopMatcher,
        ending: Arc<[u32]>,
        min_tokens: usize,
    ) -> Self {
        Self {
            tokenizer,
            detokenizer,
            stops,
            ending,
            min_tokens,
            held: VecDeque::new(),
            detokenized: 0,
            released: 0,
            generated: 0,
            finished: None,
        }
    }

    /// Why the choice ended, once it has.
    pub fn finished(&self) -> Option<FinishReason> {
        self.finished
    }

    /// Tokens drawn so far, those that are not shown included.
    pub fn generated(&self) -> usize {
        self.generated
    }

    /// Takes the next token. A stop string that it completes finishes the choice.
    pub fn push(&mut self, token: &SampledToken) -> Delta {
        self.generated += 1;
        let mut shown = TextToken::sampled(&self.tokenizer, token, self.detokenized);
        if self.ending.contains(&token.token) {
            (shown.shown, shown.ending) = (false, true);
            self.held.push_back(shown);
            return Delta::default();
        }
        self.held.push_back(shown);
        let text = self.detokenizer.push(token.token);
        self.release(text)
    }

    /// The choice is over: what was held becomes visible.
    pub fn finish(&mut self, reason: FinishReason) -> Delta {
        let rest = self.detokenizer.finish();
        let mut delta = self.release(rest);
        if self.finished.is_none() {
            let held = self.stops.finish();
            self.released += held.chars().count();
            delta.text.push_str(&held);
            delta.tokens.extend(self.held.drain(..));
            self.finished = Some(reason);
        }
        delta
    }

    fn release(&mut self, text: String) -> Delta {
        self.detokenized += text.chars().count();
        let text = match self.generated <= self.min_tokens {
            true => text,
            false => self.stops.push(&text),
        };
        self.released += text.chars().count();
        if self.stops.matched().is_some() {
            self.finished = Some(FinishReason::Stop);
            return Delta { text, tokens: self.tokens_before_the_cut() };
        }
        let mut tokens = Vec::new();
        while let Some(token) = self.held.pop_front_if(|token| {
            !token.ending && (token.offset < self.released || self.released == self.detokenized)
        }) {
            tokens.push(token);
        }
        Delta { text, tokens }
    }

    /// Everything held; what begins behind the cut is marked as not shown.
    fn tokens_before_the_cut(&mut self) -> Vec<TextToken> {
        let cut = self.released;
        let held = self.held.drain(..);
        held.map(|token| TextToken { shown: token.shown && token.offset < cut, ..token }).collect()
    }
}
