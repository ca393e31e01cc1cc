//! The small world the demo model knows: its animals, things, places and people.

/// An animal and what is known of it.
#[derive(Debug)]
pub struct Animal {
    pub name: &'static str,
    pub says: &'static str,
    pub home: &'static str,
    pub young: &'static str,
    pub eats: &'static str,
    pub legs: usize,
    pub german: &'static str,
    pub french: &'static str,
    pub spanish: &'static str,
}

macro_rules! animals {
    ($($name:literal $says:literal $home:literal $young:literal $eats:literal $legs:literal $de:literal $fr:literal $es:literal;)*) => {
        &[$(Animal { name: $name, says: $says, home: $home, young: $young, eats: $eats,
            legs: $legs, german: $de, french: $fr, spanish: $es }),*]
    };
}

/// Animals with their sound, home, young, food, legs, and names in three more languages.
pub const ANIMALS: &[Animal] = animals! {
    "dog" "woof" "in a kennel" "puppy" "meat and bones" 4 "der Hund" "le chien" "el perro";
    "cat" "meow" "in a house" "kitten" "fish and mice" 4 "die Katze" "le chat" "el gato";
    "cow" "moo" "on a farm" "calf" "grass" 4 "die Kuh" "la vache" "la vaca";
    "horse" "neigh" "in a stable" "foal" "hay" 4 "das Pferd" "le cheval" "el caballo";
    "sheep" "baa" "on a meadow" "lamb" "grass" 4 "das Schaf" "le mouton" "la oveja";
    "pig" "oink" "in a sty" "piglet" "potatoes" 4 "das Schwein" "le cochon" "el cerdo";
    "duck" "quack" "on a pond" "duckling" "water plants" 2 "die Ente" "le canard" "el pato";
    "hen" "cluck" "in a coop" "chick" "corn" 2 "das Huhn" "la poule" "la gallina";
    "frog" "ribbit" "in a pond" "tadpole" "flies" 4 "der Frosch" "la grenouille" "la rana";
    "bee" "buzz" "in a hive" "larva" "nectar" 6 "die Biene" "l'abeille" "la abeja";
    "mouse" "squeak" "in a hole" "pup" "cheese and seeds" 4 "die Maus" "la souris" "el ratón";
    "owl" "hoot" "in a tree" "owlet" "mice" 2 "die Eule" "le hibou" "el búho";
    "lion" "roar" "on the savanna" "cub" "meat" 4 "der Löwe" "le lion" "el león";
    "wolf" "howl" "in the forest" "pup" "meat" 4 "der Wolf" "le loup" "el lobo";
    "bear" "growl" "in a cave" "cub" "honey and fish" 4 "der Bär" "l'ours" "el oso";
    "bird" "tweet" "in a nest" "chick" "seeds" 2 "der Vogel" "l'oiseau" "el pájaro";
};

/// Animals for stories, with a name that suits them.
pub const STORY_ANIMALS: &[(&str, &str)] = &[
    ("fox", "Rusty"),
    ("rabbit", "Hoppy"),
    ("bear", "Bruno"),
    ("mouse", "Pip"),
    ("squirrel", "Nutty"),
    ("hedgehog", "Spike"),
    ("duck", "Daisy"),
    ("owl", "Olga"),
    ("frog", "Freddy"),
    ("turtle", "Tilly"),
    ("kitten", "Minka"),
    ("puppy", "Bobby"),
];

/// A child's name with its pronouns.
#[derive(Debug)]
pub struct Child {
    pub name: &'static str,
    pub she: &'static str,
    pub her: &'static str,
    /// As an object: "saw her", "saw him".
    pub obj: &'static str,
    pub girl: &'static str,
}

const fn girl(name: &'static str) -> Child {
    Child { name, she: "she", her: "her", obj: "her", girl: "girl" }
}

const fn boy(name: &'static str) -> Child {
    Child { name, she: "he", her: "his", obj: "him", girl: "boy" }
}

/// The children of the stories.
pub const CHILDREN: &[Child] = &[
    girl("Mia"),
    girl("Lily"),
    girl("Anna"),
    girl("Emma"),
    girl("Sara"),
    girl("Nora"),
    girl("Lucy"),
    girl("Ella"),
    boy("Tom"),
    boy("Ben"),
    boy("Max"),
    boy("Leo"),
    boy("Sam"),
    boy("Tim"),
    boy("Paul"),
    boy("Jack"),
];

/// What a thing is and the colour it has: `(name, plural, colour, kind)`.
pub const THINGS: &[(&str, bool, &str, &str)] = &[
    ("the sky", false, "blue", ""),
    ("grass", false, "green", ""),
    ("snow", false, "white", ""),
    ("coal", false, "black", ""),
    ("the sun", false, "yellow", ""),
    ("blood", false, "red", ""),
    ("milk", false, "white", "drink"),
    ("chocolate", false, "brown", "food"),
    ("a banana", false, "yellow", "fruit"),
    ("a lemon", false, "yellow", "fruit"),
    ("a cherry", false, "red", "fruit"),
    ("a strawberry", false, "red", "fruit"),
    ("a plum", false, "purple", "fruit"),
    ("a tomato", false, "red", "vegetable"),
    ("a carrot", false, "orange", "vegetable"),
    ("a cucumber", false, "green", "vegetable"),
    ("a pumpkin", false, "orange", "vegetable"),
    ("a frog", false, "green", "animal"),
    ("a crow", false, "black", "animal"),
    ("a pig", false, "pink", "animal"),
    ("an elephant", false, "grey", "animal"),
    ("a swan", false, "white", "animal"),
    ("leaves in summer", true, "green", ""),
    ("clouds", true, "white", ""),
];

/// A country and its capital, in English, German, French and Spanish where taught.
#[derive(Debug)]
pub struct Country {
    pub name: &'static str,
    pub capital: &'static str,
    pub german: Option<(&'static str, &'static str)>,
    /// With the words before it: "de la France".
    pub french: Option<(&'static str, &'static str)>,
    pub spanish: Option<(&'static str, &'static str)>,
}

macro_rules! country {
    ($name:literal $capital:literal) => {
        Country { name: $name, capital: $capital, german: None, french: None, spanish: None }
    };
    ($name:literal $capital:literal $de:literal $dec:literal $fr:literal $frc:literal $es:literal $esc:literal) => {
        Country {
            name: $name,
            capital: $capital,
            german: Some(($de, $dec)),
            french: Some(($fr, $frc)),
            spanish: Some(($es, $esc)),
        }
    };
}

/// Twenty-four countries.
pub const COUNTRIES: &[Country] = &[
    country!("France" "Paris" "Frankreich" "Paris" "de la France" "Paris" "Francia" "París"),
    country!("Germany" "Berlin" "Deutschland" "Berlin" "de l'Allemagne" "Berlin" "Alemania" "Berlín"),
    country!("Spain" "Madrid" "Spanien" "Madrid" "de l'Espagne" "Madrid" "España" "Madrid"),
    country!("Italy" "Rome" "Italien" "Rom" "de l'Italie" "Rome" "Italia" "Roma"),
    country!("England" "London" "England" "London" "de l'Angleterre" "Londres" "Inglaterra" "Londres"),
    country!("Portugal" "Lisbon" "Portugal" "Lissabon" "du Portugal" "Lisbonne" "Portugal" "Lisboa"),
    country!("Austria" "Vienna" "Österreich" "Wien" "de l'Autriche" "Vienne" "Austria" "Viena"),
    country!("Greece" "Athens" "Griechenland" "Athen" "de la Grèce" "Athènes" "Grecia" "Atenas"),
    country!("Poland" "Warsaw"),
    country!("Norway" "Oslo"),
    country!("Sweden" "Stockholm"),
    country!("Finland" "Helsinki"),
    country!("Denmark" "Copenhagen"),
    country!("Ireland" "Dublin"),
    country!("Hungary" "Budapest"),
    country!("Turkey" "Ankara"),
    country!("Russia" "Moscow"),
    country!("Japan" "Tokyo"),
    country!("China" "Beijing"),
    country!("Egypt" "Cairo"),
    country!("Canada" "Ottawa"),
    country!("Mexico" "Mexico City"),
    country!("Peru" "Lima"),
    country!("Cuba" "Havana"),
];

/// Pairs of opposites.
pub const OPPOSITES: &[(&str, &str)] = &[
    ("big", "small"),
    ("hot", "cold"),
    ("up", "down"),
    ("day", "night"),
    ("fast", "slow"),
    ("old", "young"),
    ("happy", "sad"),
    ("open", "closed"),
    ("wet", "dry"),
    ("full", "empty"),
    ("hard", "soft"),
    ("light", "dark"),
    ("long", "short"),
    ("loud", "quiet"),
    ("early", "late"),
    ("left", "right"),
    ("good", "bad"),
    ("rich", "poor"),
    ("strong", "weak"),
    ("clean", "dirty"),
];

pub const DAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

pub const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Colours in English, German, French (masculine) and Spanish (masculine).
pub const COLOURS: &[(&str, &str, &str, &str)] = &[
    ("red", "rot", "rouge", "rojo"),
    ("blue", "blau", "bleu", "azul"),
    ("green", "grün", "vert", "verde"),
    ("yellow", "gelb", "jaune", "amarillo"),
    ("black", "schwarz", "noir", "negro"),
    ("white", "weiß", "blanc", "blanco"),
    ("brown", "braun", "brun", "marrón"),
    ("pink", "rosa", "rose", "rosa"),
    ("grey", "grau", "gris", "gris"),
];

/// One to twelve in four languages.
pub const NUMBERS: &[(&str, &str, &str, &str)] = &[
    ("one", "eins", "un", "uno"),
    ("two", "zwei", "deux", "dos"),
    ("three", "drei", "trois", "tres"),
    ("four", "vier", "quatre", "cuatro"),
    ("five", "fünf", "cinq", "cinco"),
    ("six", "sechs", "six", "seis"),
    ("seven", "sieben", "sept", "siete"),
    ("eight", "acht", "huit", "ocho"),
    ("nine", "neun", "neuf", "nueve"),
    ("ten", "zehn", "dix", "diez"),
    ("eleven", "elf", "onze", "once"),
    ("twelve", "zwölf", "douze", "doce"),
];

/// Everyday words in English, German, French and Spanish.
pub const WORDS: &[(&str, &str, &str, &str)] = &[
    ("hello", "hallo", "bonjour", "hola"),
    ("goodbye", "auf Wiedersehen", "au revoir", "adiós"),
    ("thank you", "danke", "merci", "gracias"),
    ("please", "bitte", "s'il vous plaît", "por favor"),
    ("yes", "ja", "oui", "sí"),
    ("no", "nein", "non", "no"),
    ("water", "Wasser", "eau", "agua"),
    ("bread", "Brot", "pain", "pan"),
    ("house", "Haus", "maison", "casa"),
    ("friend", "Freund", "ami", "amigo"),
    ("book", "Buch", "livre", "libro"),
    ("tree", "Baum", "arbre", "árbol"),
    ("apple", "Apfel", "pomme", "manzana"),
    ("sun", "Sonne", "soleil", "sol"),
    ("moon", "Mond", "lune", "luna"),
];

/// Things a child may own: `(thing, place it is kept)`.
pub const TOYS: &[&str] =
    &["ball", "kite", "boat", "drum", "hat", "book", "cup", "box", "bag", "car", "doll", "bell"];

pub const TOY_COLOURS: &[&str] = &["red", "blue", "green", "yellow", "white", "black", "brown"];

pub const PLACES: &[&str] = &["park", "garden", "forest", "beach", "village", "market", "meadow"];

pub const FOODS: &[&str] = &["apple", "cake", "sandwich", "pear", "cookie", "muffin", "orange"];

/// Things one can count: `(singular, plural)`.
pub const COUNTED: &[(&str, &str)] = &[
    ("apple", "apples"),
    ("ball", "balls"),
    ("book", "books"),
    ("cookie", "cookies"),
    ("egg", "eggs"),
    ("flower", "flowers"),
    ("pencil", "pencils"),
    ("stone", "stones"),
];
