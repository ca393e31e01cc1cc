//! Everything between strings and token ids: tokenizer, chat template, streamed detokenising, stop
//! strings, and the formats of training data.
//!
//! [`TextModel`] is what stands beside each base model; `engine` serves with it, [`dataset`] trains
//! with it, so that a prompt is written the same way in both. Only `domain` and `gguf` lie below.

pub mod dataset;
pub mod detokenizer;
pub mod mask;
pub mod messages;
pub mod model;
pub mod special;
pub mod stop;
pub mod template;
pub mod tokenizer;

mod bare;
mod decoding;
pub mod gguf;
mod growth;
mod source;

pub use detokenizer::{Detokenizer, Start};
pub use messages::{MessageError, PictureUrl, picture_urls};
pub use model::{TextError, TextFiles, TextModel};
pub use source::TextSource;
pub use stop::{MatchedStop, StopMatcher};
pub use template::{ChatTemplate, Rendering, TemplateError};
pub use tokenizer::{Tokenizer, TokenizerError};
