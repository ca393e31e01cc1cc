//! Python's methods on strings and lists that the interpreter's own collection lacks, or lacks with
//! all their arguments. Positions are counted in characters.

use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

/// `value.method(args)`, where `value` itself knows no such method.
pub(super) fn call(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let bounded = matches!(method, "find" | "rfind" | "count" | "startswith" | "endswith");
    match (value.as_str(), method) {
        (Some(text), "index" | "rindex") => search(state, text, method, args),
        (Some(text), _) if bounded && args.len() > 1 => search(state, text, method, args),
        (Some(text), "partition" | "rpartition") => partition(text, method == "partition", args),
        (Some(text), "removeprefix" | "removesuffix") => remove(text, method, args),
        (Some(text), "split" | "rsplit") => split(state, text, method, args),
        (Some(text), "ljust" | "rjust" | "center" | "zfill") => pad(state, text, method, args),
        (None, "index") if value.kind() == ValueKind::Seq => index(state, value, args),
        _ => unknown_method_callback(state, value, method, args),
    }
}

fn wrong(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// The methods that look for something between two positions.
fn search(state: &mut State, text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (what, start, end): (Value, Option<i64>, Option<i64>) = from_args(args)?;
    let chars = text.chars().count();
    let (start, end) = (position(start.unwrap_or(0), chars), position_or_end(end, chars));
    let part: String = text.chars().take(end).skip(start).collect();
    let plain =
        if method.ends_with("index") { method.replace("index", "find") } else { method.into() };
    let found = unknown_method_callback(state, &Value::from(part), &plain, &[what])?;
    match (found.as_i64(), method) {
        (Some(at), "find" | "rfind" | "index" | "rindex") if at >= 0 => {
            Ok(Value::from(at + start as i64))
        }
        (_, "index" | "rindex") => Err(wrong("substring not found")),
        _ => Ok(found),
    }
}

/// Counted from the end where it is negative, and no further than that.
fn position(at: i64, length: usize) -> usize {
    let from_end = if at < 0 { at.saturating_add_unsigned(length as u64) } else { at };
    usize::try_from(from_end).unwrap_or(0).min(length)
}

fn position_or_end(at: Option<i64>, length: usize) -> usize {
    at.map_or(length, |at| position(at, length))
}

/// What stands before and behind the first (or the last) separator.
fn partition(text: &str, first: bool, args: &[Value]) -> Result<Value, Error> {
    let (separator,): (&str,) = from_args(args)?;
    if separator.is_empty() {
        return Err(wrong("empty separator"));
    }
    let parts = if first { text.split_once(separator) } else { text.rsplit_once(separator) };
    let parts = match (parts, first) {
        (Some((before, behind)), _) => [before, separator, behind],
        (None, true) => [text, "", ""],
        (None, false) => ["", "", text],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}

fn remove(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (part,): (&str,) = from_args(args)?;
    let rest = match method {
        "removeprefix" => text.strip_prefix(part),
        _ => text.strip_suffix(part),
    };
    Ok(Value::from(rest.unwrap_or(text)))
}

/// With `sep` and `maxsplit` by place or by name.
fn split(state: &mut State, text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (sep, most, named): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
    let sep = sep.or(named.get("sep")?).filter(|sep| !sep.is_none());
    let most = most.or(named.get("maxsplit")?).filter(|&most| most >= 0);
    named.assert_all_used()?;
    if sep.as_ref().and_then(Value::as_str) == Some("") {
        return Err(wrong("empty separator"));
    }
    match most {
        Some(most) if method == "rsplit" => {
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            Ok(rsplit(text, sep.as_ref().and_then(Value::as_str), most))
        }
        most => unknown_method_callback(
            state,
            &Value::from(text),
            "split",
            &[Value::from(sep), Value::from(most)],
        ),
    }
}

fn rsplit(text: &str, separator: Option<&str>, most: usize) -> Value {
    let mut parts: Vec<&str> = match separator {
        Some(separator) => text.rsplitn(most.saturating_add(1), separator).collect(),
        None => rsplit_blank(text, most),
    };
    parts.reverse();
    parts.into_iter().map(Value::from).collect()
}

/// The last `most` words, the last one first, and what stands before them.
fn rsplit_blank(text: &str, most: usize) -> Vec<&str> {
    let (mut rest, mut parts) = (text.trim_end(), Vec::new());
    while !rest.is_empty() {
        let cut = rest.rfind(char::is_whitespace).filter(|_| parts.len() < most);
        let Some(cut) = cut else {
            parts.push(rest);
            break;
        };
        parts.push(rest[cut..].trim_start());
        rest = rest[..cut].trim_end();
    }
    parts
}

/// The methods that fill a string up to a width.
fn pad(state: &State, text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, fill): (i64, Option<char>) = from_args(args)?;
    let missing = usize::try_from(width).unwrap_or(0).saturating_sub(text.chars().count());
    // Paid for before it is made: a width is no measure of what there is already.
    state.consume_fuel(missing as u64 / 16)?;
    let fill = if method == "zfill" { '0' } else { fill.unwrap_or(' ') };
    let filling = |count: usize| fill.to_string().repeat(count);
    let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
    Ok(Value::from(match method {
        "ljust" => format!("{text}{}", filling(missing)),
        "rjust" => format!("{}{text}", filling(missing)),
        "zfill" => format!("{sign}{}{digits}", filling(missing)),
        _ => {
            // Of an odd rest Python puts the larger half before text in a field of odd width.
            let before = missing / 2 + (missing & usize::try_from(width).unwrap_or(0) & 1);
            format!("{}{text}{}", filling(before), filling(missing - before))
        }
    }))
}

/// Of a list: where the first item stands that is equal.
fn index(state: &State, list: &Value, args: &[Value]) -> Result<Value, Error> {
    let (what, start, end): (&Value, Option<i64>, Option<i64>) = from_args(args)?;
    let length = list.len().unwrap_or(0);
    let (start, end) = (position(start.unwrap_or(0), length), position_or_end(end, length));
    state.consume_fuel(end as u64)?;
    let items = list.try_iter()?.enumerate().take(end).skip(start);
    let found = items.filter(|(_, item)| item == what).map(|(at, _)| at).next();
    found.map(Value::from).ok_or_else(|| wrong("the value is not in the list"))
}
