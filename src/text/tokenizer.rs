//! Text to token ids and back.

use std::collections::HashSet;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::bare;
use super::decoding::{Decoding, Piece};
use super::growth::{self, growth};
use super::special::SpecialTokens;

/// The longest text that is tokenised in one piece.
pub const MAX_INPUT_BYTES: usize = 16 << 20;

/// Why a tokenizer could not be loaded or a text not be tokenised.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error("{path} could not be read: {source}")]
    Unreadable { path: String, source: std::io::Error },
    #[error(transparent)]
    Gguf(Box<crate::gguf::GgufError>),
    #[error("{file} is not valid JSON: {reason}")]
    Json { file: &'static str, reason: String },
    #[error("tokenizer.json could not be loaded: {reason}")]
    Load { reason: String },
    #[error(
        "the {part} of tokenizer.json turns each byte of a text into up to {times:.0} by its \
         replacements; at most {most:.0} are allowed"
    )]
    Growth { part: &'static str, times: f64, most: f64 },
    #[error("tokenizer_config.json names the {role} token `{token}`, which tokenizer.json lacks")]
    UnknownSpecial { role: &'static str, token: String },
    #[error("the text has {size_bytes} bytes; at most {limit} are tokenised at once")]
    InputTooLong { size_bytes: usize, limit: usize },
    #[error("the text could not be tokenised: {reason}")]
    Encode { reason: String },
    #[error(
        "the model has no tokenizer, so that it reads no text: send token ids, or put the \
         tokenizer.json of the model into its folder"
    )]
    Bare,
    #[error("token id {id} is outside the vocabulary of {vocab_size}")]
    UnknownId { id: u32, vocab_size: usize },
}

impl From<crate::gguf::GgufError> for TokenizerError {
    fn from(error: crate::gguf::GgufError) -> Self {
        Self::Gguf(Box::new(error))
    }
}

/// A text as tokens, each with the bytes `start..end` of the text it covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    pub ids: Vec<u32>,
    pub offsets: Vec<(usize, usize)>,
}

/// A loaded `tokenizer.json` with the special tokens of its model.
pub struct Tokenizer {
    whole: tokenizers::Tokenizer,
    /// The same without a space put before a text; `None` if it puts none.
    continuing: Option<Box<tokenizers::Tokenizer>>,
    decoding: Decoding,
    special_ids: HashSet<u32>,
    special_texts: Vec<String>,
    bos: Option<(u32, String)>,
    eos: Option<(u32, String)>,
    pad: Option<u32>,
    eos_ids: Vec<u32>,
    vocab_size: usize,
    fingerprint: String,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, where present, the configuration files beside it.
    ///
    /// # Errors
    /// [`TokenizerError`] naming the file and what is wrong with it.
    pub fn from_folder(folder: &Path) -> Result<Self, TokenizerError> {
        let tokenizer = read(&folder.join("tokenizer.json"))?;
        let special = SpecialTokens::read(
            &read_json_if_present(folder, "tokenizer_config.json")?,
            &read_json_if_present(folder, "generation_config.json")?,
            &read_json_if_present(folder, "config.json")?,
        );
        Self::from_bytes(&tokenizer, special)
    }

    /// Loads from the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`TokenizerError`] if it is malformed, or a special token is unknown.
    pub fn from_bytes(json: &[u8], special: SpecialTokens) -> Result<Self, TokenizerError> {
        let mut parsed: Value = parse(json, "tokenizer.json")?;
        check_growth(&parsed)?;
        let whole = match parsed.get_mut("post_processor").is_some_and(keep_offsets) {
            true => load(parsed.to_string().as_bytes())?,
            false => load(json)?,
        };
        let decoding = Decoding::from_json(&parsed["decoder"]);
        let continuing = without_prefix_space(parsed)
            .map(|value| load(value.to_string().as_bytes()).map(Box::new))
            .transpose()?;
        let vocab_size = whole.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        let fingerprint = hex::encode(Sha256::digest(json));
        let mut added: Vec<_> = whole.get_added_tokens_decoder().into_iter().collect();
        added.sort_by_key(|(id, _)| *id);
        added.retain(|(_, token)| token.special && !token.content.is_empty());
        let mut tokenizer = Self {
            whole,
            continuing,
            decoding,
            special_ids: added.iter().map(|(id, _)| *id).collect(),
            special_texts: added.into_iter().map(|(_, token)| token.content).collect(),
            bos: None,
            eos: None,
            pad: None,
            eos_ids: Vec::new(),
            vocab_size,
            fingerprint,
        };
        tokenizer.name_special_tokens(special)?;
        Ok(tokenizer)
    }

    /// Token ids of `text`; with `add_special_tokens` also what the model expects around it
    /// (a beginning-of-sequence token, for many). Special tokens written out in `text` are taken
    /// as such.
    ///
    /// # Errors
    /// [`TokenizerError::InputTooLong`], [`TokenizerError::Encode`] or [`TokenizerError::Bare`].
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        let text = bounded(text)?;
        let encoding = guarded(|| self.whole.encode_fast(text, add_special_tokens))
            .map_err(|error| self.unreadable(&error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of a text that goes on after other tokens: nothing is put before it, neither a
    /// special token nor a space.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_continuation(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let tokenizer = self.continuing.as_deref().unwrap_or(&self.whole);
        let text = bounded(text)?;
        let encoding = guarded(|| tokenizer.encode_fast(text, false))
            .map_err(|error| self.unreadable(&error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of `text`, nothing added, each with its place in the text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_offsets(&self, text: &str) -> Result<Encoded, TokenizerError> {
        let text = bounded(text)?;
        let encoding =
            guarded(|| self.whole.encode(text, false)).map_err(|error| self.unreadable(&error))?;
        Ok(Encoded { ids: encoding.get_ids().to_vec(), offsets: encoding.get_offsets().to_vec() })
    }

    /// The text of `ids`; special tokens are left out if `skip_special_tokens`. Incomplete
    /// characters become U+FFFD, ids outside the vocabulary nothing.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`] if the decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, TokenizerError> {
        // Some decoders panic where there is nothing to decode.
        let says = |&id: &u32| {
            self.whole.id_to_token(id).is_some() && !(skip_special_tokens && self.is_special(id))
        };
        if !ids.iter().any(says) {
            return Ok(String::new());
        }
        guarded(|| self.whole.decode(ids, skip_special_tokens))
            .map_err(|error| TokenizerError::Encode { reason: error.to_string() })
    }

    /// The bytes token `id` stands for inside a text; empty outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        if self.decodes_whole() {
            return self.whole_text(&[id], false).into_bytes();
        }
        match self.piece(id, false) {
            Some(Piece::Bytes(bytes)) => bytes,
            Some(Piece::WordEnd { inside, .. }) => inside.into_bytes(),
            Some(Piece::Fallback(byte)) => vec![byte],
            None => Vec::new(),
        }
    }

    /// Token `id` as text; parts of characters show as U+FFFD.
    pub fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(&self.token_bytes(id)).into_owned()
    }

    /// The id of a token given as it stands in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.whole.token_to_id(token)
    }

    /// Whether `id` is a special token, which decoding for people leaves out.
    pub fn is_special(&self, id: u32) -> bool {
        self.special_ids.contains(&id)
    }

    /// The first special token that stands written out in `text`.
    pub fn special_token_in(&self, text: &str) -> Option<&str> {
        self.special_texts.iter().map(String::as_str).find(|special| text.contains(special))
    }

    /// The last special token written out in `text`, by its bytes.
    pub(super) fn last_special(&self, text: &str) -> Option<Range<usize>> {
        let found =
            |special: &String| text.rfind(special.as_str()).map(|at| at..at + special.len());
        self.special_texts.iter().filter_map(found).max_by_key(|range| range.end)
    }

    /// Every token that ends a generation.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// The token that training puts at the end of a text.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos.as_ref().map(|(id, _)| *id)
    }

    pub fn bos_id(&self) -> Option<u32> {
        self.bos.as_ref().map(|(id, _)| *id)
    }

    pub fn pad_id(&self) -> Option<u32> {
        self.pad
    }

    /// `eos_token` as templates write it; empty if there is none.
    pub fn eos_token(&self) -> &str {
        self.eos.as_ref().map_or("", |(_, text)| text)
    }

    /// `bos_token` as templates write it; empty if there is none.
    pub fn bos_token(&self) -> &str {
        self.bos.as_ref().map_or("", |(_, text)| text)
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Hex SHA-256 of the `tokenizer.json`.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Checks ids that came from outside.
    ///
    /// # Errors
    /// [`TokenizerError::UnknownId`] for the first one outside the vocabulary.
    pub fn check_ids(&self, ids: &[u32]) -> Result<(), TokenizerError> {
        match ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            Some(&id) => Err(TokenizerError::UnknownId { id, vocab_size: self.vocab_size }),
            None => Ok(()),
        }
    }

    /// Whether tokens have no text, only ids: the model came without a tokenizer.
    pub fn is_bare(&self) -> bool {
        self.token_id(&bare::token(0)) == Some(0)
    }

    fn unreadable(&self, error: &tokenizers::Error) -> TokenizerError {
        match self.is_bare() {
            true => TokenizerError::Bare,
            false => TokenizerError::Encode { reason: error.to_string() },
        }
    }

    pub(super) fn piece(&self, id: u32, first: bool) -> Option<Piece> {
        let added = self.whole.get_added_vocabulary().simple_id_to_token(id);
        let token = added.or_else(|| self.whole.id_to_token(id))?;
        Some(self.decoding.piece(&token, first))
    }

    /// As [`Tokenizer::decode`]; tokens as the vocabulary has them where the decoder fails.
    pub(super) fn whole_text(&self, ids: &[u32], skip_special_tokens: bool) -> String {
        self.decode(ids, skip_special_tokens)
            .unwrap_or_else(|_| ids.iter().filter_map(|&id| self.whole.id_to_token(id)).collect())
    }

    /// Whether only all tokens together are a text.
    pub(super) fn decodes_whole(&self) -> bool {
        self.decoding.is_whole()
    }

    pub(super) fn strip(&self) -> Option<(char, usize)> {
        self.decoding.strip()
    }

    fn name_special_tokens(&mut self, special: SpecialTokens) -> Result<(), TokenizerError> {
        self.bos = self.resolve("beginning-of-sequence", special.bos, special.bos_id)?;
        let first_eos = special.eos_ids.first().copied();
        self.eos = self.resolve("end-of-sequence", special.eos, first_eos)?;
        // No text is padded here, so that a name of a training script's own does no harm.
        let pad = special.pad.and_then(|token| self.token_id(&token));
        self.pad = pad.or(special.pad_id.filter(|&id| self.whole.id_to_token(id).is_some()));
        let named = self.eos.as_ref().map(|(id, _)| *id);
        self.eos_ids = named.into_iter().collect();
        for id in special.eos_ids {
            if (id as usize) < self.vocab_size && !self.eos_ids.contains(&id) {
                self.eos_ids.push(id);
            }
        }
        Ok(())
    }

    fn resolve(
        &self,
        role: &'static str,
        token: Option<String>,
        id: Option<u32>,
    ) -> Result<Option<(u32, String)>, TokenizerError> {
        match token {
            Some(token) => match self.token_id(&token) {
                Some(id) => Ok(Some((id, token))),
                None => Err(TokenizerError::UnknownSpecial { role, token }),
            },
            None => Ok(id.and_then(|id| Some((id, self.whole.id_to_token(id)?)))),
        }
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size)
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

fn bounded(text: &str) -> Result<&str, TokenizerError> {
    match text.len() {
        size_bytes if size_bytes > MAX_INPUT_BYTES => {
            Err(TokenizerError::InputTooLong { size_bytes, limit: MAX_INPUT_BYTES })
        }
        _ => Ok(text),
    }
}

/// What `work` gives; files that nobody would write on purpose make the crate panic.
fn guarded<T>(work: impl FnOnce() -> Result<T, tokenizers::Error>) -> Result<T, tokenizers::Error> {
    // Nothing is changed by the work, so nothing is left half done.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or(panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked");
        Err(format!("the tokenizer cannot do this: {said}").into())
    })
}

fn check_growth(parsed: &Value) -> Result<(), TokenizerError> {
    for part in ["normalizer", "decoder"] {
        let (times, most) = (growth(&parsed[part]), growth::MOST);
        if times > most {
            return Err(TokenizerError::Growth { part, times, most });
        }
    }
    Ok(())
}

/// Loads without truncation and padding, which belong to batches of a training script, not to us.
fn load(json: &[u8]) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let failed = |error: tokenizers::Error| TokenizerError::Load { reason: error.to_string() };
    let mut tokenizer = guarded(|| tokenizers::Tokenizer::from_bytes(json)).map_err(failed)?;
    tokenizer.with_truncation(None).map_err(failed)?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

/// Lets offsets count the spaces of a token, which some files trim off; whether that changed anything.
fn keep_offsets(step: &mut Value) -> bool {
    let mut changed = false;
    for step in step.get_mut("processors").and_then(Value::as_array_mut).into_iter().flatten() {
        changed |= keep_offsets(step);
    }
    match step.get_mut("trim_offsets") {
        Some(trim) if *trim == true => {
            *trim = false.into();
            true
        }
        _ => changed,
    }
}

/// The same tokenizer without the space put before a text, or `None` if it puts none.
fn without_prefix_space(mut json: Value) -> Option<Value> {
    let mut changed = false;
    if let Some(normalizer) = json.get_mut("normalizer") {
        if let Some(steps) = normalizer.get_mut("normalizers").and_then(Value::as_array_mut) {
            let before = steps.len();
            steps.retain(|step| step["type"] != "Prepend");
            changed |= steps.len() != before;
        }
        if normalizer["type"] == "Prepend" {
            *normalizer = Value::Null;
            changed = true;
        }
    }
    changed |= json.get_mut("pre_tokenizer").is_some_and(unprefix);
    changed.then_some(json)
}

fn unprefix(step: &mut Value) -> bool {
    let mut changed = false;
    for step in step.get_mut("pretokenizers").and_then(Value::as_array_mut).into_iter().flatten() {
        changed |= unprefix(step);
    }
    let Some(step) = step.as_object_mut() else { return changed };
    let kind = step.get("type").and_then(Value::as_str).unwrap_or("");
    let is = |key: &str, value: Value| step.get(key) == Some(&value);
    match kind {
        "Metaspace" if !is("prepend_scheme", "never".into()) => {
            step.insert("prepend_scheme".into(), "never".into());
            step.remove("add_prefix_space");
            true
        }
        "ByteLevel" if is("add_prefix_space", true.into()) => {
            step.insert("add_prefix_space".into(), false.into());
            true
        }
        _ => changed,
    }
}

fn parse(json: &[u8], file: &'static str) -> Result<Value, TokenizerError> {
    serde_json::from_slice(json)
        .map_err(|error| TokenizerError::Json { file, reason: error.to_string() })
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, TokenizerError> {
    std::fs::read(path)
        .map_err(|source| TokenizerError::Unreadable { path: path.display().to_string(), source })
}

/// `Value::Null` if the folder has no such file.
pub(super) fn read_json_if_present(
    folder: &Path,
    file: &'static str,
) -> Result<Value, TokenizerError> {
    let path = folder.join(file);
    if !path.exists() {
        return Ok(Value::Null);
    }
    parse(&read(&path)?, file)
}
