//! Token ids to text as they arrive: whole characters only, and in the end the very text that
//! decoding all ids at once gives.

use std::sync::Arc;

use super::decoding::Piece;
use super::tokenizer::Tokenizer;

/// What stands before the first token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Nothing: a text begins, and SentencePiece vocabularies lose their leading space.
    Text,
    /// A prompt: the leading space of the first token belongs to the text.
    Continuation,
}

/// Turns a stream of token ids into a stream of text.
///
/// A character whose bytes are spread over several tokens is held until it is whole. A run of
/// byte tokens (`<0xE2>`) is held until it ends, because an invalid one decodes to nothing but
/// U+FFFD. Memory stays in proportion to what is held. Where only all tokens together are a text,
/// all of it is held.
#[derive(Debug)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    skip_special_tokens: bool,
    first: bool,
    /// Characters still to drop from the start of the text.
    strip: Option<(char, usize)>,
    /// Bytes of a character that is not whole yet.
    partial: Vec<u8>,
    /// The current run of byte tokens.
    fallback: Vec<u8>,
    /// The end of a word, as it stands before another token and as the last one.
    word_end: Option<(String, String)>,
    /// All tokens, where none has a text by itself.
    whole: Vec<u32>,
}

impl Detokenizer {
    pub fn new(tokenizer: Arc<Tokenizer>, start: Start, skip_special_tokens: bool) -> Self {
        let begins = start == Start::Text;
        Self {
            skip_special_tokens,
            first: begins,
            strip: tokenizer.strip().filter(|_| begins),
            tokenizer,
            partial: Vec::new(),
            fallback: Vec::new(),
            word_end: None,
            whole: Vec::new(),
        }
    }

    /// The text that `id` completes; often empty.
    pub fn push(&mut self, id: u32) -> String {
        if self.skip_special_tokens && self.tokenizer.is_special(id) {
            return String::new();
        }
        if self.tokenizer.decodes_whole() {
            self.whole.push(id);
            return String::new();
        }
        let Some(piece) = self.tokenizer.piece(id, self.first) else { return String::new() };
        self.first = false;
        let mut text = self.word_end.take().map_or(String::new(), |(inside, _)| inside);
        match piece {
            Piece::Fallback(byte) => self.fallback.push(byte),
            Piece::Bytes(bytes) => {
                self.end_fallback(&mut text);
                self.partial.extend(bytes);
                self.take_whole_characters(&mut text);
            }
            Piece::WordEnd { inside, last } => self.word_end = Some((inside, last)),
        }
        self.stripped(text)
    }

    /// The rest: what was held becomes U+FFFD where it never became a character.
    pub fn finish(&mut self) -> String {
        let ids = std::mem::take(&mut self.whole);
        if !ids.is_empty() {
            return self.tokenizer.whole_text(&ids, self.skip_special_tokens);
        }
        let mut text = self.word_end.take().map_or(String::new(), |(_, last)| last);
        self.end_fallback(&mut text);
        text.push_str(&String::from_utf8_lossy(&self.partial));
        self.partial.clear();
        self.stripped(text)
    }

    fn end_fallback(&mut self, text: &mut String) {
        let run = std::mem::take(&mut self.fallback);
        match String::from_utf8(run) {
            Ok(run) => text.push_str(&run),
            Err(error) => {
                error.as_bytes().iter().for_each(|_| text.push(char::REPLACEMENT_CHARACTER))
            }
        }
    }

    /// Moves whole characters out of `partial`, as `String::from_utf8_lossy` would.
    fn take_whole_characters(&mut self, text: &mut String) {
        let mut done = 0;
        for chunk in self.partial.utf8_chunks() {
            text.push_str(chunk.valid());
            done += chunk.valid().len();
            let invalid = chunk.invalid();
            if invalid.is_empty() || is_unfinished(&self.partial[done..]) {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            done += invalid.len();
        }
        self.partial.drain(..done);
    }

    fn stripped(&mut self, mut text: String) -> String {
        while let Some((content, left)) = self.strip {
            match text.chars().next() {
                Some(first) if first == content && left > 0 => {
                    text.remove(0);
                    self.strip = Some((content, left - 1));
                }
                Some(_) => self.strip = None,
                None => break,
            }
        }
        text
    }
}

/// Whether `bytes` are the beginning of a character whose end has not arrived.
fn is_unfinished(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes)
        .is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
}
