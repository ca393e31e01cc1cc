//! The small template language the corpus is written in.
//!
//! `[a|b|c]` picks one of the alternatives (they nest), `{name}` is replaced by a variable, `a~`
//! becomes "a" or "an" by the sound of the next word, and `^` raises the next letter.

use std::collections::HashMap;

use crate::train::rng::{Site, Stream};

/// A source of choices for one sample: numbers in order, from a stream of its own.
#[derive(Debug)]
pub struct Dice {
    stream: Stream,
    next: u64,
}

impl Dice {
    /// The dice of sample `index` of the corpus with this seed.
    pub fn new(seed: u64, index: u64) -> Self {
        Self { stream: Stream::new(seed, index, Site::Shuffle), next: 0 }
    }

    /// Uniform in `0..bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.next += 1;
        self.stream.below(self.next, bound)
    }

    /// Uniform in `low..=high`.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of these words.
    pub fn pick<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.below(words.len())]
    }

    /// One of the list.
    pub fn one<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    /// Two different ones of the list.
    pub fn two<'a, T>(&mut self, list: &'a [T]) -> (&'a T, &'a T) {
        let first = self.below(list.len());
        let second = (first + 1 + self.below(list.len() - 1)) % list.len();
        (&list[first], &list[second])
    }
}

/// The variables of one sample.
pub type Names<'a> = HashMap<&'a str, String>;

/// Variables from pairs.
pub fn names<'a, const N: usize>(pairs: [(&'a str, &str); N]) -> Names<'a> {
    pairs.into_iter().map(|(name, value)| (name, value.to_owned())).collect()
}

/// Expands a template.
pub fn expand(template: &str, names: &Names<'_>, dice: &mut Dice) -> String {
    let mut text = String::new();
    choose(template, dice, &mut text);
    finish(&substitute(&text, names))
}

/// Resolves `[a|b]`, innermost included, left to right.
fn choose(template: &str, dice: &mut Dice, out: &mut String) {
    let mut rest = template;
    while let Some(open) = rest.find('[') {
        out.push_str(&rest[..open]);
        let (inner, after) = bracketed(&rest[open + 1..]);
        let options = alternatives(inner);
        choose(options[dice.below(options.len())], dice, out);
        rest = after;
    }
    out.push_str(rest);
}

/// Splits `inner] after` at the bracket that closes.
fn bracketed(text: &str) -> (&str, &str) {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '[' => depth += 1,
            ']' if depth == 0 => return (&text[..at], &text[at + 1..]),
            ']' => depth -= 1,
            _ => {}
        }
    }
    (text, "")
}

/// Splits at the bars that are not inside inner brackets.
fn alternatives(inner: &str) -> Vec<&str> {
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (at, c) in inner.char_indices() {
        match c {
            '[' => depth += 1,
            ']' => depth -= 1,
            '|' if depth == 0 => {
                found.push(&inner[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    found.push(&inner[start..]);
    found
}

/// Replaces `{name}`; an unknown name stays, and the corpus test finds its brace.
fn substitute(text: &str, names: &Names<'_>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(open) = rest.find('{') {
        out.push_str(&rest[..open]);
        let Some(close) = rest[open..].find('}') else { break };
        match names.get(&rest[open + 1..open + close]) {
            Some(value) => out.push_str(value),
            None => out.push_str(&rest[open..=open + close]),
        }
        rest = &rest[open + close + 1..];
    }
    out.push_str(rest);
    out
}

/// Settles `a~` and `^`.
fn finish(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    let mut raise = false;
    while let Some(c) = chars.next() {
        match c {
            '^' => raise = true,
            '~' => {
                let next = chars.clone().nth(1);
                if next.is_some_and(|n| "aeiouAEIOU".contains(n)) {
                    out.push('n');
                }
            }
            c if raise => {
                out.extend(c.to_uppercase());
                raise = false;
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_expanded_with_articles_and_capitals() {
        let names = names([("animal", "owl"), ("colour", "red")]);
        let text =
            expand("^a~ {animal} and a~ {colour} [fox|fox[|]].", &names, &mut Dice::new(1, 2));
        assert_eq!(text, "An owl and a red fox.");
    }

    #[test]
    fn every_alternative_comes_up() {
        let seen: std::collections::HashSet<String> =
            (0..64).map(|i| expand("[a|b[c|d]]", &Names::new(), &mut Dice::new(3, i))).collect();
        assert_eq!(seen.len(), 3);
    }
}
