//! What `transformers` adds to Jinja: `raise_exception`, `strftime_now`, and Python's `tojson`.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use serde_json::Value as Json;

use super::strftime::strftime;

/// What a template says when it refuses a conversation.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", tojson);
    environment.add_test("iterable", is_iterable);
    environment.add_test("sequence", is_sequence);
}

/// As in Python, where `None` cannot be iterated and an undefined value can.
fn is_iterable(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Iterable | ValueKind::Undefined) || is_sequence(value)
}

/// As in Jinja: whatever has a length and can be indexed, strings and mappings included.
fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String)
}

/// The message given to `raise_exception`, if that is what ended the rendering.
pub(super) fn raised_message(error: &minijinja::Error) -> Option<String> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(Raised(message)) = error.downcast_ref() {
            return Some(message.clone());
        }
        cause = error.source();
    }
    None
}

fn raise_exception(message: String) -> Result<Value, Error> {
    let error = Error::new(ErrorKind::InvalidOperation, "raise_exception");
    Err(error.with_source(Raised(message)))
}

/// The current time, in UTC.
fn strftime_now(format: String) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    strftime(&format, now.as_secs())
}

/// `json.dumps(value, ensure_ascii=False, …)`: Python's separators, no HTML escapes.
fn tojson(
    state: &State,
    value: Value,
    indent: Option<usize>,
    options: Kwargs,
) -> Result<String, Error> {
    if value.is_undefined() {
        return Err(Error::new(ErrorKind::UndefinedError, "tojson of an undefined value"));
    }
    let named: Option<usize> = options.get("indent")?;
    let separators: Option<(String, String)> =
        match options.get::<Option<Vec<String>>>("separators")?.as_deref() {
            Some([item, key]) => Some((item.clone(), key.clone())),
            _ => None,
        };
    let ensure_ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let indent = indent.or(named).map(|width| width.min(32));
    let item = if indent.is_some() { "," } else { ", " };
    let (item, key) = separators.unwrap_or((item.into(), ": ".into()));
    let json = serde_json::to_value(&value)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, "tojson").with_source(error))?;
    let mut writer = Writer { out: String::new(), indent, item, key, ensure_ascii, sort_keys };
    writer.value(&json, 0);
    state.consume_fuel(writer.out.len() as u64 / 64)?;
    Ok(writer.out)
}

struct Writer {
    out: String,
    indent: Option<usize>,
    item: String,
    key: String,
    ensure_ascii: bool,
    sort_keys: bool,
}

impl Writer {
    fn value(&mut self, value: &Json, depth: usize) {
        match value {
            Json::Array(items) => {
                self.sequence('[', ']', items.iter(), depth, |w, item| w.value(item, depth + 1))
            }
            Json::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                if self.sort_keys {
                    entries.sort_by_key(|(key, _)| *key);
                }
                self.sequence('{', '}', entries.into_iter(), depth, |w, (key, value)| {
                    w.string(key);
                    w.out.push_str(&w.key.clone());
                    w.value(value, depth + 1);
                })
            }
            Json::String(text) => self.string(text),
            Json::Number(number) if number.is_f64() => {
                self.out.push_str(&python_float(number.as_f64().unwrap_or(f64::NAN)))
            }
            other => self.out.push_str(&other.to_string()),
        }
    }

    fn sequence<T>(
        &mut self,
        open: char,
        close: char,
        items: impl ExactSizeIterator<Item = T>,
        depth: usize,
        mut write: impl FnMut(&mut Self, T),
    ) {
        let empty = items.len() == 0;
        self.out.push(open);
        for (at, item) in items.enumerate() {
            if at > 0 {
                self.out.push_str(&self.item.clone());
            }
            self.line(depth + 1);
            write(self, item);
        }
        if !empty {
            self.line(depth);
        }
        self.out.push(close);
    }

    fn line(&mut self, depth: usize) {
        if let Some(width) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', width * depth));
        }
    }

    fn string(&mut self, text: &str) {
        let quoted = Json::String(text.to_owned()).to_string();
        if !self.ensure_ascii {
            return self.out.push_str(&quoted);
        }
        let mut units = [0; 2];
        for c in quoted.chars() {
            match c.is_ascii() {
                true => self.out.push(c),
                false => c.encode_utf16(&mut units).iter().for_each(|unit| {
                    self.out.push_str(&format!("\\u{unit:04x}"));
                }),
            }
        }
    }
}

/// `repr(float)`: positional from 1e-4 up to 1e16, else with a signed exponent of two digits.
fn python_float(number: f64) -> String {
    let magnitude = number.abs();
    if magnitude == 0.0 || (1e-4..1e16).contains(&magnitude) {
        return format!("{number:?}");
    }
    let scientific = format!("{number:e}");
    match scientific.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, digits_of_exponent) = match exponent.strip_prefix('-') {
                Some(rest) => ('-', rest),
                None => ('+', exponent),
            };
            format!("{digits}e{sign}{digits_of_exponent:0>2}")
        }
        None => scientific,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        let written: Vec<String> =
            [1.0, 0.1, 1e16, 1.5e-5, -2e300, 0.0001, 123456.5].map(python_float).to_vec();
        assert_eq!(written, ["1.0", "0.1", "1e+16", "1.5e-05", "-2e+300", "0.0001", "123456.5"]);
    }
}
