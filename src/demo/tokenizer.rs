//! The demo model's tokenizer: byte-level BPE, trained on the corpus.
//!
//! Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units"; digits
//! stand alone so that sums can be learned digit by digit.

use serde_json::json;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    SplitDelimiterBehavior, Tokenizer, TokenizerBuilder,
};

use super::DemoError;
use super::corpus::{Document, Role, Sample};
use crate::domain::{Example, IGNORE_INDEX};

/// Ends (and may begin) a plain text.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Never produced; fills rows where somebody needs filling.
pub const PAD: &str = "<|pad|>";
/// Begins a turn of a conversation.
pub const TURN_START: &str = "<|im_start|>";
/// Ends a turn of a conversation.
pub const TURN_END: &str = "<|im_end|>";

/// The special tokens; their ids are their places here.
pub const SPECIAL_TOKENS: [&str; 4] = [END_OF_TEXT, PAD, TURN_START, TURN_END];
pub const END_OF_TEXT_ID: u32 = 0;
pub const PAD_ID: u32 = 1;
pub const TURN_END_ID: u32 = 3;

/// Words, single digits, runs of signs and of space: the split of Qwen 2's tokenizer.
const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// ChatML (OpenAI 2023): each turn between its two marks, under the name of its role.
pub const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Samples the merges are learned from.
const TRAINING_SAMPLES: u64 = 40_000;

/// Learns a tokenizer of `vocab_size` tokens from the corpus with this seed.
///
/// # Errors
/// [`DemoError::Tokenizer`] if the library refuses the set-up.
pub fn train(seed: u64, vocab_size: usize) -> Result<Tokenizer, DemoError> {
    let mut trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(vocab_size)
        .min_frequency(2)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(SPECIAL_TOKENS.iter().map(|t| AddedToken::from(*t, true)).collect())
        .build();
    let texts = (0..TRAINING_SAMPLES)
        .map(|index| Sample::draw(seed, index))
        .filter(|sample| !sample.held_out())
        .map(|sample| sample.document.plain());
    let mut tokenizer = TokenizerBuilder::<
        BPE,
        NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    >::new()
    .with_model(BPE::default())
    .with_pre_tokenizer(Some(pre_tokenizer()?))
    .with_decoder(Some(DecoderWrapper::ByteLevel(bytes())))
    .build()
    .map_err(|error| DemoError::Tokenizer(error.to_string()))?;
    tokenizer
        .train(&mut trainer, texts)
        .map_err(|error| DemoError::Tokenizer(error.to_string()))?;
    let json =
        tokenizer.to_string(true).map_err(|error| DemoError::Tokenizer(error.to_string()))?;
    Tokenizer::from_bytes(json).map_err(|error| DemoError::Tokenizer(error.to_string()))
}

fn pre_tokenizer() -> Result<PreTokenizerWrapper, DemoError> {
    let split =
        Split::new(SplitPattern::Regex(WORDS.to_owned()), SplitDelimiterBehavior::Isolated, false)
            .map_err(|error| DemoError::Tokenizer(error.to_string()))?;
    Ok(Sequence::new(vec![split.into(), bytes().into()]).into())
}

/// Bytes as printable characters, with neither a leading space nor a split of its own.
fn bytes() -> ByteLevel {
    ByteLevel::new(false, false, false)
}

/// `tokenizer_config.json`, as transformers reads it.
pub fn config(context_length: usize) -> serde_json::Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": false,
        "add_bos_token": false,
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": PAD,
        "additional_special_tokens": [TURN_START, TURN_END],
        "chat_template": CHAT_TEMPLATE,
    })
}

/// A document as the model meets it: a text that ends with an end of text and, every second time,
/// begins with one (a prompt may come with it or without), or a conversation in the form of
/// [`CHAT_TEMPLATE`].
pub fn render(document: &Document) -> String {
    match document {
        Document::Text(text) if text.len() % 2 == 0 => format!("{text}{END_OF_TEXT}"),
        Document::Text(text) => format!("{END_OF_TEXT}{text}{END_OF_TEXT}"),
        Document::Chat(turns) => turns
            .iter()
            .map(|(role, text)| format!("{TURN_START}{}\n{text}{TURN_END}\n", role.as_str()))
            .collect(),
    }
}

/// A document as an example: of a text every token is learned, of a conversation what the
/// assistant says and where it ends. Nobody can guess what a user will ask, so to learn that too
/// would only add noise to the gradient.
///
/// # Errors
/// [`DemoError::Tokenizer`] if the text cannot be encoded.
pub fn example(tokenizer: &Tokenizer, document: &Document) -> Result<Example, DemoError> {
    let mut example = Example::default();
    let mut add = |text: &str, learned: bool| {
        let encoding = tokenizer.encode(text, false);
        let encoding = encoding.map_err(|error| DemoError::Tokenizer(error.to_string()))?;
        let label = |&id: &u32| if learned { id as i32 } else { IGNORE_INDEX };
        example.ids.extend(encoding.get_ids());
        example.labels.extend(encoding.get_ids().iter().map(label));
        Ok::<_, DemoError>(())
    };
    match document {
        Document::Text(_) => add(&render(document), true)?,
        Document::Chat(turns) => {
            for (role, text) in turns {
                add(&format!("{TURN_START}{}\n", role.as_str()), false)?;
                add(&format!("{text}{TURN_END}"), *role == Role::Assistant)?;
                add("\n", false)?;
            }
        }
    }
    Ok(example)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_is_the_document_as_rendered_and_teaches_what_the_assistant_says() {
        let tokenizer = train(1, 400).expect("a tokenizer");
        let turns = [(Role::User, "Hi!"), (Role::Assistant, "Hello, you.")];
        let turns = turns.map(|(role, text)| (role, text.to_owned())).to_vec();
        let example = example(&tokenizer, &Document::Chat(turns.clone())).expect("an example");
        let whole = tokenizer.encode(render(&Document::Chat(turns)), false).expect("encodes");
        assert_eq!(example.ids, whole.get_ids());
        let learned = example.labels.iter().filter(|&&label| label != IGNORE_INDEX);
        let learned: Vec<u32> = learned.map(|&label| label as u32).collect();
        let said = tokenizer.decode(&learned, false).expect("decodes");
        assert_eq!(said, format!("Hello, you.{TURN_END}"));
    }

    #[test]
    fn training_twice_gives_the_same_tokenizer_and_loses_no_text() {
        let first = train(1, 400).expect("a tokenizer");
        let second = train(1, 400).expect("a tokenizer");
        assert_eq!(first.to_string(false).ok(), second.to_string(false).ok());
        for (id, token) in SPECIAL_TOKENS.iter().enumerate() {
            assert_eq!(first.token_to_id(token), Some(id as u32));
        }
        for text in ["Once upon a time, 12 + 7 = 19.", "naïve «Füchse» ¿qué? 日本 🦊\n\n x"]
        {
            let ids = first.encode(text, false).expect("encodes");
            assert_eq!(first.decode(ids.get_ids(), false).expect("decodes"), text);
        }
    }
}
