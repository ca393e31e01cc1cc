//! One request for tokens, and what comes back of it.

use std::sync::Arc;

use super::{AdapterWeights, PlacedPicture, SamplingParams};

/// A prompt to continue, everything settled: the device thread asks nobody anything.
#[derive(Clone, Debug)]
pub struct GenerationRequest {
    /// The resident base model to run, by the name it was loaded under.
    pub base: Arc<str>,
    /// The adapter of every token of this request, pinned for as long as the request runs.
    pub adapter: Option<Arc<AdapterWeights>>,
    /// Multiplies the adapter's own scaling; 1 is as trained.
    pub adapter_scale: f32,
    /// Whose prefix cache entries may be shared.
    pub tenant: Arc<str>,
    /// Prompt token ids; never empty.
    pub prompt: Vec<u32>,
    /// Pictures whose features stand at image tokens of the prompt, in order.
    pub pictures: Vec<PlacedPicture>,
    /// How many answers to draw from the one prompt; choice `i` draws with `seed + i`.
    pub choices: usize,
    /// How to draw them.
    pub sampling: SamplingParams,
    /// Tokens that end an answer (unless `ignore_eos`); the token itself is reported, not hidden.
    pub stop_tokens: Vec<u32>,
    /// Whether tokens may be guessed and checked several at once; it changes no answer.
    pub speculative: bool,
}

impl GenerationRequest {
    /// Tokens it may take at most: the prompt, and the longest answer of every choice.
    pub fn cost(&self) -> usize {
        let answers = self.choices.saturating_mul(self.sampling.max_tokens);
        self.prompt.len().saturating_add(answers)
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token or stop string.
    Stop,
    /// `max_tokens`, or the end of the context.
    Length,
}

impl FinishReason {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// A token and its natural-log probability under the model, before temperature and penalties.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprob {
    pub token: u32,
    pub logprob: f32,
}

/// One token of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    pub token: u32,
    /// Present if the request asked for log-probabilities.
    pub logprob: Option<f32>,
    /// The likeliest tokens, best first; as many as were asked for.
    pub top: Vec<TokenLogprob>,
}

/// What the model thought of one prompt token.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptToken {
    pub token: u32,
    /// `None` for the first token.
    pub logprob: Option<f32>,
    pub top: Vec<TokenLogprob>,
}
