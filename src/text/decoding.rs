//! From the text of a token to the bytes it stands for, as the `decoder` of a `tokenizer.json` says.
//!
//! The rules are read once at load. Where they cannot be applied token by token, a text is decoded
//! at its end and streams in one piece, so that streaming never has to guess.

use std::collections::HashMap;

use serde_json::Value;
use tokenizers::{Decoder, DecoderWrapper};

/// What one token contributes to the text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Text, or with a byte-level vocabulary any part of it.
    Bytes(Vec<u8>),
    /// One byte of a character that the vocabulary lacks (`<0xE2>`).
    Fallback(u8),
    /// What ends a word: as it stands before another token, and as the last one of a text.
    WordEnd { inside: String, last: String },
}

/// How the texts of tokens join.
#[derive(Debug)]
pub(super) enum Decoding {
    /// Every character of a token stands for a byte (GPT-2 and most that followed).
    ByteLevel { bytes: HashMap<char, u8> },
    /// Tokens are text; `▁` is a space, `<0xNN>` may be a byte (SentencePiece).
    Pieces(PieceRules),
    /// No decoder: whole words, a space between.
    Words,
    /// Only all tokens together are a text.
    Whole,
}

#[derive(Debug, Default)]
pub(super) struct PieceRules {
    /// Applied to each token in turn.
    steps: Vec<Step>,
    /// What ends a word, and becomes a space but at the end of the text.
    word_end: Option<String>,
    byte_fallback: bool,
    /// A character to drop from the start of the text, and how often.
    strip: Option<(char, usize)>,
}

/// What is done to the text of one token.
#[derive(Debug)]
enum Step {
    Replace(String, String),
    /// The metaspace character, and whether the first token loses it.
    Metaspace(char, bool),
    /// As many of a character as are dropped from the start and from the end, at most.
    Strip(char, [usize; 2]),
    /// What the tokenizer's own library does to a token and whether it is the first.
    Own(DecoderWrapper),
}

impl Step {
    fn apply(&self, token: String, first: bool) -> String {
        match self {
            Self::Replace(from, to) => token.replace(from, to),
            Self::Metaspace(mark, true) if first => token.replace(*mark, ""),
            Self::Metaspace(mark, _) => token.replace(*mark, " "),
            Self::Strip(content, [start, end]) => strip(&token, *content, *start, *end),
            Self::Own(decoder) => {
                let before = (!first).then(|| "x".to_owned());
                let tokens = before.into_iter().chain([token.clone()]).collect();
                decoder
                    .decode_chain(tokens)
                    .ok()
                    .and_then(|mut tokens| tokens.pop())
                    .unwrap_or(token)
            }
        }
    }
}

impl Decoding {
    /// Reads the `decoder` entry of a `tokenizer.json`.
    pub fn from_json(decoder: &Value) -> Self {
        if decoder.is_null() {
            return Self::Words;
        }
        let mut steps = Vec::new();
        flatten(decoder, &mut steps);
        if steps.iter().any(|step| kind(step) == "ByteLevel")
            && steps.iter().all(|step| matches!(kind(step), "ByteLevel" | "Fuse"))
        {
            return Self::ByteLevel { bytes: byte_level_alphabet() };
        }
        let mut rules = PieceRules::default();
        let mut fused = false;
        match steps.into_iter().all(|step| rules.add(step, &mut fused)) {
            true => Self::Pieces(rules),
            false => Self::Whole,
        }
    }

    /// What `token` stands for; `first` if it begins the text.
    pub fn piece(&self, token: &str, first: bool) -> Piece {
        match self {
            Self::ByteLevel { bytes } => {
                let mapped: Option<Vec<u8>> =
                    token.chars().map(|c| bytes.get(&c).copied()).collect();
                Piece::Bytes(mapped.unwrap_or_else(|| token.as_bytes().to_vec()))
            }
            Self::Pieces(rules) => rules.piece(token, first),
            Self::Words if first => Piece::Bytes(token.as_bytes().to_vec()),
            Self::Words => Piece::Bytes(format!(" {token}").into_bytes()),
            Self::Whole => Piece::Bytes(token.as_bytes().to_vec()),
        }
    }

    /// Whether tokens by themselves have no text.
    pub fn is_whole(&self) -> bool {
        matches!(self, Self::Whole)
    }

    /// The character dropped from the start of a text, and how often.
    pub fn strip(&self) -> Option<(char, usize)> {
        match self {
            Self::Pieces(rules) => rules.strip,
            _ => None,
        }
    }
}

impl PieceRules {
    /// Whether `step` can follow those added before, token by token.
    fn add(&mut self, step: &Value, fused: &mut bool) -> bool {
        // What ends a word is read with the tokens joined, so that only joining may follow.
        let open = !*fused && self.word_end.is_none() && !self.byte_fallback;
        match kind(step) {
            "Replace" | "Metaspace" | "WordPiece" | "Strip" if open => {
                let read = token_step(step);
                let known = read.is_some();
                self.steps.extend(read);
                return known;
            }
            "BPEDecoder" if open => {
                self.word_end = Some(step["suffix"].as_str().unwrap_or("</w>").to_owned());
            }
            "ByteFallback" if !*fused && self.word_end.is_none() => self.byte_fallback = true,
            "Fuse" => *fused = true,
            "Strip"
                if *fused
                    && self.strip.is_none()
                    && self.word_end.is_none()
                    && step["stop"].as_u64().unwrap_or(0) == 0 =>
            {
                let content = step["content"].as_str().and_then(|text| text.chars().next());
                let count = step["start"].as_u64().unwrap_or(0) as usize;
                self.strip = content.map(|content| (content, count));
            }
            _ => return false,
        }
        true
    }

    fn piece(&self, token: &str, first: bool) -> Piece {
        let text = self.steps.iter().fold(token.to_owned(), |text, step| step.apply(text, first));
        if let Some(end) = self.word_end.as_ref().filter(|end| text.contains(*end)) {
            return Piece::WordEnd { inside: text.replace(end, " "), last: text.replace(end, "") };
        }
        match self.byte_fallback.then(|| fallback_byte(&text)).flatten() {
            Some(byte) => Piece::Fallback(byte),
            None => Piece::Bytes(text.into_bytes()),
        }
    }
}

/// What a decoder does to each token by itself.
fn token_step(step: &Value) -> Option<Step> {
    let text = |key: &str| step[key].as_str().map(str::to_owned);
    Some(match (kind(step), step["pattern"]["String"].as_str(), text("content")) {
        ("Replace", Some(from), Some(to)) => Step::Replace(from.into(), to),
        ("Metaspace", ..) => {
            let mark = text("replacement").and_then(|text| text.chars().next());
            let never = step["prepend_scheme"] == "never"
                || (step["prepend_scheme"].is_null() && step["add_prefix_space"] == false);
            Step::Metaspace(mark.unwrap_or('▁'), !never)
        }
        ("Strip", _, Some(content)) => {
            let times = |key: &str| step[key].as_u64().unwrap_or(0) as usize;
            Step::Strip(content.chars().next()?, [times("start"), times("stop")])
        }
        _ => Step::Own(serde_json::from_value(step.clone()).ok()?),
    })
}

/// A token all of whose characters are dropped makes the tokenizer's own library panic.
fn strip(token: &str, content: char, start: usize, end: usize) -> String {
    let leading = token.chars().take(start).take_while(|c| *c == content).count();
    let rest = &token[leading * content.len_utf8()..];
    let trailing = rest.chars().rev().take(end).take_while(|c| *c == content).count();
    rest[..rest.len() - trailing * content.len_utf8()].to_owned()
}

/// The byte named by `<0xNN>`.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

fn flatten<'a>(step: &'a Value, steps: &mut Vec<&'a Value>) {
    match step["decoders"].as_array() {
        Some(inner) if kind(step) == "Sequence" => {
            inner.iter().for_each(|step| flatten(step, steps))
        }
        _ => steps.push(step),
    }
}

fn kind(step: &Value) -> &str {
    step["type"].as_str().unwrap_or("unnamed")
}

/// GPT-2's visible stand-ins: printable bytes stand for themselves, the others for the characters
/// from U+0100 on. Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", 2.2.
fn byte_level_alphabet() -> HashMap<char, u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut stand_ins = (0x100u32..).filter_map(char::from_u32);
    (0..=u8::MAX)
        .filter_map(|byte| {
            let shown = if printable(byte) { Some(char::from(byte)) } else { stand_ins.next() };
            shown.map(|shown| (shown, byte))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_byte_level_alphabet_covers_every_byte_once() {
        let alphabet = byte_level_alphabet();
        assert_eq!(alphabet.len(), 256);
        assert_eq!((alphabet[&'Ġ'], alphabet[&'Ċ'], alphabet[&'A']), (b' ', b'\n', b'A'));
    }

    #[test]
    fn pieces_follow_their_rules() {
        let decoder = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        let decoding = Decoding::from_json(&decoder);
        assert_eq!(decoding.piece("▁a", true), Piece::Bytes(b" a".to_vec()));
        assert_eq!(decoding.piece("<0xE2>", false), Piece::Fallback(0xE2));
        assert_eq!(decoding.piece("<0xÉ>", false), Piece::Bytes("<0xÉ>".into()));
        assert_eq!(decoding.strip(), Some((' ', 1)));
    }

    /// Token by token as the library that wrote the decoders does it at once.
    #[test]
    fn decoders_of_words_and_expressions_go_token_by_token() {
        let pieces = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
        let ends = json!({"type": "BPEDecoder", "suffix": "</w>"});
        let expression = json!({"type": "Replace", "pattern": {"Regex": "_+"}, "content": " "});
        let strip = json!({"type": "Strip", "content": "_", "start": 1, "stop": 1});
        let sequence =
            json!({"type": "Sequence", "decoders": [strip, expression, {"type": "Fuse"}]});
        let tokens = ["a__", "##b", "_c</w>", ".", "do ", "n't", "a</w>b", "__", "</w>", "e</w>"];
        for decoder in [pieces, ends, expression, strip, sequence] {
            let decoding = Decoding::from_json(&decoder);
            let own: DecoderWrapper = serde_json::from_value(decoder.clone()).unwrap();
            for count in 1..=tokens.len() {
                let piece = |(i, token): (usize, &&str)| match decoding.piece(token, i == 0) {
                    Piece::Bytes(bytes) => String::from_utf8(bytes).unwrap(),
                    Piece::WordEnd { last, .. } if i + 1 == count => last,
                    Piece::WordEnd { inside, .. } => inside,
                    Piece::Fallback(_) => unreachable!("there are no bytes"),
                };
                let text: String = tokens[..count].iter().enumerate().map(piece).collect();
                let all = tokens[..count].iter().map(|token| (*token).to_owned()).collect();
                assert_eq!(text, own.decode(all).unwrap(), "{decoder} {count}");
            }
        }
    }

    #[test]
    fn a_token_may_be_stripped_to_nothing() {
        let decoder = json!({"type": "Strip", "content": "é", "start": 1, "stop": 2});
        let decoding = Decoding::from_json(&decoder);
        for (token, left) in [("é", ""), ("éé", ""), ("éaéé", "a"), ("ééaéa", "éaéa")] {
            assert_eq!(decoding.piece(token, false), Piece::Bytes(left.into()), "{token}");
        }
    }

    #[test]
    fn a_decoder_of_all_tokens_together_is_known_as_one() {
        let spaces = json!({"type": "Replace", "pattern": {"String": "_"}, "content": " "});
        let ends = json!({"type": "BPEDecoder", "suffix": "</w>"});
        let strip = |stop: u32| json!({"type": "Strip", "content": " ", "start": 1, "stop": stop});
        let fuse = json!({"type": "Fuse"});
        let sequence =
            |steps: &[&Value]| Decoding::from_json(&json!({"type": "Sequence", "decoders": steps}));
        let bytes = json!({"type": "ByteLevel"});
        assert!(Decoding::from_json(&json!({"type": "CTC"})).is_whole());
        assert!(sequence(&[&bytes, &spaces]).is_whole());
        assert!(sequence(&[&fuse, &spaces]).is_whole());
        assert!(sequence(&[&ends, &spaces]).is_whole());
        assert!(sequence(&[&fuse, &strip(1)]).is_whole());
        assert!(sequence(&[&fuse, &strip(0), &strip(0)]).is_whole());
        assert!(!sequence(&[&spaces, &fuse, &strip(0)]).is_whole());
    }
}
