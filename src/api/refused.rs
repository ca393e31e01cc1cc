//! Parameters that OpenAI has and this server has not: their neutral values pass, because they ask
//! for nothing; any other is a 400 that names the parameter.

use serde::de::{Deserialize, Deserializer, Error};
use serde_json::Value;

/// Begins the reason of such a refusal, so that it gets its own `code`.
pub(super) const MARK: &str = "[unsupported] ";

/// A parameter's set of neutral values; `null` always is one.
pub(super) trait Neutral {
    /// Whether `value` asks for nothing beyond what the server does anyway.
    fn accepts(value: &Value) -> bool;
    /// Ends the sentence "`parameter` …".
    const REASON: &'static str;
}

/// The place of such a parameter in a body.
#[derive(Debug)]
pub(super) struct Refused<N>(std::marker::PhantomData<N>);

impl<N> Default for Refused<N> {
    fn default() -> Self {
        Self(std::marker::PhantomData)
    }
}

impl<'de, N: Neutral> Deserialize<'de> for Refused<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        match value.is_null() || N::accepts(&value) {
            true => Ok(Self::default()),
            false => Err(D::Error::custom(format_args!("{MARK}{}", N::REASON))),
        }
    }
}

macro_rules! neutral {
    ($($name:ident, $reason:literal, $value:ident => $accepts:expr;)*) => {
        $(
            #[derive(Debug)]
            pub(super) struct $name;

            impl Neutral for $name {
                const REASON: &'static str = $reason;

                fn accepts($value: &Value) -> bool {
                    $accepts
                }
            }
        )*
    };
}

neutral! {
    Absent, "is not supported by this server", _value => false;
    EmptyList, "is not supported by this server", value => value.as_array().is_some_and(Vec::is_empty);
    Off, "is not supported by this server", value => *value == false;
    NoTools, "is not supported: this server does not call tools",
        value => matches!(value.as_str(), Some("none" | "auto"));
    Either, "must be a boolean", value => value.is_boolean();
    PlainText, "is not supported unless it is {\"type\": \"text\"}",
        value => value["type"] == "text" && value.as_object().is_some_and(|object| object.len() == 1);
    TextOnly, "is not supported unless it is [\"text\"]",
        value => value.as_array().is_some_and(|list| list.len() == 1 && list[0] == "text");
    DefaultTier, "is not supported unless it is \"auto\" or \"default\"",
        value => matches!(value.as_str(), Some("auto" | "default"));
    Medium, "is not supported unless it is \"medium\"", value => value == "medium";
    NoReasoning, "is not supported unless it is \"none\"", value => value == "none";
    InMemory, "is not supported unless it is \"in_memory\"",
        value => matches!(value.as_str(), Some("in_memory" | "in-memory"));
    NoInfill, "is not supported: this model has no tokens for filling in",
        value => value == "";
}
