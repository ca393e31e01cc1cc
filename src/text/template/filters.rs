//! Filters and globals of Jinja that the interpreter leaves to others, and those in which it differs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::value::{Kwargs, Object, ObjectRepr, Rest, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};

pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.add_filter("attr", attr);
    environment.add_filter("filesizeformat", filesizeformat);
    environment.add_filter("truncate", truncate);
    environment.add_filter("wordcount", wordcount);
    environment.add_function("cycler", cycler);
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
    environment.add_test("callable", is_callable);
}

/// Runs of letters, digits and `_`.
fn wordcount(text: &str) -> usize {
    let part_of_none = |c: char| !c.is_alphanumeric() && c != '_';
    text.split(part_of_none).filter(|word| !word.is_empty()).count()
}

/// `text` if it is at most `leeway` characters longer than `length`; else so much of it that it is
/// not longer with `end`, to the end of a word unless `killwords`.
///
/// `truncate(length=255, killwords=False, end='...', leeway=5)`.
fn truncate(text: &str, args: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    type Args = (Option<usize>, Option<bool>, Option<String>, Option<usize>);
    let (length, killwords, end, leeway): Args = from_args(&args)?;
    let length = length.or(named.get("length")?).unwrap_or(255);
    let killwords = killwords.or(named.get("killwords")?).unwrap_or(false);
    let end = end.or(named.get("end")?).unwrap_or_else(|| "...".to_owned());
    let leeway = leeway.or(named.get("leeway")?).unwrap_or(5);
    named.assert_all_used()?;
    let Some(kept) = length.checked_sub(end.chars().count()) else {
        let message = "truncate to less than the length of its end";
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    };
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text.to_owned());
    }
    let kept: String = text.chars().take(kept).collect();
    let words = kept.rsplit_once(' ').map_or(&*kept, |(words, _)| words);
    Ok(format!("{}{end}", if killwords { &kept } else { words }))
}

/// `13 kB`; with `binary` in powers of 1024.
fn filesizeformat(size: &Value, binary: Option<bool>, named: Kwargs) -> Result<String, Error> {
    const PREFIXES: [&str; 8] = ["k", "M", "G", "T", "P", "E", "Z", "Y"];
    let binary = binary.or(named.get("binary")?).unwrap_or(false);
    named.assert_all_used()?;
    let parsed = size.as_str().and_then(|text| text.trim().parse().ok());
    let Some(size) = parsed.or_else(|| f64::try_from(size.clone()).ok()) else {
        return Err(Error::new(ErrorKind::InvalidOperation, "filesizeformat of what is no number"));
    };
    let base: f64 = if binary { 1024.0 } else { 1000.0 };
    if size == 1.0 {
        return Ok("1 Byte".to_owned());
    }
    if size < base {
        return Ok(format!("{} Bytes", size as i64));
    }
    let fits = |power: &i32| size < base.powi(power + 2);
    let power = (0..8).find(fits).unwrap_or(7);
    let prefix = PREFIXES[power as usize];
    let prefix = if binary { format!("{}i", prefix.to_uppercase()) } else { prefix.to_owned() };
    Ok(format!("{:.1} {prefix}B", size / base.powi(power + 1)))
}

/// An attribute and no item: of a mapping its methods, and never what it holds.
fn attr(value: &Value, name: &Value) -> Result<Value, Error> {
    const METHODS: [&str; 4] = ["get", "items", "keys", "values"];
    if value.kind() != ValueKind::Map || is_of_type(value, &["Namespace"]) {
        return value.get_item(name);
    }
    let method = METHODS.into_iter().find(|method| name.as_str() == Some(method));
    let bound = method.map(|method| Bound { value: value.clone(), method });
    Ok(bound.map_or(Value::UNDEFINED, Value::from_object))
}

/// A method together with what it is a method of.
#[derive(Debug)]
struct Bound {
    value: Value,
    method: &'static str,
}

impl Object for Bound {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        self.value.call_method(state, self.method, args)
    }
}

/// Functions and macros; in Jinja an undefined value as well. A method that was not called is
/// undefined here, so that the answer is right for it too.
fn is_callable(value: &Value) -> bool {
    const TYPES: [&str; 5] = ["BoxedFunction", "Macro", "Joiner", "Loop", "Bound"];
    value.is_undefined() || is_of_type(value, &TYPES)
}

/// The interpreter does not show its types; their names have to do.
fn is_of_type(value: &Value, names: &[&str]) -> bool {
    let object = value.as_object();
    let name = object.and_then(|object| object.type_name().rsplit("::").next());
    name.is_some_and(|name| names.contains(&name))
}

/// Values to be had in turn, from call to call of `next`.
#[derive(Debug)]
struct Cycler {
    items: Vec<Value>,
    at: AtomicUsize,
}

fn cycler(items: Rest<Value>) -> Result<Value, Error> {
    if items.is_empty() {
        return Err(Error::new(ErrorKind::MissingArgument, "cycler of no values"));
    }
    Ok(Value::from_object(Cycler { items: items.0, at: AtomicUsize::new(0) }))
}

impl Object for Cycler {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let current = || self.items[self.at.load(Ordering::Relaxed)].clone();
        (key.as_str() == Some("current")).then(current)
    }

    fn call_method(
        self: &Arc<Self>,
        _: &mut State<'_, '_>,
        method: &str,
        args: &[Value],
    ) -> Result<Value, Error> {
        let () = from_args(args)?;
        let at = self.at.load(Ordering::Relaxed);
        match method {
            "next" => {
                self.at.store((at + 1) % self.items.len(), Ordering::Relaxed);
                Ok(self.items[at].clone())
            }
            "reset" => {
                self.at.store(0, Ordering::Relaxed);
                Ok(Value::from(()))
            }
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    }
}
