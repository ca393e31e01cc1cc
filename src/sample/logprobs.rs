//! Natural-log probabilities of raw logits.

use crate::domain::TokenLogprob;

/// `log softmax` of one row, `ln Σ exp` taken once.
pub(super) struct Normaliser<'a> {
    logits: &'a [f32],
    log_sum: f64,
}

impl<'a> Normaliser<'a> {
    pub(super) fn over(logits: &'a [f32]) -> Self {
        let peak = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&z| f64::from((z - peak).exp())).sum();
        Self { logits, log_sum: f64::from(peak) + sum.ln() }
    }

    /// Of one token; `-inf` for one outside the vocabulary.
    pub(super) fn logprob(&self, token: u32) -> f32 {
        let logit = self.logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
        (f64::from(logit) - self.log_sum) as f32
    }

    /// The `count` likeliest tokens, best first, of equals the lower id first.
    pub(super) fn top(&self, count: usize) -> Vec<TokenLogprob> {
        let count = count.min(self.logits.len());
        let mut best: Vec<u32> = Vec::with_capacity(count + 1);
        for (token, &logit) in self.logits.iter().enumerate() {
            let beaten = |&other: &u32| self.logits[other as usize] >= logit;
            if best.len() < count || best.last().is_some_and(|last| !beaten(last)) {
                best.insert(best.partition_point(beaten), token as u32);
                best.truncate(count);
            }
        }
        best.into_iter().map(|token| TokenLogprob { token, logprob: self.logprob(token) }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one_however_large_the_logits() {
        let logits: Vec<f32> = (0..1000).map(|i| 1e4 + (i % 37) as f32).collect();
        let raw = Normaliser::over(&logits);
        let sum: f64 = (0..1000).map(|token| f64::from(raw.logprob(token)).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{sum}");
    }

    #[test]
    fn the_top_is_what_sorting_everything_gives() {
        let logits: Vec<f32> =
            (0..500u32).map(|i| (i.wrapping_mul(2_654_435_761) % 50) as f32).collect();
        let mut sorted: Vec<u32> = (0..500).collect();
        sorted.sort_by(|&x, &y| logits[y as usize].total_cmp(&logits[x as usize]).then(x.cmp(&y)));
        for count in [0, 1, 7, 60, 500, 900] {
            let top = Normaliser::over(&logits).top(count);
            let tokens: Vec<u32> = top.iter().map(|best| best.token).collect();
            assert_eq!(tokens, sorted[..count.min(500)]);
        }
    }
}
