//! How much longer a tokenizer makes a text before it is cut into tokens, and after.
//!
//! A chain of replacements multiplies: four that put a hundred bytes in the place of one make a
//! hundred megabytes of one letter. What a model's file asks of every request is bounded at load.

use serde_json::Value;

/// Bytes that each byte of a text may become; a space of one byte becomes one of three.
pub const MOST: f64 = 64.0;

/// Bytes that a byte can become by the replacements of a normalizer or decoder, one after the other.
pub fn growth(part: &Value) -> f64 {
    match part["type"].as_str() {
        Some("Sequence") => {
            let parts =
                ["normalizers", "decoders"].into_iter().filter_map(|key| part[key].as_array());
            parts.flatten().map(growth).product()
        }
        Some("Replace") => replacement(&part["pattern"], part["content"].as_str().unwrap_or("")),
        _ => 1.0,
    }
}

/// An expression may match a byte, or the nothing before it.
fn replacement(pattern: &Value, content: &str) -> f64 {
    let content = content.len() as f64;
    match pattern["String"].as_str() {
        Some(pattern) if !pattern.is_empty() => (content / pattern.len() as f64).max(1.0),
        _ => content + 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn replacements_multiply() {
        let of = |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
        let long = "x".repeat(10);
        let usual = of(json!({"String": " "}), "▁");
        let regex = of(json!({"Regex": "a*"}), &long);
        let shrinking = of(json!({"String": "abc"}), "x");
        let chain = json!({"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, usual, shrinking,
            {"type": "Sequence", "normalizers": [regex, {"type": "NFKC"}]},
        ]});
        assert_eq!((growth(&usual), growth(&regex), growth(&chain)), (3.0, 11.0, 33.0));
        assert_eq!((growth(&shrinking), growth(&Value::Null)), (1.0, 1.0));
    }
}
