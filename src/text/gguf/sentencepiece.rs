//! SentencePiece vocabularies: scores to an order of merges, and back.

use std::collections::HashMap;

use serde_json::{Value, json};

/// The merges that the scores of a vocabulary come to: every way to put a piece together from two
/// others, the piece with the highest score first. As `transformers` converts such vocabularies.
pub(super) fn merges(pieces: &[(usize, &str, f32)]) -> Vec<Value> {
    let ids: HashMap<&str, usize> = pieces.iter().map(|(id, piece, _)| (*piece, *id)).collect();
    let mut found: Vec<(f32, &str, &str)> = Vec::new();
    for (_, piece, score) in pieces {
        let mut ways: Vec<(usize, usize, &str, &str)> = Vec::new();
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                ways.push((l, r, left, right));
            }
        }
        ways.sort_unstable();
        found.extend(ways.into_iter().map(|(_, _, left, right)| (*score, left, right)));
    }
    let chars = |text: &str| text.chars().count();
    found.sort_by(|a, b| {
        let lengths = (chars(b.1), chars(b.2)).cmp(&(chars(a.1), chars(a.2)));
        b.0.total_cmp(&a.0).then(lengths)
    });
    found.into_iter().map(|(_, left, right)| json!([left, right])).collect()
}

/// A score per token: minus the place of the first merge that makes it; what no merge makes comes
/// after all of them.
pub(super) fn scores(tokens: &[String], merges: &[(String, String)]) -> Vec<f32> {
    let mut places: HashMap<String, usize> = HashMap::new();
    for (place, (left, right)) in merges.iter().enumerate() {
        places.entry(format!("{left}{right}")).or_insert(place);
    }
    let last = merges.len();
    tokens.iter().map(|token| -(places.get(token).copied().unwrap_or(last) as f32)).collect()
}
