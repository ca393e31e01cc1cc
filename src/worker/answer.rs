//! What a sequence does with its rows of logits: score its prompt, split into choices, draw tokens,
//! end.

use std::sync::atomic::Ordering::Relaxed;

use super::sequence::Sequence;
use super::{GenerationEvent, WorkerError, WorkerStats};
use crate::domain::{FinishReason, PromptToken};
use crate::sample::{self, SampleError, Sampler};

/// Turns logits into events.
#[derive(Debug, Default)]
pub(super) struct Reader {
    sampler: Sampler,
    /// Choices that split off in this step.
    pub forks: Vec<Sequence>,
}

impl Reader {
    /// Reads what a computed chunk asked for: `logits (n, width)`, the chunk starting at position
    /// `start`. A row that cannot be read fails its request alone.
    pub fn read(
        &mut self,
        sequence: &mut Sequence,
        start: usize,
        logits: &[f32],
        width: usize,
        stats: &WorkerStats,
    ) {
        let rows = logits.chunks_exact(width);
        if let Err(error) = self.read_rows(sequence, start, rows, stats) {
            sequence.request.fail(WorkerError::Device(error.to_string()));
        }
    }

    fn read_rows(
        &mut self,
        sequence: &mut Sequence,
        start: usize,
        rows: std::slice::ChunksExact<'_, f32>,
        stats: &WorkerStats,
    ) -> Result<(), SampleError> {
        if sequence.scores_prompt() {
            score(sequence, start, rows.clone())?;
        }
        if sequence.remaining() > 0 {
            return Ok(());
        }
        if sequence.reads_prompt {
            let last = rows.last().expect("the last row of a prompt is always asked for");
            self.open_answers(sequence, last, stats)
        } else {
            self.speak(sequence, rows, stats)
        }
    }

    /// Draws after the last known token, and goes on for as long as the drafted token is the one
    /// that was drawn: the next row then follows the right text.
    fn speak<'a>(
        &mut self,
        sequence: &mut Sequence,
        rows: impl Iterator<Item = &'a [f32]>,
        stats: &WorkerStats,
    ) -> Result<(), SampleError> {
        let draft = std::mem::take(&mut sequence.draft);
        let mut accepted = 0;
        for logits in rows {
            self.draw(sequence, logits, stats)?;
            if sequence.is_over() || draft.get(accepted) != sequence.tokens.last() {
                break;
            }
            accepted += 1;
        }
        sequence.computed += accepted;
        if !draft.is_empty() {
            sequence.belief.note(draft.len(), accepted);
            stats.drafted_tokens.fetch_add(draft.len() as u64, Relaxed);
            stats.accepted_tokens.fetch_add(accepted as u64, Relaxed);
        }
        sequence.draft = draft;
        sequence.draft.clear();
        Ok(())
    }

    /// The prompt is read: every choice draws its first token from the same row.
    fn open_answers(
        &mut self,
        sequence: &mut Sequence,
        last: &[f32],
        stats: &WorkerStats,
    ) -> Result<(), SampleError> {
        let (tokens, cached_tokens) = (sequence.tokens.len(), sequence.cached_tokens);
        stats.prompt_tokens.fetch_add(tokens as u64, Relaxed);
        stats.cached_tokens.fetch_add(cached_tokens as u64, Relaxed);
        sequence.reads_prompt = false;
        let prompt = std::mem::take(&mut sequence.report);
        sequence.request.send(GenerationEvent::Prefilled { cached_tokens, prompt });
        for choice in 1..sequence.request.ask.choices {
            let mut fork = sequence.fork(choice);
            self.draw(&mut fork, last, stats)?;
            if !fork.is_over() {
                self.forks.push(fork);
            }
        }
        self.draw(sequence, last, stats)
    }

    /// One more token, and the end if this was the last.
    fn draw(
        &mut self,
        sequence: &mut Sequence,
        logits: &[f32],
        stats: &WorkerStats,
    ) -> Result<(), SampleError> {
        sequence.heed_stop();
        if sequence.is_over() {
            return Ok(());
        }
        if sequence.request.max_answer == 0 {
            sequence.finish(FinishReason::Length);
            return Ok(());
        }
        let sampled = self.sampler.sample(logits, &sequence.draw())?;
        stats.generated_tokens.fetch_add(1, Relaxed);
        let token = sampled.token;
        sequence.tokens.push(token);
        sequence.seen.push(token);
        let choice = sequence.choice;
        sequence.request.send(GenerationEvent::Token { choice, token: sampled });
        let ask = &sequence.request.ask;
        if !ask.sampling.ignore_eos && ask.stop_tokens.contains(&token) {
            sequence.finish(FinishReason::Stop);
        } else if sequence.answered() >= sequence.request.max_answer {
            sequence.finish(FinishReason::Length);
        }
        Ok(())
    }
}

/// Row `i` tells what the model thought of the prompt token at `start + i + 1`.
fn score<'a>(
    sequence: &mut Sequence,
    start: usize,
    rows: impl Iterator<Item = &'a [f32]>,
) -> Result<(), SampleError> {
    let count = sequence.request.ask.sampling.prompt_logprobs.unwrap_or(0);
    if start == 0 {
        let token = sequence.request.ask.prompt[0];
        sequence.report.push(PromptToken { token, logprob: None, top: Vec::new() });
    }
    for (&token, logits) in sequence.request.ask.prompt[start + 1..].iter().zip(rows) {
        sequence.report.push(sample::score(logits, token, count)?);
    }
    Ok(())
}
