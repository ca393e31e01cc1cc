//! What a request changes about the logits before a token is drawn.

use std::collections::HashMap;
use std::sync::Arc;

use super::Draw;
use crate::domain::SamplingParams;

/// The tokens of prompt and answer, as far as the penalties of a request count them.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Distinct tokens of the prompt, ascending; empty without a repetition penalty.
    prompt: Arc<[u32]>,
    /// How often each token occurs in the answer; empty without any penalty.
    answer: HashMap<u32, u32>,
    counts: bool,
}

impl Seen {
    /// What must be remembered of `prompt` for these parameters.
    pub fn new(params: &SamplingParams, prompt: &[u32]) -> Self {
        let repetition = params.repetition_penalty != 1.0;
        let mut distinct = if repetition { prompt.to_vec() } else { Vec::new() };
        distinct.sort_unstable();
        distinct.dedup();
        let counts =
            repetition || params.frequency_penalty != 0.0 || params.presence_penalty != 0.0;
        Self { prompt: distinct.into(), answer: HashMap::new(), counts }
    }

    /// One more token of the answer.
    pub fn push(&mut self, token: u32) {
        if self.counts {
            *self.answer.entry(token).or_default() += 1;
        }
    }

    fn in_prompt(&self, token: u32) -> bool {
        self.prompt.binary_search(&token).is_ok()
    }
}

/// Whether [`apply`] would change anything.
pub(super) fn change(draw: &Draw<'_>) -> bool {
    !draw.seen.prompt.is_empty()
        || !draw.seen.answer.is_empty()
        || !draw.params.logit_bias.is_empty()
        || bars_stop_tokens(draw)
}

/// `adjusted (v)` becomes `logits` with penalties, then biases, then barred stop tokens.
///
/// Repetition counts prompt and answer (Keskar et al. 2019, "CTRL", section 4.1, as Hugging Face
/// has it); frequency and presence count the answer alone.
pub(super) fn apply(logits: &[f32], draw: &Draw<'_>, adjusted: &mut Vec<f32>) {
    let (params, seen) = (draw.params, draw.seen);
    adjusted.clear();
    adjusted.extend_from_slice(logits);
    let mut at = |token: u32, change: &dyn Fn(f32) -> f32| {
        if let Some(logit) = adjusted.get_mut(token as usize) {
            *logit = change(*logit);
        }
    };
    let repetition = params.repetition_penalty;
    let repeated = |z: f32| if z > 0.0 { z / repetition } else { z * repetition };
    for &token in seen.prompt.iter() {
        at(token, &repeated);
    }
    for (&token, &count) in &seen.answer {
        if repetition != 1.0 && !seen.in_prompt(token) {
            at(token, &repeated);
        }
        let penalty = params.frequency_penalty * count as f32 + params.presence_penalty;
        at(token, &|z| z - penalty);
    }
    for &(token, bias) in &params.logit_bias {
        at(token, &|z| z + bias);
    }
    if bars_stop_tokens(draw) {
        draw.stop_tokens.iter().for_each(|&token| at(token, &|_| f32::NEG_INFINITY));
    }
}

fn bars_stop_tokens(draw: &Draw<'_>) -> bool {
    draw.index < draw.params.min_tokens && !draw.params.ignore_eos && !draw.stop_tokens.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adjusted(params: &SamplingParams, answer: &[u32], logits: &[f32]) -> Vec<f32> {
        let mut seen = Seen::new(params, &[0, 0, 1]);
        answer.iter().for_each(|&token| seen.push(token));
        let index = answer.len();
        let draw = Draw { params, stop_tokens: &[4], seen: &seen, choice: 0, index };
        let mut row = Vec::new();
        apply(logits, &draw, &mut row);
        row
    }

    #[test]
    fn repetition_counts_prompt_and_answer_once_each() {
        let params = SamplingParams { repetition_penalty: 2.0, ..Default::default() };
        let row = adjusted(&params, &[1, 2, 2], &[4.0, -4.0, 3.0, 3.0, 0.5]);
        assert_eq!(row, [2.0, -8.0, 1.5, 3.0, 0.5]);
    }

    #[test]
    fn frequency_and_presence_count_the_answer_alone() {
        let params =
            SamplingParams { frequency_penalty: 0.5, presence_penalty: 0.25, ..Default::default() };
        let row = adjusted(&params, &[1, 2, 2], &[1.0; 5]);
        assert_eq!(row, [1.0, 0.25, -0.25, 1.0, 1.0]);
    }

    #[test]
    fn a_bias_is_added_and_one_beyond_the_vocabulary_is_nothing() {
        let params =
            SamplingParams { logit_bias: vec![(3, -100.0), (99, 5.0)], ..Default::default() };
        assert_eq!(adjusted(&params, &[], &[1.0; 5]), [1.0, 1.0, 1.0, -99.0, 1.0]);
    }

    #[test]
    fn stop_tokens_are_barred_until_min_tokens() {
        let params = SamplingParams { min_tokens: 2, ..Default::default() };
        assert_eq!(adjusted(&params, &[1], &[1.0; 5])[4], f32::NEG_INFINITY);
        assert_eq!(adjusted(&params, &[1, 1], &[1.0; 5])[4], 1.0);
        let on = SamplingParams { ignore_eos: true, ..params };
        assert_eq!(adjusted(&on, &[1], &[1.0; 5])[4], 1.0);
    }
}
