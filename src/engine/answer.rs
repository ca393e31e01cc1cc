//! A whole answer, for requests that do not stream.

use futures::StreamExt;

use super::output::TextEvent;
use super::tokens::TextToken;
use super::{EngineError, Generation};
use crate::domain::FinishReason;

/// Everything a request produced, by prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    pub prompts: Vec<AnsweredPrompt>,
}

/// What came of one prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AnsweredPrompt {
    pub cached_tokens: usize,
    /// Its own tokens, if prompt log-probabilities were asked for.
    pub scored: Vec<TextToken>,
    pub choices: Vec<AnsweredChoice>,
}

/// One answer to one prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AnsweredChoice {
    pub text: String,
    pub tokens: Vec<TextToken>,
    pub reason: Option<FinishReason>,
    /// Tokens drawn, those that are not shown included.
    pub generated: usize,
}

impl AnsweredChoice {
    /// Mean log-probability per token, the measure of `best_of`.
    fn mean_logprob(&self) -> f64 {
        let logprobs: Vec<f64> =
            self.tokens.iter().filter_map(|token| token.logprob).map(f64::from).collect();
        match logprobs.len() {
            0 => f64::NEG_INFINITY,
            count => logprobs.iter().sum::<f64>() / count as f64,
        }
    }
}

/// Waits for every choice of every prompt.
///
/// # Errors
/// The first failure of any prompt; the others are cancelled.
pub async fn collect(generation: &mut Generation) -> Result<Answer, EngineError> {
    let choices = vec![AnsweredChoice::default(); generation.choices];
    let prompt = AnsweredPrompt { choices, ..AnsweredPrompt::default() };
    let mut answer = Answer { prompts: vec![prompt; generation.prompts.len()] };
    while let Some(event) = generation.events.next().await {
        match event? {
            TextEvent::Started { prompt, cached_tokens, scored } => {
                let prompt = &mut answer.prompts[prompt];
                (prompt.cached_tokens, prompt.scored) = (cached_tokens, scored);
            }
            TextEvent::Delta { prompt, choice, text, tokens } => {
                let choice = &mut answer.prompts[prompt].choices[choice];
                choice.text.push_str(&text);
                choice.tokens.extend(tokens);
            }
            TextEvent::Finished { prompt, choice, reason, generated } => {
                let choice = &mut answer.prompts[prompt].choices[choice];
                (choice.reason, choice.generated) = (Some(reason), generated);
            }
        }
    }
    Ok(answer)
}

/// Keeps the `n` likeliest of the choices, best first.
pub fn pick_best(mut choices: Vec<AnsweredChoice>, n: usize) -> Vec<AnsweredChoice> {
    choices.sort_by(|a, b| b.mean_logprob().total_cmp(&a.mean_logprob()));
    choices.truncate(n);
    choices
}
