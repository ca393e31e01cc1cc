//! Reading `config.json`: typed fields, and refusals that name the key.

use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::ModelError;
use crate::backend::Activation;

/// The keys of a configuration, or of an object inside it.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    values: &'a Map<String, Value>,
    /// Leads key names in messages: `rope_parameters.`.
    path: &'static str,
}

impl<'a> Fields<'a> {
    pub fn new(value: &'a Value) -> Result<Self, ModelError> {
        let values = value.as_object().ok_or_else(|| ModelError::BadValue {
            key: "config.json".to_owned(),
            expected: "an object",
            found: value.to_string(),
        })?;
        Ok(Self { values, path: "" })
    }

    /// Of an object that is not there.
    pub fn none() -> Self {
        static NONE: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);
        Self { values: &NONE, path: "" }
    }

    /// The keys of an object that stands at `path`.
    pub fn inside(values: &'a Map<String, Value>, path: &'static str) -> Self {
        Self { values, path }
    }

    /// Whether it has no key at all.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Other keys that stand in the same place.
    pub fn with<'b>(&self, values: &'b Map<String, Value>) -> Fields<'b> {
        Fields { values, path: self.path }
    }

    /// A copy of the keys.
    pub fn to_map(self) -> Map<String, Value> {
        self.values.clone()
    }

    /// The value of `key`, if there is one that is not null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// The object under `key`.
    pub fn object(&self, key: &'static str) -> Result<Option<Fields<'a>>, ModelError> {
        self.typed(key, "an object", |value| {
            value.as_object().map(|values| Fields { values, path: key })
        })
    }

    pub fn usize(&self, key: &str) -> Result<usize, ModelError> {
        self.required(key, self.optional_usize(key)?)
    }

    /// A positive whole number.
    pub fn optional_usize(&self, key: &str) -> Result<Option<usize>, ModelError> {
        self.typed(key, "a positive whole number", |value| whole(value).filter(|&n| n > 0))
    }

    /// A whole number, or 0.
    pub fn optional_count(&self, key: &str) -> Result<Option<usize>, ModelError> {
        self.typed(key, "a whole number", whole)
    }

    /// Of what memory is taken for before a tensor is looked for: layers, heads, the size of a head.
    pub fn small(&self, key: &str) -> Result<usize, ModelError> {
        const MOST: usize = 1 << 14;
        let value = self.usize(key)?;
        match value <= MOST {
            true => Ok(value),
            false => Err(self.bad(key, "a whole number from 1 to 16384", value)),
        }
    }

    pub fn f32(&self, key: &str) -> Result<f32, ModelError> {
        self.required(key, self.optional_f32(key)?)
    }

    pub fn optional_f32(&self, key: &str) -> Result<Option<f32>, ModelError> {
        self.typed(key, "a finite number", finite)
    }

    pub fn positive_f32(&self, key: &str) -> Result<f32, ModelError> {
        self.required(key, self.optional_positive_f32(key)?)
    }

    pub fn optional_positive_f32(&self, key: &str) -> Result<Option<f32>, ModelError> {
        const EXPECTED: &str = "a finite number above 0";
        self.typed(key, EXPECTED, |value| finite(value).filter(|&x| x > 0.0))
    }

    /// What keeps a norm from dividing by 0.
    pub fn epsilon(&self, key: &str) -> Result<f32, ModelError> {
        const EXPECTED: &str = "a finite number, not below 0";
        self.required(key, self.typed(key, EXPECTED, |value| finite(value).filter(|&x| x >= 0.0))?)
    }

    pub fn bool(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        Ok(self.typed(key, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    pub fn optional_str(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        self.typed(key, "a string", Value::as_str)
    }

    pub fn array(&self, key: &str) -> Result<Option<&'a Vec<Value>>, ModelError> {
        self.typed(key, "an array", Value::as_array)
    }

    /// Token ids: one, or a list, or none.
    pub fn token_ids(&self, key: &str) -> Result<Vec<u32>, ModelError> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = self.typed(key, "a token id or a list of them", |value| match value {
            Value::Array(ids) => ids.iter().map(id).collect::<Option<Vec<u32>>>(),
            one => id(one).map(|id| vec![id]),
        })?;
        Ok(ids.unwrap_or_default())
    }

    /// Refuses `key` unless it is absent, null or one of `allowed`.
    pub fn only(&self, key: &str, allowed: &[Value]) -> Result<(), ModelError> {
        match self.get(key) {
            Some(value) if !allowed.contains(value) => Err(self.unsupported(key, value)),
            _ => Ok(()),
        }
    }

    /// The non-linearity under `key`.
    pub fn activation(&self, key: &str) -> Result<Activation, ModelError> {
        let value = self.get(key).ok_or_else(|| self.missing(key))?;
        match value.as_str() {
            Some("silu" | "swish") => Ok(Activation::Silu),
            Some("gelu" | "gelu_python") => Ok(Activation::Gelu),
            // One formula, its terms in different order.
            Some(
                "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate"
                | "gelu_python_tanh",
            ) => Ok(Activation::GeluTanh),
            Some("quick_gelu") => Ok(Activation::QuickGelu),
            Some("relu") => Ok(Activation::Relu),
            _ => Err(self.unsupported(key, value)),
        }
    }

    pub fn unsupported(&self, key: &str, value: impl ToString) -> ModelError {
        ModelError::Unsupported { key: self.full(key), value: value.to_string() }
    }

    /// `key` stands for something that does not exist or does not fit.
    pub fn bad(&self, key: &str, expected: &'static str, found: impl ToString) -> ModelError {
        ModelError::BadValue { key: self.full(key), expected, found: found.to_string() }
    }

    pub fn missing(&self, key: &str) -> ModelError {
        ModelError::MissingKey { key: self.full(key) }
    }

    fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, ModelError> {
        value.ok_or_else(|| self.missing(key))
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| ModelError::BadValue {
            key: self.full(key),
            expected,
            found: value.to_string(),
        })
    }

    fn full(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

/// Bounded so that products of two sizes cannot overflow.
fn finite(value: &Value) -> Option<f32> {
    value.as_f64().map(|x| x as f32).filter(|x| x.is_finite())
}

fn whole(value: &Value) -> Option<usize> {
    value.as_u64().filter(|&n| n < 1 << 31).map(|n| n as usize)
}
