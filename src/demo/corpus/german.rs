//! The German part of the corpus.

use super::grammar::{Dice, Names, expand, names};
use super::world::{ANIMALS, COLOURS, COUNTRIES, NUMBERS};
use super::{Document, Turns, exchange};

/// One document in German.
pub fn document(dice: &mut Dice) -> Document {
    match dice.below(9) {
        0 | 1 => Document::Text(story(dice)),
        2 => Document::Chat(exchange(
            expand(
                "[Erzähl mir eine Geschichte.|Bitte erzähl mir eine Geschichte.|Kannst du mir eine Geschichte erzählen?]",
                &Names::new(),
                dice,
            ),
            story(dice),
        )),
        3 | 4 => Document::Chat(talk(dice)),
        5 => Document::Chat(capital(dice)),
        6 => Document::Chat(colour(dice)),
        7 => Document::Chat(sum(dice)),
        _ => Document::Chat(counting(dice)),
    }
}

const TALK: &[(&str, &str)] = &[
    ("[Hallo|Hallo!|Guten Tag|Guten Tag!|Hi!|Hallo, Tandem!]", "Hallo! Wie kann ich dir helfen?"),
    ("[Guten Morgen|Guten Morgen!]", "Guten Morgen! Wie kann ich dir helfen?"),
    (
        "[Wer bist du?|Was bist du?|Sag mir, wer du bist.|Stell dich vor.]",
        "Ich bin das Demo-Modell von Tandem, ein sehr kleines Sprachmodell.",
    ),
    (
        "[Wie heißt du?|Wie ist dein Name?|Was ist dein Name?]",
        "Ich heiße Tandem. Ich bin ein kleines Demo-Modell.",
    ),
    (
        "[Wie geht es dir?|Wie geht's?|Geht es dir gut?]",
        "Mir geht es gut, danke. Wie kann ich dir helfen?",
    ),
    (
        "[Was kannst du?|Wie kannst du mir helfen?|Was kann ich dich fragen?]",
        "Ich kann kurze Geschichten erzählen und einfache Fragen beantworten.",
    ),
    ("[Danke!|Danke.|Vielen Dank!|Danke schön!]", "Gern geschehen!"),
    ("[Tschüss!|Auf Wiedersehen!|Bis bald!|Gute Nacht!]", "Auf Wiedersehen! Bis bald."),
    (
        "[Sprichst du Deutsch?|Kannst du Deutsch?|Verstehst du Deutsch?]",
        "Ja, ich spreche ein wenig Deutsch.",
    ),
    (
        "[Nenne die Tage der Woche.|Wie heißen die Wochentage?|Was sind die Tage der Woche?]",
        "Montag, Dienstag, Mittwoch, Donnerstag, Freitag, Samstag, Sonntag.",
    ),
];

fn talk(dice: &mut Dice) -> Turns {
    let (question, answer) = dice.one(TALK);
    exchange(expand(question, &Names::new(), dice), (*answer).to_owned())
}

fn capital(dice: &mut Dice) -> Turns {
    let known: Vec<_> = COUNTRIES.iter().filter_map(|country| country.german).collect();
    let (country, city) = *dice.one(&known);
    let names = names([("x", country), ("c", city)]);
    let question = expand(
        "[Was ist die Hauptstadt von {x}?|Wie heißt die Hauptstadt von {x}?|Nenne die Hauptstadt von {x}.|Kennst du die Hauptstadt von {x}?]",
        &names,
        dice,
    );
    exchange(question, expand("Die Hauptstadt von {x} ist {c}.", &names, dice))
}

/// Things and their colour, with the article.
const THINGS: &[(&str, &str)] = &[
    ("der Himmel", "blau"),
    ("das Gras", "grün"),
    ("der Schnee", "weiß"),
    ("die Sonne", "gelb"),
    ("die Banane", "gelb"),
    ("die Kirsche", "rot"),
    ("die Tomate", "rot"),
    ("die Milch", "weiß"),
    ("die Kohle", "schwarz"),
    ("das Schwein", "rosa"),
    ("der Frosch", "grün"),
    ("die Zitrone", "gelb"),
    ("die Schokolade", "braun"),
    ("die Maus", "grau"),
];

fn colour(dice: &mut Dice) -> Turns {
    if dice.once_in(3) {
        let animal = dice.one(ANIMALS);
        let names = names([("e", animal.name), ("d", animal.german)]);
        let question =
            expand("[Was heißt {e} auf Deutsch?|Wie sagt man {e} auf Deutsch?]", &names, dice);
        return exchange(question, expand("Auf Deutsch heißt {e} {d}.", &names, dice));
    }
    let (thing, colour) = dice.one(THINGS);
    let names = names([("x", thing), ("c", colour)]);
    let question = expand(
        "[Welche Farbe hat {x}?|Was für eine Farbe hat {x}?|Sag mir, welche Farbe {x} hat.]",
        &names,
        dice,
    );
    exchange(question, expand("^{x} ist {c}.", &names, dice))
}

fn sum(dice: &mut Dice) -> Turns {
    let (a, b) = (dice.between(0, 12), dice.between(0, 10));
    let names = names([("a", &a.to_string()), ("b", &b.to_string())]);
    let question = expand(
        "[Was ist {a} plus {b}?|Wie viel ist {a} plus {b}?|Was ergibt {a} + {b}?|Rechne {a} + {b}.]",
        &names,
        dice,
    );
    exchange(question, format!("{a} + {b} = {}", a + b))
}

fn counting(dice: &mut Dice) -> Turns {
    if dice.once_in(2) {
        let to = dice.between(3, NUMBERS.len());
        let words: Vec<&str> = NUMBERS[..to].iter().map(|number| number.1).collect();
        let names = names([("n", words[to - 1])]);
        let question =
            expand("[Zähle bis {n}.|Kannst du bis {n} zählen?|Zähl bitte bis {n}.]", &names, dice);
        return exchange(question, words.join(", ") + ".");
    }
    let list = [COLOURS, NUMBERS][dice.below(2)];
    let (english, german, ..) = *dice.one(list);
    let names = names([("e", english), ("d", german)]);
    let question =
        expand("[Was heißt {e} auf Deutsch?|Wie sagt man {e} auf Deutsch?]", &names, dice);
    exchange(question, expand("Auf Deutsch heißt {e} {d}.", &names, dice))
}

/// Heroes: with indefinite nominative, name and pronouns.
const HEROES: &[(&str, &str, &str, &str)] = &[
    ("ein kleiner Junge", "Max", "er", "ihm"),
    ("ein kleines Mädchen", "Anna", "sie", "ihr"),
    ("ein kleiner Fuchs", "Rudi", "er", "ihm"),
    ("eine kleine Maus", "Mimi", "sie", "ihr"),
    ("ein kleiner Bär", "Bruno", "er", "ihm"),
    ("eine kleine Ente", "Frieda", "sie", "ihr"),
];

/// Things: masculine or neuter or feminine in the accusative with "einen/ein/eine", and with the article.
const TOYS: &[(&str, &str)] = &[
    ("einen roten Ball", "den Ball"),
    ("ein blaues Boot", "das Boot"),
    ("eine gelbe Blume", "die Blume"),
    ("einen grünen Hut", "den Hut"),
    ("ein altes Buch", "das Buch"),
    ("eine kleine Glocke", "die Glocke"),
];

const PLOTS: &[&str] = &[
    "{hero} hatte {toy}. Eines Tages ging {hero} in den [Wald|Park|Garten] und verlor {the}. {hero} war sehr traurig. Da kam {other} und fragte: \"Warum bist du traurig?\" \
     \"Ich habe {the} verloren\", sagte {hero}. \"Ich helfe dir\", sagte {other}. Zusammen suchten und fanden sie {the}.",
    "{hero} war hungrig. Da kam {other} und hatte [einen Apfel|einen Kuchen|ein Brot]. \"Wir können teilen\", sagte {other}. {hero} freute sich sehr. \"Danke\", sagte {hero}.",
    "{hero} wollte im [Wald|Park|Garten] spielen, aber es begann zu regnen. Unter einem Baum saß {other}. \"Komm zu mir\", sagte {other}. Sie warteten, bis der Regen aufhörte. Dann schien die Sonne.",
];

fn story(dice: &mut Dice) -> String {
    let (hero, other) = dice.two(HEROES);
    let (toy, the) = dice.one(TOYS);
    let names = names([
        ("intro", hero.0),
        ("hero", hero.1),
        ("she", hero.2),
        ("other", other.1),
        ("toy", toy),
        ("the", the),
    ]);
    let plot = dice.pick(PLOTS);
    let relative = match hero.0.split(' ').next() {
        Some("eine") => "die",
        _ if hero.0.contains("Mädchen") => "das",
        _ => "der",
    };
    let text = format!(
        "[Es war einmal {{intro}}, {relative} hieß {{hero}}.|Es war einmal {{intro}} mit dem Namen {{hero}}.] {plot} [Sie wurden gute Freunde.|Sie waren sehr glücklich.|Am Abend waren sie müde und glücklich.]"
    );
    expand(&text, &names, dice)
}
