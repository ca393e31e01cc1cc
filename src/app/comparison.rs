//! Two models on the same tokens: what came out of a conversion, beside what it was made from.

use std::ops::Range;

use crate::backend::Backend;
use crate::backend::cpu::CpuBackend;
use crate::domain::{AdapterWeights, BaseInfo, Picture};
use crate::model::{AdapterRows, Model, ModelError, PictureRows};
use crate::text::TextModel;

/// Texts on which the result is compared with its source.
const ROWS: [&str; 4] = [
    "The quick brown fox jumps over the lazy dog, and then it goes home.",
    "In 1905 a clerk of the patent office in Bern explained why atoms make pollen dance.",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "Question: what is seven times eight? Answer: fifty-six.",
];
/// Tokens of a row that are compared, at most.
const ROW_TOKENS: usize = 48;

/// Two models on the same tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    pub tokens: usize,
    /// Mean of `Σ p ln(p / q)` over tokens, in nats; `p` is the source, its adapter beside it.
    pub kl: f64,
    /// Share of tokens whose likeliest successor is the same.
    pub agreement: f64,
}

/// Tokens both are asked about.
pub(super) struct Row {
    ids: Vec<u32>,
    /// Where a picture is shown; nothing is asked there.
    pub(super) shown: Range<usize>,
}

/// The texts as tokens; without a tokenizer, some of the vocabulary. A model that sees is shown a
/// picture in one row more.
pub(super) fn rows(text: Option<&TextModel>, base: &BaseInfo) -> Vec<Row> {
    let (vocab, most) = (base.vocab_size, ROW_TOKENS.min(base.context_length));
    let some =
        |seed: usize| (0..most).map(move |i| ((i * i * 31 + i * 7 + seed * 101) % vocab) as u32);
    let row = |(seed, text_row): (usize, &&str)| match text {
        Some(text) => {
            let ids = text.completion_prompt(text_row).unwrap_or_default();
            ids.into_iter().filter(|&id| (id as usize) < vocab).take(most).collect()
        }
        None => some(seed).collect(),
    };
    let rows = ROWS.iter().enumerate().map(row).filter(|row: &Vec<u32>| !row.is_empty());
    let mut rows: Vec<Row> = rows.map(|ids| Row { ids, shown: 0..0 }).collect();
    let seeing = rows.first().and_then(|row| seeing(&row.ids, base));
    rows.extend(seeing);
    rows
}

/// The row `ids` with a picture behind its first token, if the model sees and has room for it.
fn seeing(ids: &[u32], base: &BaseInfo) -> Option<Row> {
    let vision = base.vision?;
    let shown = 1..1 + vision.tokens_per_image;
    let image = std::iter::repeat_n(&vision.image_token, vision.tokens_per_image);
    let all = ids[..1].iter().chain(image).chain(&ids[1..]).copied();
    (shown.end < base.context_length)
        .then(|| Row { ids: all.take(base.context_length).collect(), shown })
}

/// The logits of every token that is asked about, row after row.
///
/// # Errors
/// If `adapter` does not fit.
pub(super) fn logits(
    b: &mut CpuBackend,
    model: &Model<CpuBackend>,
    rows: &[Row],
    adapter: Option<&AdapterWeights>,
) -> Result<Vec<f32>, ModelError> {
    let adapter = adapter.map(|weights| model.attach(b, weights)).transpose()?;
    let mut all = Vec::new();
    for Row { ids, shown } in rows {
        let worn: Vec<AdapterRows<'_, CpuBackend>> = (adapter.iter())
            .map(|adapter| AdapterRows { rows: 0..ids.len(), adapter, scale: 1.0 })
            .collect();
        let features = (!shown.is_empty()).then(|| features(b, model)).flatten();
        let pictures: Vec<PictureRows<'_>> =
            (features.iter()).map(|features| PictureRows { row: shown.start, features }).collect();
        let asked: Vec<usize> = (0..ids.len()).filter(|row| !shown.contains(row)).collect();
        let span = 0..ids.len();
        let z = model.forward_seeing(b, ids, std::slice::from_ref(&span), &worn, &pictures, &asked);
        all.extend(b.download(&z));
        b.recycle(z);
    }
    Ok(all)
}

/// What a model that sees makes of a picture of waves.
fn features(b: &mut CpuBackend, model: &Model<CpuBackend>) -> Option<Vec<f32>> {
    let values = 3 * model.info.vision?.image_size.pow(2);
    let pixels = (0..values).map(|at| 2.0 * (at as f32 * 0.37).sin()).collect();
    let mut run = model.see(b, &Picture { digest: [0; 32], pixels })?;
    let features = loop {
        if let Some(features) = run.advance(b, model) {
            break features;
        }
    };
    run.release(b);
    Some(features)
}

/// What `after` has made of `before`, logits over a vocabulary of `vocab`.
pub(super) fn compare(before: &[f32], after: &[f32], vocab: usize) -> Comparison {
    let (mut kl, mut same, mut tokens) = (0.0, 0, 0);
    for (p, q) in before.chunks_exact(vocab).zip(after.chunks_exact(vocab)) {
        let (log_p, log_q) = (log_sum(p), log_sum(q));
        kl += (p.iter().zip(q))
            .map(|(&p, &q)| {
                let (p, q) = (f64::from(p) - log_p, f64::from(q) - log_q);
                p.exp() * (p - q)
            })
            .sum::<f64>();
        same += usize::from(likeliest(p) == likeliest(q));
        tokens += 1;
    }
    let count = tokens.max(1) as f64;
    Comparison { tokens, kl: kl / count, agreement: same as f64 / count }
}

/// `ln Σ exp(z)`.
fn log_sum(z: &[f32]) -> f64 {
    let max = f64::from(z.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + z.iter().map(|&z| (f64::from(z) - max).exp()).sum::<f64>().ln()
}

fn likeliest(z: &[f32]) -> Option<usize> {
    (0..z.len()).max_by(|&i, &j| z[i].total_cmp(&z[j]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_models_agree_and_the_divergence_is_that_of_the_formula() {
        let z = [0.0, 1.0, 2.0, 5.0];
        let same = compare(&z, &z, 2);
        assert_eq!((same.tokens, same.agreement), (2, 1.0));
        assert!(same.kl.abs() < 1e-12);
        // p = (1/2, 1/2), q = (1/4, 3/4): ln 2 − ln 3 / 2.
        let other = compare(&[0.0, 0.0], &[0.0, 3f32.ln()], 2);
        assert!((other.kl - (2f64.ln() - 3f64.ln() / 2.0)).abs() < 1e-6);
    }
}
