//! Words of one language in another.

use super::grammar::{Dice, expand, names};
use super::world::{ANIMALS, COLOURS, NUMBERS, WORDS};
use super::{Turns, exchange};

const LANGUAGES: [&str; 3] = ["German", "French", "Spanish"];

/// One question for a word, in English.
pub fn conversation(dice: &mut Dice) -> Turns {
    let language = dice.below(LANGUAGES.len());
    let (english, foreign) = pair(language, dice);
    let names = names([("e", english), ("f", foreign), ("l", LANGUAGES[language])]);
    if dice.once_in(3) {
        let question = expand(
            "[What does {f} mean in English?|What is {f} in English?|Translate {f} into English.|What does the {l} word {f} mean?]",
            &names,
            dice,
        );
        return exchange(question, expand("{f} means {e}.", &names, dice));
    }
    let question = expand(
        "[How do you say {e} in {l}?|What is {e} in {l}?|Translate {e} into {l}.|What is the {l} word for {e}?]",
        &names,
        dice,
    );
    exchange(question, expand("In {l}, {e} is {f}.", &names, dice))
}

/// A word in English and in language `language`.
fn pair(language: usize, dice: &mut Dice) -> (&'static str, &'static str) {
    let foreign = |words: (&'static str, &'static str, &'static str)| match language {
        0 => words.0,
        1 => words.1,
        _ => words.2,
    };
    if dice.once_in(3) {
        let animal = dice.one(ANIMALS);
        return (animal.name, foreign((animal.german, animal.french, animal.spanish)));
    }
    let list = *dice.one(&[COLOURS, NUMBERS, WORDS, WORDS]);
    let &(english, german, french, spanish) = dice.one(list);
    (english, foreign((german, french, spanish)))
}
