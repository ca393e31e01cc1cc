//! Questions about the world, each with one answer, and the same facts as plain sentences.

use super::grammar::{Dice, Names, expand, names};
use super::world::{ANIMALS, Animal, COUNTRIES, DAYS, MONTHS, OPPOSITES, THINGS};
use super::{Document, Role, Turns, exchange};

/// A conversation of one to three questions, or a plain text of facts.
pub fn document(dice: &mut Dice) -> Document {
    match dice.below(8) {
        0 => Document::Text(facts(dice)),
        1 => Document::Chat(conversation(dice)),
        _ => Document::Chat(with_system(question(dice), dice)),
    }
}

/// Now and then a system message that changes nothing.
fn with_system(turns: Turns, dice: &mut Dice) -> Turns {
    if !dice.once_in(10) {
        return turns;
    }
    let system = expand(
        "[You are a helpful assistant.|You are a friendly assistant.|Answer the questions of the user.|Be kind and short.]",
        &Names::new(),
        dice,
    );
    std::iter::once((Role::System, system)).chain(turns).collect()
}

/// Two or three questions in a row.
fn conversation(dice: &mut Dice) -> Turns {
    (0..dice.between(2, 3)).flat_map(|_| question(dice)).collect()
}

/// One question and its answer.
pub fn question(dice: &mut Dice) -> Turns {
    match dice.below(14) {
        0 | 1 => sound(dice),
        2 => home(dice),
        3 => young_or_food(dice),
        4 => legs(dice),
        5 | 6 => colour(dice),
        7 | 8 => capital(dice),
        9 => opposite(dice),
        10 | 11 => calendar(dice),
        12 => kind_of(dice),
        _ => which_animal(dice),
    }
}

fn ask(template: &str, pairs: &Names<'_>, answer: &str, dice: &mut Dice) -> Turns {
    let question = expand(template, pairs, dice);
    exchange(question, expand(answer, pairs, dice))
}

fn sound(dice: &mut Dice) -> Turns {
    let animal = dice.one(ANIMALS);
    let names = names([("x", animal.name), ("s", animal.says)]);
    ask(
        "[What does a~ {x} say?|What sound does a~ {x} make?|Which sound does a~ {x} make?|How does a~ {x} sound?|What noise does a~ {x} make?|Tell me what a~ {x} says.]",
        &names,
        "^a~ {x} says {s}.",
        dice,
    )
}

fn home(dice: &mut Dice) -> Turns {
    let animal = dice.one(ANIMALS);
    let names = names([("x", animal.name), ("h", animal.home)]);
    ask(
        "[Where does a~ {x} live?|Where is the home of a~ {x}?|Tell me where a~ {x} lives.|Do you know where a~ {x} lives?]",
        &names,
        "^a~ {x} lives {h}.",
        dice,
    )
}

fn young_or_food(dice: &mut Dice) -> Turns {
    let animal = dice.one(ANIMALS);
    let names = names([("x", animal.name), ("y", animal.young), ("f", animal.eats)]);
    match dice.below(2) {
        0 => ask(
            "[What is a young {x} called?|What do you call a baby {x}?|What is the baby of a~ {x} called?]",
            &names,
            "A young {x} is called a~ {y}.",
            dice,
        ),
        _ => ask(
            "[What does a~ {x} eat?|What food does a~ {x} like?|What does a~ {x} like to eat?|Tell me what a~ {x} eats.]",
            &names,
            "^a~ {x} eats {f}.",
            dice,
        ),
    }
}

fn legs(dice: &mut Dice) -> Turns {
    let animal = dice.one(ANIMALS);
    let count = animal.legs.to_string();
    let names = names([("x", animal.name), ("n", &count)]);
    ask(
        "[How many legs does a~ {x} have?|How many legs has a~ {x}?|Do you know how many legs a~ {x} has?]",
        &names,
        "^a~ {x} has {n} legs.",
        dice,
    )
}

fn colour(dice: &mut Dice) -> Turns {
    let (thing, plural, colour, _) = dice.one(THINGS);
    let is = if *plural { "are" } else { "is" };
    let names = names([("x", thing), ("is", is), ("c", colour)]);
    ask(
        "[What colour {is} {x}?|Which colour {is} {x}?|What color {is} {x}?|Tell me the colour of {x}.|What is the colour of {x}?]",
        &names,
        "^{x} {is} {c}.",
        dice,
    )
}

fn capital(dice: &mut Dice) -> Turns {
    let country = dice.one(COUNTRIES);
    let names = names([("x", country.name), ("c", country.capital)]);
    match dice.below(4) {
        0 => ask(
            "[In which country is {c}?|Which country is {c} in?|{c} is the capital of which country?]",
            &names,
            "{c} is [the capital of|the capital of] {x}.",
            dice,
        ),
        _ => ask(
            "[What is the capital of {x}?|Which city is the capital of {x}?|Tell me the capital of {x}.|Name the capital of {x}.|What's the capital of {x}?|Do you know the capital of {x}?]",
            &names,
            "The capital of {x} is {c}.",
            dice,
        ),
    }
}

fn opposite(dice: &mut Dice) -> Turns {
    let (a, b) = dice.one(OPPOSITES);
    let (a, b) = if dice.once_in(2) { (a, b) } else { (b, a) };
    let names = names([("a", a), ("b", b)]);
    ask(
        "[What is the opposite of {a}?|Tell me the opposite of {a}.|What's the opposite of {a}?|Which word is the opposite of {a}?]",
        &names,
        "The opposite of {a} is {b}.",
        dice,
    )
}

fn calendar(dice: &mut Dice) -> Turns {
    if dice.once_in(8) {
        return lists(dice);
    }
    let (list, word): (&[&str], _) =
        if dice.once_in(2) { (&DAYS, "day") } else { (&MONTHS, "month") };
    let at = dice.below(list.len());
    let after = dice.once_in(2);
    let step = if after { 1 } else { list.len() - 1 };
    let names = names([
        ("x", list[at]),
        ("y", list[(at + step) % list.len()]),
        ("t", word),
        ("w", if after { "after" } else { "before" }),
    ]);
    ask(
        "[What {t} comes {w} {x}?|Which {t} comes {w} {x}?|What comes {w} {x}?|Which {t} is {w} {x}?]",
        &names,
        "^{w} {x} comes {y}.",
        dice,
    )
}

fn lists(dice: &mut Dice) -> Turns {
    let (question, answer) = match dice.below(4) {
        0 => (
            "[Name the days of the week.|What are the days of the week?|List the days of the week.]",
            DAYS.join(", ") + ".",
        ),
        1 => (
            "[Name the months of the year.|What are the months of the year?|List the months.]",
            MONTHS.join(", ") + ".",
        ),
        2 => (
            "[How many days are in a week?|How many days does a week have?]",
            "A week has 7 days.".into(),
        ),
        _ => (
            "[How many months are in a year?|How many months does a year have?]",
            "A year has 12 months.".into(),
        ),
    };
    exchange(expand(question, &Names::new(), dice), answer)
}

fn kind_of(dice: &mut Dice) -> Turns {
    let known: Vec<_> = THINGS.iter().filter(|thing| !thing.3.is_empty()).collect();
    let (thing, _, _, kind) = dice.one(&known);
    let other = dice.pick(&["fruit", "vegetable", "animal"]);
    let names = names([("x", thing), ("k", kind), ("o", other)]);
    let bare = matches!(*kind, "food" | "drink");
    match (bare, *kind == other) {
        (true, _) => {
            ask("[What is {x}?|What kind of thing is {x}?]", &names, "^{x} is a {k}.", dice)
        }
        (_, true) => ask("Is {x} a~ {o}?", &names, "Yes, {x} is a~ {k}.", dice),
        _ if dice.once_in(2) => {
            ask("Is {x} a~ {o}?", &names, "No, {x} is not a~ {o}. It is a~ {k}.", dice)
        }
        _ => ask("[What is {x}?|What kind of thing is {x}?]", &names, "^{x} is a~ {k}.", dice),
    }
}

fn which_animal(dice: &mut Dice) -> Turns {
    let unique = |animal: &&Animal| ANIMALS.iter().filter(|a| a.young == animal.young).count() == 1;
    let known: Vec<_> = ANIMALS.iter().filter(unique).collect();
    let animal = dice.one(&known);
    let names = names([("x", animal.name), ("y", animal.young), ("s", animal.says)]);
    match dice.below(2) {
        0 => ask(
            "[Which animal says {s}?|What animal says {s}?|Who says {s}?]",
            &names,
            "^a~ {x} says {s}.",
            dice,
        ),
        _ => ask(
            "[What is a~ {y}?|What does the word {y} mean?]",
            &names,
            "^a~ {y} is a young {x}.",
            dice,
        ),
    }
}

/// A short text of plain facts about one or two subjects.
fn facts(dice: &mut Dice) -> String {
    let mut sentences = Vec::new();
    for _ in 0..dice.between(1, 2) {
        sentences.push(match dice.below(4) {
            0 | 1 => about_animal(dice),
            2 => about_country(dice),
            _ => about_thing(dice),
        });
    }
    sentences.join(" ")
}

fn about_animal(dice: &mut Dice) -> String {
    let a = dice.one(ANIMALS);
    let legs = a.legs.to_string();
    let names = names([
        ("x", a.name),
        ("s", a.says),
        ("h", a.home),
        ("y", a.young),
        ("f", a.eats),
        ("n", &legs),
    ]);
    expand(
        "^a~ {x} is an animal. It has {n} legs. [It lives {h}.|It lives {h}. It eats {f}.|It eats {f}.] ^a~ {x} says {s}. [A young {x} is called a~ {y}.|Its young one is called a~ {y}.]",
        &names,
        dice,
    )
}

fn about_country(dice: &mut Dice) -> String {
    let c = dice.one(COUNTRIES);
    let names = names([("x", c.name), ("c", c.capital)]);
    expand(
        "[{x} is a country. The capital of {x} is {c}.|{c} is a city. It is the capital of {x}.|The capital of {x} is {c}.]",
        &names,
        dice,
    )
}

fn about_thing(dice: &mut Dice) -> String {
    let (thing, plural, colour, kind) = dice.one(THINGS);
    let names = names([
        ("x", thing),
        ("c", colour),
        ("k", kind),
        ("is", if *plural { "are" } else { "is" }),
    ]);
    let what = if kind.is_empty() { "" } else { " ^{x} is a~ {k}." };
    expand(&format!("^{{x}} {{is}} {{c}}.{what}"), &names, dice)
}
