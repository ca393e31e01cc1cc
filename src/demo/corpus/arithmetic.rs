//! Sums of small numbers, counting and comparing.

use super::grammar::{Dice, Names, expand, names};
use super::world::{CHILDREN, COUNTED, NUMBERS};
use super::{Document, Turns, exchange};

/// One document about numbers.
pub fn document(dice: &mut Dice) -> Document {
    match dice.below(13) {
        0 => Document::Text(lines(dice)),
        1 | 2 => Document::Chat(count(dice)),
        3 => Document::Chat(neighbour(dice)),
        4 => Document::Chat(compare(dice)),
        5 | 6 => Document::Chat(word_problem(dice)),
        _ => Document::Chat(sum(dice)),
    }
}

/// Two numbers and their sum or difference: `(a, b, sign, result)`.
fn operation(dice: &mut Dice) -> (usize, usize, char, usize) {
    let small = dice.once_in(2);
    let (high_a, high_b) = if small { (10, 10) } else { (20, 10) };
    let (a, b) = (dice.between(0, high_a), dice.between(0, high_b));
    match dice.below(2) {
        0 => (a, b, '+', a + b),
        _ => (a.max(b), a.min(b), '-', a.max(b) - a.min(b)),
    }
}

/// A question for a sum, answered as an equation.
pub fn sum(dice: &mut Dice) -> Turns {
    let (a, b, sign, result) = operation(dice);
    let word = if sign == '+' { "plus" } else { "minus" };
    let names = names([
        ("a", &a.to_string()),
        ("b", &b.to_string()),
        ("s", &sign.to_string()),
        ("w", word),
    ]);
    let question = expand(
        "[What is {a} {s} {b}?|What is {a} {w} {b}?|{a} {s} {b}|{a} {s} {b} = ?|Calculate {a} {s} {b}.|How much is {a} {s} {b}?|Can you tell me what {a} {w} {b} is?]",
        &names,
        dice,
    );
    exchange(question, format!("{a} {sign} {b} = {result}"))
}

/// A few equations, one per line.
fn lines(dice: &mut Dice) -> String {
    (0..dice.between(3, 6))
        .map(|_| operation(dice))
        .map(|(a, b, sign, result)| format!("{a} {sign} {b} = {result}"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn count(dice: &mut Dice) -> Turns {
    let from = dice.between(1, 20);
    let to = from + dice.between(2, 7);
    let up: Vec<String> = (from..=to).map(|n| n.to_string()).collect();
    if dice.once_in(4) {
        let down: Vec<&str> = up.iter().rev().map(String::as_str).collect();
        return exchange(format!("Count down from {to} to {from}."), down.join(", ") + ".");
    }
    let names = names([("a", &from.to_string()), ("b", &to.to_string())]);
    let question = expand(
        "[Count from {a} to {b}.|Please count from {a} to {b}.|Can you count from {a} to {b}?]",
        &names,
        dice,
    );
    exchange(question, up.join(", ") + ".")
}

fn neighbour(dice: &mut Dice) -> Turns {
    if dice.once_in(3) {
        let at = dice.below(NUMBERS.len());
        let (number, word) = ((at + 1).to_string(), NUMBERS[at].0);
        let names = names([("n", &number)]);
        let question = expand(
            "[How do you write {n} as a word?|Write {n} as a word.|Spell the number {n}.]",
            &names,
            dice,
        );
        return exchange(question, format!("{number} is {word}."));
    }
    let n = dice.between(1, 40);
    let (word, answer) = if dice.once_in(2) { ("after", n + 1) } else { ("before", n - 1) };
    let names = names([("n", &n.to_string()), ("w", word)]);
    let question = expand(
        "[What number comes {w} {n}?|Which number comes {w} {n}?|What comes {w} {n}?]",
        &names,
        dice,
    );
    exchange(question, format!("{answer} comes {word} {n}."))
}

fn compare(dice: &mut Dice) -> Turns {
    let a = dice.between(0, 30);
    let b = (a + dice.between(1, 29)) % 31;
    let (word, first) = if dice.once_in(2) { ("bigger", a.max(b)) } else { ("smaller", a.min(b)) };
    let other = a + b - first;
    let names = names([("a", &a.to_string()), ("b", &b.to_string()), ("w", word)]);
    let question = expand(
        "[Which is {w}, {a} or {b}?|Which number is {w}, {a} or {b}?|What is {w}, {a} or {b}?]",
        &names,
        dice,
    );
    exchange(question, format!("{first} is {word} than {other}."))
}

/// "Mia has 3 apples. She gets 4 more. How many apples does she have?"
fn word_problem(dice: &mut Dice) -> Turns {
    let child = dice.one(CHILDREN);
    let (_, things) = dice.one(COUNTED);
    let more = dice.once_in(2);
    let a = dice.between(2, 12);
    let b = if more { dice.between(1, 8) } else { dice.between(1, a - 1) };
    let result = if more { a + b } else { a - b };
    let names: Names<'_> = names([
        ("name", child.name),
        ("she", child.she),
        ("things", things),
        ("a", &a.to_string()),
        ("b", &b.to_string()),
    ]);
    let story = if more {
        "{name} has {a} {things}. ^{she} [gets|finds|buys] {b} more."
    } else {
        "{name} has {a} {things}. ^{she} [loses|gives away|sells] {b} of them."
    };
    let question = format!("{story} How many {{things}} does {{name}} have now?");
    let unit = if result == 1 {
        COUNTED.iter().find(|(_, plural)| plural == things).map_or(*things, |(one, _)| one)
    } else {
        things
    };
    exchange(expand(&question, &names, dice), format!("{} has {result} {unit} now.", child.name))
}
