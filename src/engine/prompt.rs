//! Prompts as requests give them, and as the device thread gets them.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::EngineError;
use super::tokens::TextToken;
use crate::domain::{BaseInfo, PlacedPicture, PromptToken};
use crate::pictures::PictureReader;
use crate::text::{Detokenizer, PictureUrl, Start, TextError, TextModel, Tokenizer, picture_urls};

/// What to continue.
#[derive(Clone, Debug, PartialEq)]
pub enum PromptInput {
    /// One answer, or several, to each text.
    Texts(Vec<String>),
    /// The same with token ids.
    Tokens(Vec<Vec<u32>>),
    /// Nothing: the beginning of a text.
    Beginning,
    /// A conversation in the wire form, through the model's chat template.
    Chat(Vec<Value>),
}

/// A prompt as token ids.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PreparedPrompt {
    pub ids: Vec<u32>,
    /// What `echo` shows: what the caller wrote.
    pub text: String,
    /// Tokens at the start that the tokenizer added.
    pub added: usize,
    /// The pictures of a conversation, each at a run of image tokens.
    pub pictures: Vec<PlacedPicture>,
}

/// What a prompt is prepared with.
#[derive(Clone, Debug)]
pub(super) struct Preparation {
    pub text: Arc<TextModel>,
    pub base: Arc<BaseInfo>,
    /// Present if the model sees.
    pub pictures: Option<Arc<PictureReader>>,
}

impl PromptInput {
    /// How many prompts there are.
    pub fn count(&self) -> usize {
        match self {
            Self::Texts(texts) => texts.len(),
            Self::Tokens(lists) => lists.len(),
            Self::Beginning | Self::Chat(_) => 1,
        }
    }

    /// Tokenises; slow for long texts, so not for an async thread. `echo` fills
    /// [`PreparedPrompt::text`].
    ///
    /// # Errors
    /// [`EngineError::Prompt`] or [`EngineError::UnknownToken`], naming the parameter.
    pub(super) fn prepare(
        self,
        with: &Preparation,
        echo: bool,
    ) -> Result<Vec<PreparedPrompt>, EngineError> {
        let (model, vocab_size) = (&*with.text, with.base.vocab_size);
        let param = if let Self::Chat(_) = self { "messages" } else { "prompt" };
        let prompts: Vec<_> = match self {
            Self::Texts(texts) => {
                texts.into_iter().map(|text| from_text(model, text, echo)).collect()
            }
            Self::Tokens(lists) => {
                lists.into_iter().map(|ids| from_ids(model, ids, echo)).collect()
            }
            Self::Beginning => Ok(vec![beginning(model)?]),
            Self::Chat(messages) => Ok(vec![from_chat(with, &messages)?]),
        }?;
        // A tokenizer may know tokens that the model has no row for.
        let ids = prompts.iter().flat_map(|prompt| &prompt.ids);
        match ids.copied().find(|&id| id as usize >= vocab_size) {
            Some(id) => Err(EngineError::UnknownToken { param, id, vocab_size }),
            None => Ok(prompts),
        }
    }
}

impl PreparedPrompt {
    /// Characters of the text that `echo` shows.
    pub fn characters(&self) -> usize {
        self.text.chars().count()
    }

    /// The scored prompt tokens with their places in the echoed text.
    pub(super) fn scored(
        &self,
        tokenizer: &Arc<Tokenizer>,
        scored: &[PromptToken],
    ) -> Vec<TextToken> {
        if scored.is_empty() {
            return Vec::new();
        }
        let length = self.characters();
        let mut detokenizer = Detokenizer::new(tokenizer.clone(), Start::Text, false);
        let mut offset = 0;
        let place = |(at, token): (usize, &PromptToken)| {
            let placed = TextToken::scored(tokenizer, token, offset.min(length));
            if at >= self.added {
                offset += detokenizer.push(token.token).chars().count();
            }
            placed
        };
        scored.iter().enumerate().map(place).collect()
    }
}

fn failed(error: impl Into<TextError>) -> EngineError {
    EngineError::Prompt { param: "prompt", error: error.into() }
}

fn from_text(model: &TextModel, text: String, echo: bool) -> Result<PreparedPrompt, EngineError> {
    let ids = model.completion_prompt(&text).map_err(failed)?;
    let added = match echo {
        false => 0,
        true => {
            let written = model.tokenizer().encode(&text, false).map_err(failed)?;
            if ids.ends_with(&written) { ids.len() - written.len() } else { 0 }
        }
    };
    Ok(PreparedPrompt {
        ids,
        text: if echo { text } else { String::new() },
        added,
        ..PreparedPrompt::default()
    })
}

/// The conversation through the template, each image token repeated for its picture's features.
fn from_chat(with: &Preparation, messages: &[Value]) -> Result<PreparedPrompt, EngineError> {
    let ids = with
        .text
        .chat_prompt(messages, None, &Map::new())
        .map_err(|error| EngineError::Prompt { param: "messages", error })?;
    let (Some(vision), Some(reader)) = (with.base.vision, &with.pictures) else {
        return Ok(PreparedPrompt { ids, ..PreparedPrompt::default() });
    };
    let (ids, starts) = vision.make_room(&ids);
    let urls = picture_urls(messages);
    if urls.len() != starts.len() {
        let (pictures, places) = (urls.len(), starts.len());
        return Err(EngineError::PicturePlaces { pictures, places });
    }
    if ids.len() > with.base.context_length {
        // Said before any picture is decoded.
        let (prompt, context) = (ids.len(), with.base.context_length);
        return Err(EngineError::ContextExceeded { prompt, max_tokens: 0, context });
    }
    let pictures = starts.into_iter().zip(urls).map(|(start, PictureUrl { path, url })| {
        let picture = reader.read_url(url);
        let picture = picture.map_err(|error| EngineError::Picture { path, error })?;
        Ok(PlacedPicture { start, picture: Arc::new(picture) })
    });
    let pictures = pictures.collect::<Result<_, EngineError>>()?;
    Ok(PreparedPrompt { ids, pictures, ..PreparedPrompt::default() })
}

fn from_ids(model: &TextModel, ids: Vec<u32>, echo: bool) -> Result<PreparedPrompt, EngineError> {
    if ids.is_empty() {
        return Err(failed(TextError::EmptyPrompt));
    }
    let text = match echo {
        true => model.tokenizer().decode(&ids, false).map_err(failed)?,
        false => String::new(),
    };
    Ok(PreparedPrompt { ids, text, ..PreparedPrompt::default() })
}

/// What stands before every text: the beginning-of-sequence token, or for models that have none
/// the end of another text.
fn beginning(model: &TextModel) -> Result<PreparedPrompt, EngineError> {
    let tokenizer = model.tokenizer();
    let id =
        tokenizer.bos_id().or(tokenizer.eos_id()).ok_or_else(|| failed(TextError::EmptyPrompt))?;
    Ok(PreparedPrompt { ids: vec![id], added: 1, ..PreparedPrompt::default() })
}
