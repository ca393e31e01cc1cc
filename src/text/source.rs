//! Where the text side of a model comes from: a folder, memory, or a GGUF file.

use std::path::Path;

use serde_json::Value;

use super::bare;
use super::gguf;
use super::model::{TextError, TextFiles};
use super::special::SpecialTokens;
use super::tokenizer::{TokenizerError, read, read_json_if_present};

/// What a model says of its texts, as yet unread.
#[derive(Clone, Debug)]
pub struct TextSource {
    /// A `tokenizer.json`.
    pub tokenizer: Vec<u8>,
    pub special: SpecialTokens,
    /// The chat template, with the file it was found in.
    pub template: Option<(String, String)>,
    /// The token that stands for a picture, of a model that sees.
    pub image_token: Option<u32>,
}

impl TextSource {
    /// Reads a Hugging Face folder; the template is `chat_template.jinja` or in
    /// `tokenizer_config.json`. In a folder without a tokenizer tokens are written by their ids.
    ///
    /// # Errors
    /// [`TextError`] naming the file that is missing or wrong.
    pub fn from_folder(folder: &Path) -> Result<Self, TextError> {
        const TEMPLATE: &str = "chat_template.jinja";
        let config = read_json_if_present(folder, "tokenizer_config.json")?;
        let model = read_json_if_present(folder, "config.json")?;
        let special = SpecialTokens::read(
            &config,
            &read_json_if_present(folder, "generation_config.json")?,
            &model,
        );
        let tokenizer = match bare::tokenizer_json(folder, &model) {
            Some(ids) => ids,
            None => read(&folder.join("tokenizer.json"))?,
        };
        let template = match std::fs::read_to_string(folder.join(TEMPLATE)) {
            Ok(source) => Some((TEMPLATE.to_owned(), source)),
            Err(_) => configured_template(&config)?,
        };
        Ok(Self { tokenizer, special, template, image_token: image_token(&model) })
    }

    /// The same from memory, for a model inside the binary.
    ///
    /// # Errors
    /// As [`TextSource::from_folder`].
    pub fn from_bytes(files: &TextFiles<'_>) -> Result<Self, TextError> {
        let parse = |bytes: Option<&[u8]>, file| match bytes {
            None => Ok(Value::Null),
            Some(bytes) => serde_json::from_slice(bytes)
                .map_err(|error| TokenizerError::Json { file, reason: error.to_string() }),
        };
        let config = parse(files.tokenizer_config, "tokenizer_config.json")?;
        let model = parse(files.config, "config.json")?;
        let special = SpecialTokens::read(
            &config,
            &parse(files.generation_config, "generation_config.json")?,
            &model,
        );
        let template = match files.chat_template {
            Some(source) => Some(("chat_template.jinja".to_owned(), source.to_owned())),
            None => configured_template(&config)?,
        };
        let (tokenizer, image_token) = (files.tokenizer.to_vec(), image_token(&model));
        Ok(Self { tokenizer, special, template, image_token })
    }

    /// The same from the metadata of a GGUF file.
    ///
    /// # Errors
    /// As [`TextSource::from_folder`].
    pub fn from_gguf(path: &Path) -> Result<Self, TextError> {
        Ok(gguf::read(path).map_err(TokenizerError::from)?)
    }
}

/// `chat_template` of a `tokenizer_config.json`: a string, or a list of named ones.
fn configured_template(config: &Value) -> Result<Option<(String, String)>, TextError> {
    let template = match &config["chat_template"] {
        Value::Array(named) => {
            let default = named.iter().find(|entry| entry["name"] == "default");
            let source = default.and_then(|entry| entry["template"].as_str());
            Some(source.ok_or(TextError::NoDefaultTemplate)?)
        }
        other => other.as_str(),
    };
    Ok(template.map(|source| ("tokenizer_config.json".to_owned(), source.to_owned())))
}

/// The image token of a model with a vision tower.
fn image_token(config: &Value) -> Option<u32> {
    let id = config["image_token_index"].as_u64().or(config["image_token_id"].as_u64());
    id.filter(|_| config["vision_config"].is_object()).and_then(|id| u32::try_from(id).ok())
}
