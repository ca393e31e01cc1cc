//! The text side of a base model: its tokenizer, its chat template, and what ends its turns.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::detokenizer::{Detokenizer, Start};
use super::mask::MaskError;
use super::messages::{ContentRules, MessageError, PictureRule, normalise};
use super::source::TextSource;
use super::template::{ChatTemplate, PRESETS, Rendering, TemplateError};
use super::tokenizer::{Tokenizer, TokenizerError};

/// Why a text model could not be loaded or a prompt not be made.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error(transparent)]
    Mask(#[from] MaskError),
    #[error(
        "the model has no chat template; start the server with `template=` and a file or one of the presets"
    )]
    NoTemplate,
    #[error("`{0}` is neither a chat template preset nor a readable file: {1}")]
    TemplateFile(String, std::io::Error),
    #[error("`chat_template` of tokenizer_config.json has no template named `default`")]
    NoDefaultTemplate,
    #[error("{path} contains the special token `{token}`, which only the chat template may write")]
    SpecialToken { path: String, token: String },
    #[error("the prompt is empty: it has no token")]
    EmptyPrompt,
}

/// The files of a model that concern text, as bytes; absent ones stay `None`.
#[derive(Clone, Copy, Debug, Default)]
pub struct TextFiles<'a> {
    pub tokenizer: &'a [u8],
    pub tokenizer_config: Option<&'a [u8]>,
    pub generation_config: Option<&'a [u8]>,
    pub config: Option<&'a [u8]>,
    pub chat_template: Option<&'a str>,
}

/// Tokenizer and chat template of one base model.
#[derive(Debug)]
pub struct TextModel {
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
    /// Stands in a text where a picture goes; `None` if the model sees none.
    image_token: Option<u32>,
    stop_ids: Vec<u32>,
    turn_stop: Option<String>,
}

impl TextModel {
    /// Reads a Hugging Face folder. `template` is a preset's name or a file and replaces the
    /// template of the folder, which is `chat_template.jinja` or in `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`TextError`] naming the file that is missing or wrong.
    pub fn from_folder(folder: &Path, template: Option<&str>) -> Result<Self, TextError> {
        Self::new(TextSource::from_folder(folder)?, template, &Rendering::Here)
    }

    /// The same from memory, for a model inside the binary.
    ///
    /// # Errors
    /// As [`TextModel::from_folder`].
    pub fn from_bytes(files: &TextFiles<'_>, template: Option<&str>) -> Result<Self, TextError> {
        Self::new(TextSource::from_bytes(files)?, template, &Rendering::Here)
    }

    /// The same from the metadata of a GGUF file.
    ///
    /// # Errors
    /// As [`TextModel::from_folder`].
    pub fn from_gguf(path: &Path, template: Option<&str>) -> Result<Self, TextError> {
        Self::new(TextSource::from_gguf(path)?, template, &Rendering::Here)
    }

    /// `chosen` is a preset's name or a file and replaces the template of `source`. Presets are
    /// ours and rendered here, others where `rendering` says.
    ///
    /// # Errors
    /// As [`TextModel::from_folder`].
    pub fn new(
        source: TextSource,
        chosen: Option<&str>,
        rendering: &Rendering,
    ) -> Result<Self, TextError> {
        let named = source.special.named.clone();
        let tokenizer = Tokenizer::from_bytes(&source.tokenizer, source.special)?;
        let image_token = source.image_token;
        let (bos, eos) = (tokenizer.bos_token(), tokenizer.eos_token());
        let compile = |name: &str, text: &str| {
            ChatTemplate::compile_with(name, text, bos, eos, &named, rendering)
        };
        let template = match (chosen, source.template) {
            (Some(name), _) if PRESETS.iter().any(|(preset, _)| *preset == name) => {
                Some(ChatTemplate::from_preset(name, bos, eos)?)
            }
            (Some(path), _) => {
                let source = std::fs::read_to_string(path)
                    .map_err(|error| TextError::TemplateFile(path.to_owned(), error))?;
                Some(compile(path, &source)?)
            }
            (None, Some((name, source))) => Some(compile(&name, &source)?),
            (None, None) => None,
        };
        let mut stop_ids = tokenizer.eos_ids().to_vec();
        let mut turn_stop = None;
        if let Some(after) = template.as_ref().and_then(after_answer) {
            match first_special(&tokenizer, &after) {
                Some(id) if !stop_ids.contains(&id) => stop_ids.push(id),
                Some(_) => {}
                None => turn_stop = first_line(&after),
            }
        }
        let tokenizer = Arc::new(tokenizer);
        Self { tokenizer, template, image_token: None, stop_ids, turn_stop }.seeing(image_token)
    }

    /// With the image token of a model that sees. The templates of such models leave what stands
    /// before every text to a processor.
    fn seeing(mut self, image_token: Option<u32>) -> Result<Self, TextError> {
        self.image_token = image_token;
        let first = self.tokenizer.encode("a", true).ok().and_then(|ids| ids.first().copied());
        let begins = image_token.is_some() && first == self.tokenizer.bos_id();
        if let Some(template) = self.template.as_mut().filter(|_| begins) {
            template.begin_every_text();
        }
        Ok(self)
    }

    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// Tokens that end an answer: every end-of-sequence token, and the one with which the chat
    /// template ends an assistant turn.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// The text that ends an assistant turn where the chat template ends it with no special token:
    /// a chat has to stop there. `### Human:` for Guanaco.
    pub fn turn_stop(&self) -> Option<&str> {
        self.turn_stop.as_deref()
    }

    /// Streams answers: whole characters, special tokens left out.
    pub fn detokenizer(&self, start: Start) -> Detokenizer {
        Detokenizer::new(self.tokenizer.clone(), start, true)
    }

    /// Token ids of a completion prompt, with what the model expects before a text.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`], or [`TextError::EmptyPrompt`] if nothing remains.
    pub fn completion_prompt(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let ids = self.tokenizer.encode(text, true)?;
        match (ids.is_empty(), self.tokenizer.bos_id()) {
            (false, _) => Ok(ids),
            (true, Some(bos)) => Ok(vec![bos]),
            (true, None) => Err(TextError::EmptyPrompt),
        }
    }

    /// Token ids of a conversation, ready for the assistant to go on.
    ///
    /// Messages are in the wire form; `tools` as in a chat request; `extra` are further variables
    /// of the template. Special tokens written out in a message or tool are refused.
    ///
    /// # Errors
    /// [`TextError`]; [`TextError::Template`] with `Raised` if the template refuses.
    pub fn chat_prompt(
        &self,
        messages: &[Value],
        tools: Option<&[Value]>,
        extra: &Map<String, Value>,
    ) -> Result<Vec<u32>, TextError> {
        let text = self.chat_text(messages, tools, extra)?;
        let ids = self.tokenizer.encode(&text, false)?;
        if ids.is_empty() { Err(TextError::EmptyPrompt) } else { Ok(ids) }
    }

    /// The text that [`TextModel::chat_prompt`] tokenises.
    ///
    /// # Errors
    /// As there.
    pub fn chat_text(
        &self,
        messages: &[Value],
        tools: Option<&[Value]>,
        extra: &Map<String, Value>,
    ) -> Result<String, TextError> {
        let template = self.template.as_ref().ok_or(TextError::NoTemplate)?;
        let messages = normalise(messages, self.content_rules(template))?;
        for (name, values) in [("messages", Some(messages.as_slice())), ("tools", tools)] {
            for (index, value) in values.into_iter().flatten().enumerate() {
                if let Some((path, token)) = self.special_token_in(value) {
                    let path = format!("{name}[{index}]{path}");
                    return Err(TextError::SpecialToken { path, token });
                }
            }
        }
        Ok(template.render(&messages, tools, true, extra)?)
    }

    /// What a chat may show, and how the template reads it.
    fn content_rules(&self, template: &ChatTemplate) -> ContentRules {
        let takes = template.takes();
        let pictures = match (self.image_token.is_some(), takes.parts) {
            (false, _) => PictureRule::Unseen,
            (true, false) => PictureRule::Unplaced,
            (true, true) => PictureRule::Placed,
        };
        ContentRules { pictures, only_parts: !takes.text }
    }

    /// The same for training data, whose lines are read without a template too.
    pub(super) fn training_rules(&self) -> ContentRules {
        self.template.as_ref().map_or_else(ContentRules::default, |t| self.content_rules(t))
    }

    /// The first special token written out in any string of `value`, with its JSON path.
    pub(super) fn special_token_in(&self, value: &Value) -> Option<(String, String)> {
        match value {
            Value::String(text) => {
                Some((String::new(), self.tokenizer.special_token_in(text)?.to_owned()))
            }
            Value::Array(items) => items.iter().enumerate().find_map(|(index, item)| {
                let (path, token) = self.special_token_in(item)?;
                Some((format!("[{index}]{path}"), token))
            }),
            Value::Object(map) => map.iter().find_map(|(key, item)| {
                if let Some(token) = self.tokenizer.special_token_in(key) {
                    return Some((String::new(), token.to_owned()));
                }
                let (path, token) = self.special_token_in(item)?;
                Some((format!(".{key}{path}"), token))
            }),
            _ => None,
        }
    }

    /// Hex SHA-256 of `tokenizer.json`.
    pub fn tokenizer_fingerprint(&self) -> &str {
        self.tokenizer.fingerprint()
    }

    /// Hex SHA-256 of the chat template's source.
    pub fn template_fingerprint(&self) -> Option<&str> {
        self.template.as_ref().map(ChatTemplate::fingerprint)
    }
}

/// What `template` writes between an answer and the next question, found by asking it.
fn after_answer(template: &ChatTemplate) -> Option<String> {
    const ANSWER: &str = "an answer";
    const NEXT: &str = "the next question";
    let turn = |role: &str, content: &str| serde_json::json!({"role": role, "content": content});
    let messages = [turn("user", "a question"), turn("assistant", ANSWER), turn("user", NEXT)];
    let text = template.render(&messages, None, false, &Map::new()).ok()?;
    let after = &text[text.rfind(ANSWER)? + ANSWER.len()..];
    Some(after[..after.find(NEXT)?].to_owned())
}

fn first_special(tokenizer: &Tokenizer, text: &str) -> Option<u32> {
    tokenizer.encode_continuation(text).ok()?.into_iter().find(|&id| tokenizer.is_special(id))
}

fn first_line(text: &str) -> Option<String> {
    text.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}
