//! Logits to token: penalties, temperature, top-k, top-p, min-p, and one number per token from a
//! counter-based generator.
//!
//! Everything here is a function of one row of logits and of the request it belongs to, so a
//! seeded request gives the same tokens whatever else is in the batch. Ties go to the lower id.
//! Above it is `worker`; below it nothing but `domain`.

mod choose;
mod logprobs;
mod penalties;
mod uniform;

pub use penalties::Seen;

use crate::domain::{PromptToken, SampledToken, SamplingParams};
use choose::Chooser;
use logprobs::Normaliser;

/// Why no token could be drawn.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SampleError {
    #[error(
        "the model gave a logit that is not a number; its weights or the adapter are damaged, or \
         the adapter's scale is too large"
    )]
    NotANumber,
    #[error("`logit_bias` and `min_tokens` leave no token to choose")]
    NothingLeft,
}

/// Which token of which answer is drawn, and by what rules.
#[derive(Clone, Copy, Debug)]
pub struct Draw<'a> {
    pub params: &'a SamplingParams,
    /// Tokens that end the answer; barred for the first `min_tokens`.
    pub stop_tokens: &'a [u32],
    /// What the penalties count.
    pub seen: &'a Seen,
    /// Choice `i` draws with `seed + i`.
    pub choice: usize,
    /// Tokens of the answer so far.
    pub index: usize,
}

/// Draws tokens; keeps its buffers from one row to the next.
#[derive(Debug, Default)]
pub struct Sampler {
    adjusted: Vec<f32>,
    chooser: Chooser,
}

impl Sampler {
    /// The next token after a row of raw `logits (v)`.
    ///
    /// # Errors
    /// [`SampleError::NotANumber`] if a logit is NaN or infinite, [`SampleError::NothingLeft`] if
    /// the request barred every token.
    pub fn sample(&mut self, logits: &[f32], draw: &Draw<'_>) -> Result<SampledToken, SampleError> {
        let params = draw.params;
        let uniform = uniform::at(params.seed.wrapping_add(draw.choice as u64), draw.index as u64);
        let token = if penalties::change(draw) {
            penalties::apply(logits, draw, &mut self.adjusted);
            self.chooser.choose(&self.adjusted, params, uniform)
        } else {
            self.chooser.choose(logits, params, uniform)
        };
        let token = token.map_err(|error| blame(error, logits))?;
        let Some(count) = params.logprobs else {
            return Ok(SampledToken { token, logprob: None, top: Vec::new() });
        };
        let raw = Normaliser::over(logits);
        Ok(SampledToken { token, logprob: Some(raw.logprob(token)), top: raw.top(count) })
    }
}

/// What the row of raw `logits (v)` before a prompt token says of it, with the `count` likeliest.
///
/// # Errors
/// [`SampleError::NotANumber`] if a logit is NaN or infinite.
pub fn score(logits: &[f32], token: u32, count: usize) -> Result<PromptToken, SampleError> {
    choose::peak(logits)?;
    let raw = Normaliser::over(logits);
    Ok(PromptToken { token, logprob: Some(raw.logprob(token)), top: raw.top(count) })
}

/// Nothing is left of a sound row only if the request barred everything.
fn blame(error: SampleError, logits: &[f32]) -> SampleError {
    match choose::peak(logits) {
        Ok(_) => error,
        Err(_) => SampleError::NotANumber,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw<'a>(
        params: &'a SamplingParams,
        seen: &'a Seen,
        choice: usize,
        index: usize,
    ) -> Draw<'a> {
        Draw { params, stop_tokens: &[], seen, choice, index }
    }

    #[test]
    fn a_token_depends_on_seed_choice_and_index_alone() {
        let logits: Vec<f32> = (0..50).map(|i| (i % 7) as f32 * 0.3).collect();
        let params = SamplingParams { seed: 5, ..Default::default() };
        let next = SamplingParams { seed: 6, ..Default::default() };
        let seen = Seen::default();
        let answer = |params: &SamplingParams, choice, reversed: bool| {
            let mut sampler = Sampler::default();
            let mut token =
                |i| sampler.sample(&logits, &draw(params, &seen, choice, i)).unwrap().token;
            let mut tokens: Vec<u32> = if reversed {
                (0..20).rev().map(&mut token).collect()
            } else {
                (0..20).map(&mut token).collect()
            };
            if reversed {
                tokens.reverse();
            }
            tokens
        };
        assert_eq!(answer(&params, 0, false), answer(&params, 0, true));
        assert_eq!(answer(&params, 1, false), answer(&next, 0, false));
        assert_ne!(answer(&params, 0, false), answer(&params, 1, false));
    }

    #[test]
    fn log_probabilities_are_those_of_the_raw_row() {
        let logits = [0.0, 1.0, 2.0];
        let params = SamplingParams {
            temperature: 0.0,
            logit_bias: vec![(2, -100.0)],
            logprobs: Some(2),
            ..Default::default()
        };
        let seen = Seen::new(&params, &[]);
        let sampled = Sampler::default().sample(&logits, &draw(&params, &seen, 0, 0)).unwrap();
        let top: Vec<u32> = sampled.top.iter().map(|best| best.token).collect();
        assert_eq!((sampled.token, top), (1, vec![2, 1]));
        let expected = 1.0 - (1f64 + 1f64.exp() + 2f64.exp()).ln();
        assert!((f64::from(sampled.logprob.unwrap()) - expected).abs() < 1e-6);
    }

    #[test]
    fn a_request_that_bars_everything_is_told_so_and_damage_is_not_blamed_on_it() {
        let params =
            SamplingParams { logit_bias: vec![(0, f32::NEG_INFINITY)], ..Default::default() };
        let seen = Seen::default();
        let mut sampler = Sampler::default();
        let nothing = sampler.sample(&[1.0], &draw(&params, &seen, 0, 0));
        assert_eq!(nothing, Err(SampleError::NothingLeft));
        let damaged = sampler.sample(&[f32::NAN], &draw(&params, &seen, 0, 0));
        assert_eq!(damaged, Err(SampleError::NotANumber));
    }
}
