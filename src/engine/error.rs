//! Why a request for text failed.

use crate::catalog::CatalogError;
use crate::pictures::PictureError;
use crate::text::TextError;
use crate::text::stop::StopError;
use crate::worker::WorkerError;

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(
        "this model's context holds {context} tokens; the request has {prompt} in its prompt and \
         asks for {max_tokens} more; shorten one of them"
    )]
    ContextExceeded { prompt: usize, max_tokens: usize, context: usize },
    #[error("token id {id} is outside the vocabulary of {vocab_size}")]
    UnknownToken { param: &'static str, id: u32, vocab_size: usize },
    #[error(
        "the request asks for {asked} tokens in all its choices; at most {limit} are allowed at once"
    )]
    TooManyTokens { asked: usize, limit: usize },
    #[error("`adapter_scale` needs a model with an adapter; `{model}` is a base model")]
    NoAdapter { model: String },
    #[error("{error}")]
    Prompt { param: &'static str, error: TextError },
    #[error("messages{path}: {error}")]
    Picture { path: String, error: PictureError },
    #[error(
        "the chat template wrote {places} image tokens for {pictures} pictures; start the server \
         with `template=llava-v1`, or leave image tokens out of the text"
    )]
    PicturePlaces { pictures: usize, places: usize },
    #[error(transparent)]
    Stop(#[from] StopError),
    #[error(transparent)]
    Worker(#[from] WorkerError),
    #[error("the device thread ended before the answer did")]
    Lost,
    #[error("the tokenizer thread failed")]
    Tokenising(#[source] tokio::task::JoinError),
}
