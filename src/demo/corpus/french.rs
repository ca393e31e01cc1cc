//! The French part of the corpus.

use super::grammar::{Dice, Names, expand, names};
use super::world::{ANIMALS, COLOURS, COUNTRIES, NUMBERS};
use super::{Document, Turns, exchange};

/// One document in French.
pub fn document(dice: &mut Dice) -> Document {
    match dice.below(9) {
        0 | 1 => Document::Text(story(dice)),
        2 => Document::Chat(exchange(
            expand(
                "[Raconte-moi une histoire.|Raconte une histoire, s'il te plaît.|Peux-tu me raconter une histoire ?]",
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
    ("[Bonjour|Bonjour !|Salut !|Salut|Bonjour, Tandem !]", "Bonjour ! Comment puis-je t'aider ?"),
    ("[Bonsoir|Bonsoir !]", "Bonsoir ! Comment puis-je t'aider ?"),
    (
        "[Qui es-tu ?|Qu'est-ce que tu es ?|Dis-moi qui tu es.|Présente-toi.]",
        "Je suis le modèle de démonstration de Tandem, un très petit modèle de langue.",
    ),
    (
        "[Comment t'appelles-tu ?|Quel est ton nom ?|Tu t'appelles comment ?]",
        "Je m'appelle Tandem. Je suis un petit modèle de démonstration.",
    ),
    (
        "[Comment vas-tu ?|Comment ça va ?|Ça va ?]",
        "Je vais bien, merci. Comment puis-je t'aider ?",
    ),
    (
        "[Que sais-tu faire ?|Comment peux-tu m'aider ?|Que puis-je te demander ?]",
        "Je peux raconter de petites histoires et répondre à des questions simples.",
    ),
    ("[Merci !|Merci.|Merci beaucoup !|Un grand merci !]", "De rien !"),
    ("[Au revoir !|Salut, à bientôt !|À bientôt !|Bonne nuit !]", "Au revoir ! À bientôt."),
    (
        "[Parles-tu français ?|Tu parles français ?|Comprends-tu le français ?]",
        "Oui, je parle un peu français.",
    ),
    (
        "[Quels sont les jours de la semaine ?|Nomme les jours de la semaine.|Donne-moi les jours de la semaine.]",
        "Lundi, mardi, mercredi, jeudi, vendredi, samedi, dimanche.",
    ),
];

fn talk(dice: &mut Dice) -> Turns {
    let (question, answer) = dice.one(TALK);
    exchange(expand(question, &Names::new(), dice), (*answer).to_owned())
}

fn capital(dice: &mut Dice) -> Turns {
    let known: Vec<_> = COUNTRIES.iter().filter_map(|country| country.french).collect();
    let (country, city) = *dice.one(&known);
    let names = names([("x", country), ("c", city)]);
    let question = expand(
        "[Quelle est la capitale {x} ?|Dis-moi la capitale {x}.|Nomme la capitale {x}.|Connais-tu la capitale {x} ?]",
        &names,
        dice,
    );
    exchange(question, expand("La capitale {x} est {c}.", &names, dice))
}

/// Things with their article and their colour, in agreement.
const THINGS: &[(&str, &str)] = &[
    ("le ciel", "bleu"),
    ("la mer", "bleue"),
    ("la neige", "blanche"),
    ("le soleil", "jaune"),
    ("la banane", "jaune"),
    ("la cerise", "rouge"),
    ("la tomate", "rouge"),
    ("le lait", "blanc"),
    ("le charbon", "noir"),
    ("le cochon", "rose"),
    ("la grenouille", "verte"),
    ("le citron", "jaune"),
    ("le chocolat", "brun"),
    ("la souris", "grise"),
];

fn colour(dice: &mut Dice) -> Turns {
    if dice.once_in(3) {
        let animal = dice.one(ANIMALS);
        return in_french(animal.name, animal.french, dice);
    }
    let (thing, colour) = dice.one(THINGS);
    let names = names([("x", thing), ("c", colour)]);
    let question = expand(
        "[De quelle couleur est {x} ?|Quelle est la couleur ? Je parle de {x}.|Dis-moi de quelle couleur est {x}.]",
        &names,
        dice,
    );
    exchange(question, expand("^{x} est {c}.", &names, dice))
}

fn in_french(english: &str, french: &str, dice: &mut Dice) -> Turns {
    let names = names([("e", english), ("f", french)]);
    let question =
        expand("[Comment dit-on {e} en français ?|Que veut dire {e} en français ?]", &names, dice);
    exchange(question, expand("En français, {e} se dit {f}.", &names, dice))
}

fn sum(dice: &mut Dice) -> Turns {
    let (a, b) = (dice.between(0, 12), dice.between(0, 10));
    let names = names([("a", &a.to_string()), ("b", &b.to_string())]);
    let question = expand(
        "[Combien font {a} plus {b} ?|Combien font {a} + {b} ?|Calcule {a} + {b}.|Que font {a} plus {b} ?]",
        &names,
        dice,
    );
    exchange(question, format!("{a} + {b} = {}", a + b))
}

fn counting(dice: &mut Dice) -> Turns {
    if dice.once_in(2) {
        let to = dice.between(3, NUMBERS.len());
        let words: Vec<&str> = NUMBERS[..to].iter().map(|number| number.2).collect();
        let names = names([("n", words[to - 1])]);
        let question = expand(
            "[Compte jusqu'à {n}.|Peux-tu compter jusqu'à {n} ?|Compte jusqu'à {n}, s'il te plaît.]",
            &names,
            dice,
        );
        return exchange(question, words.join(", ") + ".");
    }
    let list = [COLOURS, NUMBERS][dice.below(2)];
    let (english, _, french, _) = *dice.one(list);
    in_french(english, french, dice)
}

/// Heroes: introduction with "qui s'appelait", name, pronoun, the feminine ending.
const HEROES: &[(&str, &str, &str, &str)] = &[
    ("un petit garçon", "Paul", "il", ""),
    ("une petite fille", "Emma", "elle", "e"),
    ("un petit renard", "Roux", "il", ""),
    ("une petite souris", "Lili", "elle", "e"),
    ("un petit ours", "Nono", "il", ""),
    ("une petite poule", "Clara", "elle", "e"),
];

const TOYS: &[(&str, &str)] = &[
    ("un ballon rouge", "le ballon"),
    ("un bateau bleu", "le bateau"),
    ("une fleur jaune", "la fleur"),
    ("un chapeau vert", "le chapeau"),
    ("un vieux livre", "le livre"),
    ("une petite cloche", "la cloche"),
];

const PLOTS: &[&str] = &[
    "{hero} avait {toy}. Un jour, {hero} a perdu {the} dans [la forêt|le parc|le jardin]. {hero} était très triste. Alors {other} est arrivé{oe} et a demandé : « Pourquoi es-tu triste ? » \
     « J'ai perdu {the} », a dit {hero}. « Je vais t'aider », a dit {other}. Ensemble, ils ont cherché et ils ont trouvé {the}.",
    "{hero} avait faim. Alors {other} est arrivé{oe} avec [une pomme|un gâteau|du pain]. « Nous pouvons partager », a dit {other}. {hero} était très content{he}. « Merci », a dit {hero}.",
    "{hero} voulait jouer dans [la forêt|le parc|le jardin], mais il a commencé à pleuvoir. Sous un arbre, {hero} a vu {other}. « Viens avec moi », a dit {other}. Ils ont attendu la fin de la pluie. Puis le soleil est revenu.",
];

fn story(dice: &mut Dice) -> String {
    let (hero, other) = dice.two(HEROES);
    let (toy, the) = dice.one(TOYS);
    let names = names([
        ("intro", hero.0),
        ("hero", hero.1),
        ("he", hero.3),
        ("other", other.1),
        ("oe", other.3),
        ("toy", toy),
        ("the", the),
    ]);
    let plot = dice.pick(PLOTS);
    let text = format!(
        "[Il était une fois {{intro}} qui s'appelait {{hero}}.|Il y avait une fois {{intro}} qui s'appelait {{hero}}.] {plot} [Ils sont devenus de bons amis.|Ils étaient très heureux.|Le soir, ils étaient fatigués et heureux.]"
    );
    expand(&text, &names, dice)
}
