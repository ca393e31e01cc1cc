//! Temperature, top-k, top-p and min-p over one row, and the token a uniform number lands on.

use std::cmp::Ordering;

use super::SampleError;
use crate::domain::SamplingParams;

/// How many candidates top-p sorts first; most nuclei are smaller, and the next stretch is eight
/// times as long.
const FIRST_STRETCH: usize = 64;

/// A token with its logit and later its weight `exp((z − peak) / temperature)`.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    logit: f32,
    token: u32,
}

/// Chooses tokens; keeps its buffers from one row to the next.
#[derive(Debug, Default)]
pub(super) struct Chooser {
    weights: Vec<f32>,
    candidates: Vec<Candidate>,
}

impl Chooser {
    /// The token that `uniform` in `[0, 1)` lands on.
    ///
    /// The order is that of Hugging Face: temperature, top-k, top-p over what top-k left, min-p.
    ///
    /// # Errors
    /// If no finite logit is left, or one is NaN or `+inf`.
    pub(super) fn choose(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        uniform: f64,
    ) -> Result<u32, SampleError> {
        let (best, peak) = peak(logits)?;
        if params.temperature <= 0.0 {
            return Ok(best);
        }
        let weight = |logit: f32| ((logit - peak) / params.temperature).exp();
        let cut_by_rank = params.top_k > 0 && params.top_k < logits.len();
        if !cut_by_rank && params.top_p >= 1.0 {
            Ok(self.among_all(logits, params.min_p, uniform, weight).unwrap_or(best))
        } else {
            Ok(self.among_best(logits, params, uniform, weight).unwrap_or(best))
        }
    }

    /// Draws in the order of ids: nothing is sorted.
    fn among_all(
        &mut self,
        logits: &[f32],
        min_p: f32,
        uniform: f64,
        weight: impl Fn(f32) -> f32,
    ) -> Option<u32> {
        let floored = |z: &f32| Some(weight(*z)).filter(|&w| w >= min_p).unwrap_or(0.0);
        self.weights.clear();
        self.weights.extend(logits.iter().map(floored));
        let total: f64 = self.weights.iter().map(|&w| f64::from(w)).sum();
        land(self.weights.iter().copied().zip(0..), uniform * total)
    }

    /// Draws in the order of likelihood, from the best on, sorting no more than is needed.
    fn among_best(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        uniform: f64,
        weight: impl Fn(f32) -> f32,
    ) -> Option<u32> {
        self.candidates.clear();
        let all = logits.iter().zip(0..);
        self.candidates.extend(all.map(|(&logit, token)| Candidate { logit, token }));
        if params.top_k > 0 {
            best_first(&mut self.candidates, params.top_k);
            self.candidates.truncate(params.top_k);
        }
        let kept = self.keep_nucleus(params, weight);
        let tokens = self.candidates.iter().map(|candidate| candidate.token);
        land(self.weights.iter().copied().zip(tokens), uniform * kept)
    }

    /// Cuts the candidates where top-p and min-p say, always leaving one: `weights[i]` belongs to
    /// `candidates[i]`, best first. Returns the sum of the weights.
    fn keep_nucleus(&mut self, params: &SamplingParams, weight: impl Fn(f32) -> f32) -> f64 {
        let total: f64 = self.candidates.iter().map(|c| f64::from(weight(c.logit))).sum();
        let nucleus = f64::from(params.top_p) * total;
        let (mut kept, mut stretch) = (0.0, FIRST_STRETCH);
        self.weights.clear();
        while self.weights.len() < self.candidates.len() {
            let rest = &mut self.candidates[self.weights.len()..];
            for candidate in best_first(rest, stretch) {
                let w = weight(candidate.logit);
                if !self.weights.is_empty() && (kept >= nucleus || w < params.min_p) {
                    return kept;
                }
                kept += f64::from(w);
                self.weights.push(w);
            }
            stretch *= 8;
        }
        kept
    }
}

/// The likeliest token and its logit, of equals the lower id.
///
/// # Errors
/// If a logit is NaN or `+inf`, or all are `-inf`.
pub(super) fn peak(logits: &[f32]) -> Result<(u32, f32), SampleError> {
    let mut best = (0, f32::NEG_INFINITY);
    for (&logit, token) in logits.iter().zip(0..) {
        if logit.is_nan() || logit == f32::INFINITY {
            return Err(SampleError::NotANumber);
        }
        if logit > best.1 {
            best = (token, logit);
        }
    }
    if best.1 == f32::NEG_INFINITY { Err(SampleError::NothingLeft) } else { Ok(best) }
}

/// Brings the `count` best to the front, sorted, and returns them.
fn best_first(candidates: &mut [Candidate], count: usize) -> &[Candidate] {
    if count < candidates.len() {
        candidates.select_nth_unstable_by(count, better);
    }
    let best = count.min(candidates.len());
    candidates[..best].sort_unstable_by(better);
    &candidates[..best]
}

fn better(x: &Candidate, y: &Candidate) -> Ordering {
    y.logit.partial_cmp(&x.logit).unwrap_or(Ordering::Equal).then(x.token.cmp(&y.token))
}

/// The first token at which the running sum passes `target`; rounding may leave the last one.
fn land(weighted: impl Iterator<Item = (f32, u32)>, target: f64) -> Option<u32> {
    let (mut sum, mut last) = (0.0, None);
    for (w, token) in weighted.filter(|(w, _)| *w > 0.0) {
        sum += f64::from(w);
        last = Some(token);
        if sum > target {
            break;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::uniform;

    const DRAWS: u64 = 40_000;

    fn frequencies(logits: &[f32], params: &SamplingParams) -> Vec<f64> {
        let mut chooser = Chooser::default();
        let mut counts = vec![0.0; logits.len()];
        for index in 0..DRAWS {
            let token = chooser.choose(logits, params, uniform::at(params.seed, index)).unwrap();
            counts[token as usize] += 1.0 / DRAWS as f64;
        }
        counts
    }

    /// Total variation between what was drawn and `softmax(logits / t)` over the tokens `kept`.
    fn distance(logits: &[f32], params: &SamplingParams, kept: &[usize]) -> f64 {
        let weight = |i: usize| f64::from(logits[i] / params.temperature).exp();
        let total: f64 = kept.iter().map(|&i| weight(i)).sum();
        let expected = |i| if kept.contains(&i) { weight(i) / total } else { 0.0 };
        let drawn = frequencies(logits, params);
        (0..logits.len()).map(|i| (drawn[i] - expected(i)).abs()).sum::<f64>() / 2.0
    }

    fn params(temperature: f32) -> SamplingParams {
        SamplingParams { temperature, seed: 11, ..Default::default() }
    }

    const LOGITS: [f32; 6] = [1.0, 3.0, 2.0, 3.0, -1.0, f32::NEG_INFINITY];

    #[test]
    fn draws_follow_the_softmax_at_any_temperature() {
        for temperature in [0.5, 1.0, 2.0] {
            let far = distance(&LOGITS, &params(temperature), &[0, 1, 2, 3, 4]);
            assert!(far < 0.01, "temperature {temperature}: {far}");
        }
    }

    #[test]
    fn top_k_keeps_the_k_best_and_of_equals_the_lower_id() {
        for (top_k, kept) in [(1, &[1][..]), (2, &[1, 3]), (3, &[1, 2, 3])] {
            let params = SamplingParams { top_k, ..params(1.0) };
            assert!(distance(&LOGITS, &params, kept) < 0.01, "top_k {top_k}");
        }
    }

    #[test]
    fn top_p_keeps_the_smallest_sufficient_set() {
        // Probabilities by rank: 0.397, 0.397, 0.146, 0.054, 0.007.
        for (top_p, kept) in [(0.0, &[1][..]), (0.39, &[1]), (0.5, &[1, 3]), (0.93, &[1, 2, 3])] {
            let params = SamplingParams { top_p, ..params(1.0) };
            assert!(distance(&LOGITS, &params, kept) < 0.01, "top_p {top_p}");
        }
    }

    #[test]
    fn top_p_measures_what_top_k_left() {
        // Of the two best each has half, so 0.45 is reached by one of them.
        let params = SamplingParams { top_k: 2, top_p: 0.45, ..params(1.0) };
        assert!(distance(&LOGITS, &params, &[1]) < 1e-9);
    }

    #[test]
    fn min_p_is_relative_to_the_likeliest_with_and_without_sorting() {
        for top_p in [1.0, 0.9999] {
            let params = SamplingParams { min_p: 0.3, top_p, ..params(1.0) };
            assert!(distance(&LOGITS, &params, &[1, 2, 3]) < 0.01, "top_p {top_p}");
        }
    }

    #[test]
    fn a_nucleus_wider_than_one_stretch_is_what_sorting_everything_gives() {
        let logits: Vec<f32> = (0..3000u32).map(|i| (i * 7919 % 3001) as f32 * 1e-3).collect();
        let mut sorted: Vec<usize> = (0..3000).collect();
        sorted.sort_by(|&x, &y| logits[y].total_cmp(&logits[x]));
        let total: f64 = logits.iter().map(|&z| f64::from(z).exp()).sum();
        let mut sum = 0.0;
        let before = |&&i: &&usize| {
            sum += f64::from(logits[i]).exp() / total;
            sum < 0.6
        };
        let kept = sorted.iter().take_while(before).count() + 1;
        let mut chooser = Chooser::default();
        let params = SamplingParams { top_p: 0.6, ..params(1.0) };
        chooser.choose(&logits, &params, 0.5).unwrap();
        assert!(kept > FIRST_STRETCH * 9 && chooser.weights.len().abs_diff(kept) <= 1);
        let chosen = |u| chooser.candidates[..kept].iter().any(|c| c.token == u);
        for index in 0..500 {
            let mut other = Chooser::default();
            assert!(chosen(other.choose(&logits, &params, uniform::at(3, index)).unwrap()));
        }
    }

    #[test]
    fn temperature_zero_takes_the_best_and_of_equals_the_lower_id() {
        for uniform in [0.0, 0.5, 0.999] {
            assert_eq!(Chooser::default().choose(&LOGITS, &params(0.0), uniform), Ok(1));
        }
    }

    #[test]
    fn logits_that_are_no_numbers_are_refused() {
        let choose = |logits: &[f32]| Chooser::default().choose(logits, &params(1.0), 0.5);
        assert_eq!(choose(&[0.0, f32::NAN]), Err(SampleError::NotANumber));
        assert_eq!(choose(&[0.0, f32::INFINITY]), Err(SampleError::NotANumber));
        assert_eq!(choose(&[f32::NEG_INFINITY; 3]), Err(SampleError::NothingLeft));
    }

    #[test]
    fn extreme_temperatures_stay_within_the_vocabulary() {
        for temperature in [f32::MIN_POSITIVE, 1e-6, 1e6, f32::MAX] {
            for uniform in [0.0, 1.0 - f64::EPSILON] {
                let token = Chooser::default().choose(&LOGITS, &params(temperature), uniform);
                assert!(token.is_ok_and(|token| token < 5), "{temperature} {uniform}");
            }
        }
    }
}
