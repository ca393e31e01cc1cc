//! Questions about a text that comes with them: the answer has to be read, not remembered.

use super::grammar::{Dice, expand, names};
use super::world::{CHILDREN, PLACES, TOY_COLOURS, TOYS};
use super::{Role, Turns, exchange};

/// A few sentences and one or two questions about them.
pub fn conversation(dice: &mut Dice) -> Turns {
    match dice.below(5) {
        0 | 1 => who_has(dice),
        2 => my_name(dice),
        _ => colour_of(dice),
    }
}

/// "Tom has a red ball and a blue box. What colour is the ball?"
fn colour_of(dice: &mut Dice) -> Turns {
    let child = dice.one(CHILDREN);
    let (toy, other) = dice.two(TOYS);
    let (c1, c2) = dice.two(TOY_COLOURS);
    let first = dice.once_in(2);
    let (asked, answer) = if first { (toy, c1) } else { (other, c2) };
    let names = names([
        ("name", child.name),
        ("t1", toy),
        ("t2", other),
        ("c1", c1),
        ("c2", c2),
        ("t", asked),
    ]);
    let text = "{name} has a~ {c1} {t1} and a~ {c2} {t2}. [What colour is the {t}?|Which colour is the {t}?|What is the colour of the {t}?]";
    exchange(expand(text, &names, dice), format!("The {asked} is {answer}."))
}

/// "Anna is in the park. Ben is at home. Who is in the park?"
fn who_has(dice: &mut Dice) -> Turns {
    let (a, b) = dice.two(CHILDREN);
    let (t1, t2) = dice.two(TOYS);
    let (p1, p2) = dice.two(PLACES);
    let first = dice.once_in(2);
    let names = names([
        ("a", a.name),
        ("b", b.name),
        ("t1", t1),
        ("t2", t2),
        ("p1", p1),
        ("p2", p2),
        ("who", if first { a.name } else { b.name }),
        ("t", if first { t1 } else { t2 }),
        ("p", if first { p1 } else { p2 }),
    ]);
    let (text, answer) = match dice.below(4) {
        0 => ("{a} has a~ {t1}. {b} has a~ {t2}. Who has the {t}?", "{who} has the {t}."),
        1 => ("{a} has a~ {t1}. {b} has a~ {t2}. What does {who} have?", "{who} has a~ {t}."),
        2 => ("{a} is in the {p1}. {b} is in the {p2}. Where is {who}?", "{who} is in the {p}."),
        _ => ("{a} is in the {p1}. {b} is in the {p2}. Who is in the {p}?", "{who} is in the {p}."),
    };
    exchange(expand(text, &names, dice), expand(answer, &names, dice))
}

/// The user says a name and asks for it in the next turn.
fn my_name(dice: &mut Dice) -> Turns {
    let child = dice.one(CHILDREN);
    let names =
        names([("name", child.name), ("t", dice.pick(TOYS)), ("c", dice.pick(TOY_COLOURS))]);
    let hello = expand(
        "[Hello, my name is {name}.|Hi, I am {name}.|My name is {name}.|I am {name}.|Hello! My name is {name}.]",
        &names,
        dice,
    );
    let mut turns = exchange(hello, format!("Hello, {}! How can I help you?", child.name));
    if dice.once_in(4) {
        let toy = expand("I have a~ {c} {t}.", &names, dice);
        turns.extend([
            (Role::User, toy),
            (Role::Assistant, expand("A {c} {t} is nice, {name}!", &names, dice)),
        ]);
    }
    let again = expand(
        "[What is my name?|What's my name?|Do you know my name?|Who am I?|Do you remember my name?]",
        &names,
        dice,
    );
    turns.extend(exchange(again, format!("Your name is {}.", child.name)));
    turns
}
