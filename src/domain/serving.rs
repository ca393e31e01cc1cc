//! What an operator decides about how answers are computed.

use super::WeightFormat;

/// Whether a step may check guessed tokens, several of one answer at once. The answers are the
/// same either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speculation {
    Off,
    /// Where it gains by what steps were measured to take.
    Auto,
    /// Wherever there is a guess.
    Always,
}

impl Speculation {
    /// Every choice, by the word that names it.
    pub const ALL: [(&'static str, Self); 3] =
        [("auto", Self::Auto), ("off", Self::Off), ("always", Self::Always)];
}

/// How keys and values are held in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvFormat {
    F32,
    /// Half the bytes; each number is rounded to 8 bits of mantissa.
    Bf16,
    /// A quarter of the bytes: int8 with one scale for each key and each value of a head.
    Int8,
}

impl KvFormat {
    /// Every choice, by the word that names it; `auto` is [`KvFormat::beside`].
    pub const CHOICES: [(&'static str, Option<Self>); 4] = [
        ("auto", None),
        ("bf16", Some(Self::Bf16)),
        ("f32", Some(Self::F32)),
        ("int8", Some(Self::Int8)),
    ];

    /// As exact as the weights are, and no more.
    pub fn beside(weights: WeightFormat) -> Self {
        match weights {
            WeightFormat::F32 | WeightFormat::F16 => Self::F32,
            _ => Self::Bf16,
        }
    }
}
