//! The demo model's corpus: a seeded generator of a small world of stories, facts, sums and talk.
//!
//! Sample `i` of the corpus with seed `s` is a function of `(s, i)` alone. Whether a sample is
//! trained on or held out is decided by a hash of what it says, so a held-out sample is a
//! combination of words the model has never been shown, however often it is drawn.

mod arithmetic;
mod french;
mod german;
pub mod grammar;
mod questions;
mod reading;
mod spanish;
mod stories;
mod talk;
mod translation;
pub mod world;

use sha2::{Digest, Sha256};

use grammar::Dice;

/// What a sample is about; held-out loss is stated per kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A short story in English, alone or asked for.
    Story,
    /// A question about the world and its answer.
    Question,
    /// Sums, counting, comparing.
    Arithmetic,
    /// Questions about a text given with them.
    Reading,
    /// Greetings, who are you, follow-ups, and what it does not know.
    Talk,
    /// Words of one language in another.
    Translation,
    German,
    French,
    Spanish,
}

impl Kind {
    /// Every kind, with how often it is drawn, in hundredths.
    pub const SHARES: [(Self, usize); 9] = [
        (Self::Story, 14),
        (Self::Question, 22),
        (Self::Arithmetic, 20),
        (Self::Reading, 10),
        (Self::Talk, 9),
        (Self::Translation, 5),
        (Self::German, 7),
        (Self::French, 7),
        (Self::Spanish, 6),
    ];

    /// As written in the model card.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Story => "stories",
            Self::Question => "questions",
            Self::Arithmetic => "arithmetic",
            Self::Reading => "reading",
            Self::Talk => "talk",
            Self::Translation => "translation",
            Self::German => "German",
            Self::French => "French",
            Self::Spanish => "Spanish",
        }
    }

    fn draw(dice: &mut Dice) -> Self {
        let mut at = dice.below(100);
        for (kind, share) in Self::SHARES {
            if at < share {
                return kind;
            }
            at -= share;
        }
        Self::Story
    }
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    System,
    User,
    Assistant,
}

impl Role {
    /// As written in the chat template.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// Plain text, as a completion would continue it.
    Text(String),
    /// A conversation.
    Chat(Vec<(Role, String)>),
}

/// One document and what it is about.
#[derive(Clone, Debug)]
pub struct Sample {
    pub kind: Kind,
    pub document: Document,
}

/// What a generator of one kind returns.
type Turns = Vec<(Role, String)>;

/// A question and its answer as a conversation.
fn exchange(question: String, answer: String) -> Turns {
    vec![(Role::User, question), (Role::Assistant, answer)]
}

/// One sample in this many is held out.
const HELD_OUT_IN: u8 = 32;

impl Sample {
    /// Sample `index` of the corpus with this seed.
    pub fn draw(seed: u64, index: u64) -> Self {
        let mut dice = Dice::new(seed, index);
        let kind = Kind::draw(&mut dice);
        Self { kind, document: careless(document(kind, &mut dice), &mut dice) }
    }

    /// True if this sample must not be trained on, whoever drew it.
    pub fn held_out(&self) -> bool {
        Sha256::digest(self.document.plain().as_bytes())[0] % HELD_OUT_IN == 0
    }
}

impl Document {
    /// Everything said in it, without markup but with the turns apart.
    pub fn plain(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Chat(turns) => {
                turns.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("\n")
            }
        }
    }
}

/// Now and then the user writes without capitals or without the last sign.
fn careless(mut document: Document, dice: &mut Dice) -> Document {
    if let Document::Chat(turns) = &mut document {
        let (lower, bare) = (dice.once_in(8), dice.once_in(8));
        for (_, text) in turns.iter_mut().filter(|(role, _)| *role == Role::User) {
            if lower {
                *text = text.to_lowercase();
            }
            if bare {
                *text = text.trim_end_matches(['?', '.', '!', ' ']).to_owned();
            }
        }
    }
    document
}

fn document(kind: Kind, dice: &mut Dice) -> Document {
    match kind {
        Kind::Story => stories::story(dice),
        Kind::Question => questions::document(dice),
        Kind::Arithmetic => arithmetic::document(dice),
        Kind::Reading => Document::Chat(reading::conversation(dice)),
        Kind::Talk => Document::Chat(talk::conversation(dice)),
        Kind::Translation => Document::Chat(translation::conversation(dice)),
        Kind::German => german::document(dice),
        Kind::French => french::document(dice),
        Kind::Spanish => spanish::document(dice),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashMap, HashSet};

    #[test]
    fn the_corpus_is_a_function_of_its_seed() {
        for i in 0..200 {
            assert_eq!(Sample::draw(1, i).document, Sample::draw(1, i).document);
        }
        assert!((0..50).any(|i| Sample::draw(1, i).document != Sample::draw(2, i).document));
    }

    #[test]
    fn no_template_mark_is_left_in_a_document() {
        for i in 0..20_000 {
            let text = Sample::draw(5, i).document.plain();
            let bad = text.find(['{', '}', '[', ']', '|', '^', '~']);
            assert!(bad.is_none() && !text.contains("  "), "sample {i}: {text}");
        }
    }

    #[test]
    fn every_kind_has_variety_and_a_held_out_part() {
        let mut seen: HashMap<Kind, HashSet<String>> = HashMap::new();
        let mut held_out: HashMap<Kind, usize> = HashMap::new();
        for i in 0..20_000 {
            let sample = Sample::draw(9, i);
            *held_out.entry(sample.kind).or_default() += usize::from(sample.held_out());
            seen.entry(sample.kind).or_default().insert(sample.document.plain());
        }
        for (kind, _) in Kind::SHARES {
            assert!(seen[&kind].len() > 150, "{kind:?}: {} different", seen[&kind].len());
            assert!(held_out[&kind] > 0, "{kind:?} holds nothing out");
        }
    }
}
