//! The Spanish part of the corpus.

use super::grammar::{Dice, Names, expand, names};
use super::world::{ANIMALS, COLOURS, COUNTRIES, NUMBERS};
use super::{Document, Turns, exchange};

/// One document in Spanish.
pub fn document(dice: &mut Dice) -> Document {
    match dice.below(9) {
        0 | 1 => Document::Text(story(dice)),
        2 => Document::Chat(exchange(
            expand(
                "[Cuéntame una historia.|Cuéntame una historia, por favor.|¿Puedes contarme una historia?]",
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
    ("[Hola|¡Hola!|Hola, Tandem.|¡Hola, Tandem!]", "¡Hola! ¿Cómo puedo ayudarte?"),
    ("[Buenos días|¡Buenos días!]", "¡Buenos días! ¿Cómo puedo ayudarte?"),
    (
        "[¿Quién eres?|¿Qué eres?|Dime quién eres.|Preséntate.]",
        "Soy el modelo de demostración de Tandem, un modelo de lenguaje muy pequeño.",
    ),
    (
        "[¿Cómo te llamas?|¿Cuál es tu nombre?|Dime tu nombre.]",
        "Me llamo Tandem. Soy un pequeño modelo de demostración.",
    ),
    ("[¿Cómo estás?|¿Qué tal?|¿Cómo te va?]", "Estoy bien, gracias. ¿Cómo puedo ayudarte?"),
    (
        "[¿Qué sabes hacer?|¿Cómo puedes ayudarme?|¿Qué puedo preguntarte?]",
        "Puedo contar historias cortas y responder preguntas sencillas.",
    ),
    ("[¡Gracias!|Gracias.|¡Muchas gracias!|Muchas gracias.]", "¡De nada!"),
    ("[¡Adiós!|¡Hasta luego!|¡Hasta pronto!|¡Buenas noches!]", "¡Adiós! Hasta pronto."),
    ("[¿Hablas español?|¿Sabes español?|¿Entiendes español?]", "Sí, hablo un poco de español."),
    (
        "[¿Cuáles son los días de la semana?|Nombra los días de la semana.|Dime los días de la semana.]",
        "Lunes, martes, miércoles, jueves, viernes, sábado, domingo.",
    ),
];

fn talk(dice: &mut Dice) -> Turns {
    let (question, answer) = dice.one(TALK);
    exchange(expand(question, &Names::new(), dice), (*answer).to_owned())
}

fn capital(dice: &mut Dice) -> Turns {
    let known: Vec<_> = COUNTRIES.iter().filter_map(|country| country.spanish).collect();
    let (country, city) = *dice.one(&known);
    let names = names([("x", country), ("c", city)]);
    let question = expand(
        "[¿Cuál es la capital de {x}?|Dime la capital de {x}.|Nombra la capital de {x}.|¿Conoces la capital de {x}?]",
        &names,
        dice,
    );
    exchange(question, expand("La capital de {x} es {c}.", &names, dice))
}

/// Things with their article and their colour, in agreement.
const THINGS: &[(&str, &str)] = &[
    ("el cielo", "azul"),
    ("la hierba", "verde"),
    ("la nieve", "blanca"),
    ("el sol", "amarillo"),
    ("el plátano", "amarillo"),
    ("la cereza", "roja"),
    ("el tomate", "rojo"),
    ("la leche", "blanca"),
    ("el carbón", "negro"),
    ("el cerdo", "rosa"),
    ("la rana", "verde"),
    ("el limón", "amarillo"),
    ("el chocolate", "marrón"),
    ("el ratón", "gris"),
];

fn colour(dice: &mut Dice) -> Turns {
    if dice.once_in(3) {
        let animal = dice.one(ANIMALS);
        return in_spanish(animal.name, animal.spanish, dice);
    }
    let (thing, colour) = dice.one(THINGS);
    let names = names([("x", thing), ("c", colour)]);
    let question = expand(
        "[¿De qué color es {x}?|Dime de qué color es {x}.|¿Qué color tiene {x}?]",
        &names,
        dice,
    );
    exchange(question, expand("^{x} es {c}.", &names, dice))
}

fn in_spanish(english: &str, spanish: &str, dice: &mut Dice) -> Turns {
    let names = names([("e", english), ("s", spanish)]);
    let question = expand("[¿Cómo se dice {e} en español?|¿Qué es {e} en español?]", &names, dice);
    exchange(question, expand("En español, {e} se dice {s}.", &names, dice))
}

fn sum(dice: &mut Dice) -> Turns {
    let (a, b) = (dice.between(0, 12), dice.between(0, 10));
    let names = names([("a", &a.to_string()), ("b", &b.to_string())]);
    let question = expand(
        "[¿Cuánto es {a} más {b}?|¿Cuánto es {a} + {b}?|Calcula {a} + {b}.|¿Cuánto son {a} más {b}?]",
        &names,
        dice,
    );
    exchange(question, format!("{a} + {b} = {}", a + b))
}

fn counting(dice: &mut Dice) -> Turns {
    if dice.once_in(2) {
        let to = dice.between(3, NUMBERS.len());
        let words: Vec<&str> = NUMBERS[..to].iter().map(|number| number.3).collect();
        let names = names([("n", words[to - 1])]);
        let question = expand(
            "[Cuenta hasta {n}.|¿Puedes contar hasta {n}?|Cuenta hasta {n}, por favor.]",
            &names,
            dice,
        );
        return exchange(question, words.join(", ") + ".");
    }
    let list = [COLOURS, NUMBERS][dice.below(2)];
    let (english, _, _, spanish) = *dice.one(list);
    in_spanish(english, spanish, dice)
}

/// Heroes: introduction, name, the ending of adjectives.
const HEROES: &[(&str, &str, &str)] = &[
    ("un niño pequeño", "Pablo", "o"),
    ("una niña pequeña", "Lucía", "a"),
    ("un zorro pequeño", "Rojo", "o"),
    ("una ratona pequeña", "Mimí", "a"),
    ("un oso pequeño", "Bruno", "o"),
    ("una gallina pequeña", "Clara", "a"),
];

const TOYS: &[(&str, &str)] = &[
    ("un balón rojo", "el balón"),
    ("un barco azul", "el barco"),
    ("una flor amarilla", "la flor"),
    ("un sombrero verde", "el sombrero"),
    ("un libro viejo", "el libro"),
    ("una campana pequeña", "la campana"),
];

const PLOTS: &[&str] = &[
    "{hero} tenía {toy}. Un día, {hero} perdió {the} en [el bosque|el parque|el jardín]. {hero} estaba muy triste. Entonces llegó {other} y preguntó: «¿Por qué estás triste?» \
     «He perdido {the}», dijo {hero}. «Yo te ayudo», dijo {other}. Juntos buscaron y encontraron {the}.",
    "{hero} tenía hambre. Entonces llegó {other} con [una manzana|un pastel|un pan]. «Podemos compartir», dijo {other}. {hero} estaba muy content{o}. «Gracias», dijo {hero}.",
    "{hero} quería jugar en [el bosque|el parque|el jardín], pero empezó a llover. Debajo de un árbol estaba {other}. «Ven conmigo», dijo {other}. Esperaron hasta el final de la lluvia. Después salió el sol.",
];

fn story(dice: &mut Dice) -> String {
    let (hero, other) = dice.two(HEROES);
    let (toy, the) = dice.one(TOYS);
    let names = names([
        ("intro", hero.0),
        ("hero", hero.1),
        ("o", hero.2),
        ("other", other.1),
        ("toy", toy),
        ("the", the),
    ]);
    let plot = dice.pick(PLOTS);
    let text = format!(
        "[Había una vez {{intro}} que se llamaba {{hero}}.|Érase una vez {{intro}} que se llamaba {{hero}}.] {plot} [Se hicieron buenos amigos.|Estaban muy felices.|Por la noche estaban cansados y felices.]"
    );
    expand(&text, &names, dice)
}
