//! Short stories in English: named children and animals, a small plot, a good end.

use super::grammar::{Dice, Names, expand, names};
use super::world::{CHILDREN, FOODS, PLACES, STORY_ANIMALS, TOY_COLOURS, TOYS};
use super::{Document, exchange};

/// A story as a text, or as the answer to a request.
pub fn story(dice: &mut Dice) -> Document {
    let told = tell(dice);
    if !dice.once_in(3) {
        return Document::Text(told.text);
    }
    let request = match dice.below(3) {
        0 => "[Tell me a story.|Please tell me a story.|Can you tell me a short story?|Write a short story.|Tell a story.]".to_owned(),
        _ => format!("[Tell me a story about {0}.|Write a story about {0}.|Can you tell me a story about {0}?|Please tell me a story about {0}.|I want a story about {0}.]", told.about),
    };
    Document::Chat(exchange(expand(&request, &Names::new(), dice), told.text))
}

struct Told {
    /// What it may be asked for as: "a fox", "a boy named Tom".
    about: String,
    text: String,
}

/// What a plot may name: a hero, a helper, and the things of the day.
fn cast(dice: &mut Dice) -> (Names<'static>, String) {
    let (animal, other) = dice.two(STORY_ANIMALS);
    let (colour, second) = dice.two(TOY_COLOURS);
    let mut names: Names<'static> = names([
        ("kind", animal.0),
        ("pet", animal.1),
        ("kind2", other.0),
        ("pet2", other.1),
        ("toy", dice.pick(TOYS)),
        ("colour", colour),
        ("colour2", second),
        ("place", dice.pick(PLACES)),
        ("food", dice.pick(FOODS)),
    ]);
    let child = dice.one(CHILDREN);
    let about = if dice.once_in(2) {
        for (key, value) in
            [("hero", child.name), ("she", child.she), ("her", child.her), ("obj", child.obj)]
        {
            names.insert(key, value.to_owned());
        }
        names.insert(
            "intro",
            format!("a [little|young|small|happy] {} named {}", child.girl, child.name),
        );
        format!("a {} named {}", child.girl, child.name)
    } else {
        let she = if matches!(animal.1, "Daisy" | "Olga" | "Tilly" | "Minka") {
            ("she", "her", "her")
        } else {
            ("he", "his", "him")
        };
        for (key, value) in [("hero", animal.1), ("she", she.0), ("her", she.1), ("obj", she.2)] {
            names.insert(key, value.to_owned());
        }
        names.insert(
            "intro",
            format!("a [little|young|small|happy] {} named {}", animal.0, animal.1),
        );
        // The helper must be somebody else.
        names.insert("kind", other.0.to_owned());
        names.insert("pet", other.1.to_owned());
        format!("{} {}", if animal.0 == "owl" { "an" } else { "a" }, animal.0)
    };
    (names, about)
}

const OPENINGS: &str = "[Once upon a time, there was {intro}.|There once was {intro}.|Once there was {intro}.|One day, {intro} went out to play.]";

const ENDINGS: &str = "[They were happy all day.|They became good friends.|From that day on, they were best friends.|It was a very good day.|In the evening, {hero} was tired and happy.|{hero} went home with a smile.|And they all lived happily ever after.|That night, {hero} slept very well.]";

/// The plots; each is one paragraph between an opening and an ending.
const PLOTS: &[&str] = &[
    // A lost thing is found.
    "{hero} had a~ {colour} {toy}. ^{she} [loved|liked] the {toy} very much. One [sunny|warm|windy] day, {hero} went to the {place} and lost the {toy}. \
     {hero} was [very sad|sad and began to cry]. [Then|Soon] {pet} the {kind} came. \"Why are you sad?\" asked {pet}. \"I lost my {toy},\" said {hero}. \
     \"I will help you,\" said {pet}. They looked [under the trees|behind the stones|in the tall grass|near the old wall] and found the {colour} {toy}. \"Thank you!\" said {hero}.",
    // Sharing food.
    "{hero} had a~ [big|sweet|fresh] {food}. ^{she} went to the {place} to eat it. There {she} saw {pet} the {kind}. {pet} was very hungry. \
     \"I have no food,\" said {pet}. {hero} thought [for a moment|about it]. \"We can share,\" said {hero}. ^{she} gave {pet} half of the {food}. {pet} was very happy.",
    // Afraid in the night.
    "One night, {hero} heard a strange sound [outside the window|under the bed|behind the door]. {hero} was afraid. \"Who is there?\" asked {hero}. \
     The sound came again. {hero} took a light and looked. It was only {pet} the {kind}! \"I am cold,\" said {pet}. {hero} gave {pet} a warm blanket. {hero} was not afraid any more.",
    // Building and trying again.
    "{hero} wanted to build a [tall tower|small house|big castle|strong bridge] in the {place}. ^{she} worked all morning, but it fell down. {hero} was [angry|sad]. \
     \"Do not give up,\" said {pet} the {kind}. \"Try again, and I will help you.\" They worked together, and this time it did not fall. \"We did it!\" said {hero}.",
    // A rainy day.
    "{hero} wanted to play in the {place}, but it began to rain. ^{she} ran to a big tree. Under the tree sat {pet} the {kind}. \"May I sit with you?\" asked {hero}. \
     \"Yes, there is room for two,\" said {pet}. They told each other stories until the rain stopped. Then they saw a beautiful rainbow.",
    // A present.
    "It was the birthday of {pet} the {kind}. {hero} wanted to give {pet} a present. ^{she} looked in the {place} and found a~ {colour} {toy}. \
     \"This is for you,\" said {hero}. {pet} opened [it|the box] and smiled. \"A {colour} {toy}! I love it,\" said {pet}. They ate {food}s and [played|danced|sang] together.",
    // A race.
    "{hero} met {pet} the {kind} in the {place}. \"I am faster than you,\" said {pet}. \"Let us race to the big tree,\" said {hero}. They ran and ran. \
     {pet} [fell over a stone|fell into the mud] and hurt a leg. {hero} stopped and helped {pet}. \"You could have won,\" said {pet}. \"A friend is better than a race,\" said {hero}.",
    // A seed.
    "{hero} found a small seed in the {place}. ^{she} put it into the ground and gave it water every day. For many days, nothing happened. {hero} [was sad|waited]. \
     \"You must wait,\" said {pet} the {kind}. One morning, there was a~ {colour} flower. \"Look how beautiful it is!\" said {hero}.",
    // Lost, and shown the way home.
    "{hero} walked too far into the {place} and did not know the way home. It was getting dark. {hero} sat down and cried. {pet} the {kind} heard {obj}. \
     \"I know the way,\" said {pet}. \"Come with me.\" They walked past the old mill and over the little bridge. Soon {hero} saw {her} house. \"Thank you, {pet}!\" said {hero}.",
    // Saying sorry.
    "{hero} and {pet} the {kind} played with a~ {colour} {toy} in the {place}. Then {hero} broke the {toy}. {pet} was very sad. {hero} felt bad. \
     \"I am sorry,\" said {hero}. \"I will make it whole again.\" ^{she} worked until the {toy} was as good as new. \"Thank you,\" said {pet}. \"Let us play again.\"",
];

fn tell(dice: &mut Dice) -> Told {
    let (mut names, about) = cast(dice);
    let intro = expand(&names["intro"], &Names::new(), dice);
    names.insert("intro", intro);
    let plot = dice.pick(PLOTS);
    let text = expand(&format!("{OPENINGS} {plot} {ENDINGS}"), &names, dice);
    Told { about, text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hero_and_the_helper_are_never_the_same() {
        for i in 0..2000 {
            let (names, _) = cast(&mut Dice::new(11, i));
            assert_ne!(names["hero"], names["pet"]);
        }
    }
}
