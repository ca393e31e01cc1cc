//! serde's reasons in the words of JSON: a caller knows neither `i64` nor sequences.

/// Most characters of a refused value that an answer repeats.
const SHOWN: usize = 60;

/// `must be a whole number, not "5"` out of `invalid type: string "5", expected i64`; a reason of
/// any other kind as it is.
pub(super) fn of_value(reason: &str) -> String {
    let kinds = ["invalid type: ", "invalid value: "];
    let found = kinds.iter().find_map(|kind| reason.strip_prefix(kind));
    match found.and_then(|found| found.rsplit_once(", expected ")) {
        Some((given, wanted)) => format!("must be {}, not {}", wanted_as(wanted), given_as(given)),
        None => reason.to_owned(),
    }
}

/// The same for the text of a query parameter.
pub(super) fn of_text(reason: &str) -> &str {
    match reason {
        "provided string was not `true` or `false`" => "must be true or false",
        _ if reason.contains("digit")
            || reason.contains("integer")
            || reason.contains("number") =>
        {
            "must be a whole number within bounds"
        }
        _ => reason,
    }
}

fn wanted_as(wanted: &str) -> &str {
    match wanted {
        "i64" | "i32" => "a whole number",
        "u64" | "usize" => "a whole number of at least 0",
        "u32" => "a whole number from 0 to 4294967295",
        "f32" | "f64" => "a number",
        "a sequence" => "a list",
        "a map" => "an object",
        "a boolean" => "true or false",
        wanted if wanted.starts_with("struct ") => "an object",
        wanted => wanted,
    }
}

fn given_as(given: &str) -> String {
    let value = match given {
        "sequence" => return "a list".to_owned(),
        "map" => return "an object".to_owned(),
        given => given.strip_prefix("string ").unwrap_or(given),
    };
    // ``integer `5` ``: the value is what stands between the quotes.
    let value = match (value.starts_with('"'), value.split('`').nth(1)) {
        (false, Some(inner)) => inner,
        _ => value,
    };
    match value.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &value[..end]),
        None => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::of_value;

    #[test]
    fn types_are_called_as_json_calls_them() {
        for (reason, plain) in [
            (r#"invalid type: string "5", expected i64"#, r#"must be a whole number, not "5""#),
            ("invalid type: floating point `2.5`, expected i64", "must be a whole number, not 2.5"),
            ("invalid type: null, expected a map", "must be an object, not null"),
            ("invalid type: sequence, expected a string", "must be a string, not a list"),
            (r#"invalid type: string "`a`, b", expected f32"#, r#"must be a number, not "`a`, b""#),
            ("must be a string or a list of strings", "must be a string or a list of strings"),
        ] {
            assert_eq!(of_value(reason), plain);
        }
        let long = format!("invalid type: string {:?}, expected i64", "é".repeat(5000));
        assert!(of_value(&long).ends_with("é…"), "{}", of_value(&long));
    }
}
