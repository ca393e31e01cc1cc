//! The async face of inference: what a request names, its prompt as tokens, its answer as text.
//!
//! `api` hands in a [`TextRequest`]; [`Engine::generate`] resolves the model, tokenises on the
//! blocking pool, checks the context and queues the work; a [`Generation`] then yields
//! [`TextEvent`]s, or everything at once.

mod answer;
mod choice;
mod error;
mod generate;
mod output;
mod prompt;
mod stream;
mod tokens;

pub use answer::{Answer, AnsweredChoice, AnsweredPrompt, collect, pick_best};
pub use error::EngineError;
pub use generate::{Engine, Generation, MAX_REQUEST_TOKENS, MaxTokens, TextRequest};
pub use output::TextEvent;
pub use prompt::{PreparedPrompt, PromptInput};
pub use tokens::{TextToken, TopToken};
