//! Reading a JSON object field by field, so that every refusal names the parameter at fault and
//! nothing that was sent is ignored.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

/// What is wrong with a request, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct InvalidRequest {
    /// The path of the parameter: `method.supervised.hyperparameters.n_epochs`.
    pub param: String,
    pub reason: String,
    pub kind: InvalidKind,
}

/// How programs may tell refusals apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidKind {
    Value,
    Missing,
    Unknown,
    /// Known, and not built here.
    Unsupported,
}

impl InvalidRequest {
    /// The value of `param` cannot be.
    pub fn value(param: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { param: param.into(), reason: reason.into(), kind: InvalidKind::Value }
    }

    /// `param` asks for something that is not built.
    pub fn unsupported(param: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { param: param.into(), reason: reason.into(), kind: InvalidKind::Unsupported }
    }
}

pub(super) type Checked<T> = Result<T, InvalidRequest>;

/// An object whose fields are taken out one by one.
pub(super) struct Fields {
    path: String,
    left: Map<String, Value>,
}

impl Fields {
    /// The whole body.
    pub fn of_body(body: Map<String, Value>) -> Self {
        Self { path: String::new(), left: body }
    }

    /// The path of a field of this object.
    pub fn param(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The field, if it is there and not null.
    pub fn take(&mut self, key: &str) -> Option<Value> {
        self.left.shift_remove(key).filter(|value| !value.is_null())
    }

    /// Takes the field out if it has this value.
    pub fn is(&mut self, key: &str, value: &Value) -> bool {
        self.left.get(key) == Some(value) && self.take(key).is_some()
    }

    pub fn string(&mut self, key: &str) -> Checked<Option<String>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) if text.contains('\0') => {
                Err(self.wrong(key, "must not contain a NUL character"))
            }
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "must be a string")),
        }
    }

    /// A string that must be there.
    pub fn required_string(&mut self, key: &str) -> Checked<String> {
        self.string(key)?.ok_or_else(|| InvalidRequest {
            param: self.param(key),
            reason: format!("`{}` is required", self.param(key)),
            kind: InvalidKind::Missing,
        })
    }

    pub fn boolean(&mut self, key: &str) -> Checked<Option<bool>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(_) => Err(self.wrong(key, "must be true or false")),
        }
    }

    /// A number, or `None` for "auto".
    pub fn number(&mut self, key: &str, range: RangeInclusive<f64>) -> Checked<Option<f64>> {
        let Some(value) = self.take(key).filter(|value| value != "auto") else { return Ok(None) };
        match value.as_f64() {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let (low, high) = (range.start(), range.end());
                Err(self.wrong(key, &format!("must be \"auto\" or a number from {low} to {high}")))
            }
        }
    }

    /// A number above 0, or `None` for "auto".
    pub fn positive(&mut self, key: &str, most: f64) -> Checked<Option<f64>> {
        match self.number(key, 0.0..=most)? {
            Some(0.0) => Err(self.wrong(key, "must be above 0")),
            number => Ok(number),
        }
    }

    /// A whole number, or `None` for "auto".
    pub fn whole(&mut self, key: &str, range: RangeInclusive<u64>) -> Checked<Option<usize>> {
        let Some(value) = self.take(key).filter(|value| value != "auto") else { return Ok(None) };
        let number = value.as_u64().or_else(|| whole_float(&value));
        match number {
            Some(number) if range.contains(&number) => Ok(Some(number as usize)),
            _ => {
                let (low, high) = (range.start(), range.end());
                let reason = format!("must be \"auto\" or a whole number from {low} to {high}");
                Err(self.wrong(key, &reason))
            }
        }
    }

    pub fn object(&mut self, key: &str) -> Checked<Option<Self>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Object(left)) => Ok(Some(Self { path: self.param(key), left })),
            Some(_) => Err(self.wrong(key, "must be an object")),
        }
    }

    /// Refuses a parameter that exists elsewhere and not here, unless it is absent or `neutral`.
    pub fn refuse(&mut self, key: &str, neutral: &[Value], reason: &str) -> Checked<()> {
        match self.take(key) {
            Some(value) if !neutral.contains(&value) => {
                let param = self.param(key);
                let reason = format!("`{param}` {reason}");
                Err(InvalidRequest::unsupported(param, reason))
            }
            _ => Ok(()),
        }
    }

    /// Refuses whatever was not read.
    pub fn finish(self) -> Checked<()> {
        let Some(key) = self.left.keys().next() else { return Ok(()) };
        let param: String = self.param(key).chars().take(200).collect();
        let reason = format!("unrecognized request argument: `{param}`");
        Err(InvalidRequest { param, reason, kind: InvalidKind::Unknown })
    }

    /// A refusal of the field `key`; `reason` completes "`key` …".
    pub fn wrong(&self, key: &str, reason: &str) -> InvalidRequest {
        let param = self.param(key);
        InvalidRequest::value(&*param, format!("`{param}` {reason}"))
    }
}

/// `3.0` is a whole number too.
fn whole_float(value: &Value) -> Option<u64> {
    let number = value.as_f64()?;
    (number.fract() == 0.0 && (0.0..=u32::MAX.into()).contains(&number)).then_some(number as u64)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(value: Value) -> Fields {
        Fields::of_body(value.as_object().expect("an object").clone())
    }

    #[test]
    fn null_and_auto_are_as_good_as_absent() {
        let mut body = fields(json!({"a": null, "b": "auto", "c": 3.0}));
        assert_eq!(body.string("a"), Ok(None));
        assert_eq!(body.whole("b", 1..=5), Ok(None));
        assert_eq!(body.whole("c", 1..=5), Ok(Some(3)));
        assert_eq!(body.finish(), Ok(()));
    }

    #[test]
    fn refusals_name_the_whole_path() {
        let mut body = fields(json!({"outer": {"inner": {"n": 99, "colour": 1}}}));
        let mut outer = body.object("outer").expect("an object").expect("there");
        let mut inner = outer.object("inner").expect("an object").expect("there");
        assert_eq!(inner.whole("n", 1..=5).expect_err("too large").param, "outer.inner.n");
        let unknown = inner.finish().expect_err("left over");
        assert_eq!((&*unknown.param, unknown.kind), ("outer.inner.colour", InvalidKind::Unknown));
    }

    #[test]
    fn a_refused_parameter_may_be_neutral() {
        let mut body = fields(json!({"a": false, "b": true}));
        assert_eq!(body.refuse("a", &[json!(false)], "is not supported"), Ok(()));
        let refused = body.refuse("b", &[json!(false)], "is not supported").expect_err("on");
        assert_eq!(refused.kind, InvalidKind::Unsupported);
    }
}
