//! The key-value pairs of a file.

use std::collections::BTreeMap;

use super::GgufError;

/// A metadata value; the widths of the file's number types are not kept.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Bool(bool),
    Int(i64),
    Float(f32),
    Text(String),
    Bools(Vec<bool>),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Texts(Vec<String>),
}

/// The metadata of a file, by key.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    /// For error messages.
    pub file: String,
    pub values: BTreeMap<String, Value>,
}

impl Metadata {
    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// A non-negative whole number.
    ///
    /// # Errors
    /// If it is there and something else.
    pub fn count(&self, key: &str) -> Result<Option<usize>, GgufError> {
        self.typed(key, "a non-negative whole number", |value| match value {
            // Bounded as the sizes of a configuration are, so that products cannot overflow.
            Value::Int(n) if (0..1 << 31).contains(n) => Some(*n as usize),
            _ => None,
        })
    }

    /// As [`Metadata::count`], for a key that must be there.
    ///
    /// # Errors
    /// If it is missing as well.
    pub fn required_count(&self, key: &str) -> Result<usize, GgufError> {
        self.count(key)?.ok_or_else(|| self.missing(key))
    }

    /// A finite number.
    ///
    /// # Errors
    /// If it is there and something else.
    pub fn number(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.typed(key, "a finite number", |value| match value {
            Value::Float(x) if x.is_finite() => Some(*x),
            Value::Int(n) => Some(*n as f32),
            _ => None,
        })
    }

    /// True or false.
    ///
    /// # Errors
    /// If it is there and something else.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.typed(key, "true or false", |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    /// A string.
    ///
    /// # Errors
    /// If it is there and something else.
    pub fn text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.typed(key, "a string", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A list of strings.
    ///
    /// # Errors
    /// If it is there and something else.
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>, GgufError> {
        self.typed(key, "a list of strings", |value| match value {
            Value::Texts(texts) => Some(texts.as_slice()),
            _ => None,
        })
    }

    /// A list of numbers.
    ///
    /// # Errors
    /// If it is there and something else.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f32>>, GgufError> {
        self.typed(key, "a list of numbers", |value| match value {
            Value::Floats(values) => Some(values.clone()),
            Value::Ints(values) => Some(values.iter().map(|&value| value as f32).collect()),
            _ => None,
        })
    }

    /// The error for a key that must be there.
    pub fn missing(&self, key: &str) -> GgufError {
        GgufError::MissingKey { file: self.file.clone(), key: key.to_owned() }
    }

    /// The error for a value that is known and not supported.
    pub fn unsupported(&self, key: &str, value: &str, supported: &str) -> GgufError {
        GgufError::Unsupported {
            file: self.file.clone(),
            key: key.to_owned(),
            value: value.to_owned(),
            supported: supported.to_owned(),
        }
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| GgufError::WrongType {
            file: self.file.clone(),
            key: key.to_owned(),
            expected,
        })
    }
}
