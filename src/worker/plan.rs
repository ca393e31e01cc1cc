//! The plan of a step: a row for every sequence that decodes, guesses at what follows where they
//! pay, and prompts by chunks, all under a budget of tokens.

use super::draft::{self, Price};
use super::kv::blocks_for;
use super::scheduler::{Scheduler, StepLimits};
use super::sequence::Sequence;
use crate::domain::Speculation;

/// Prompts get at least so many rows, however little time is left, or they would never be read.
const LEAST_CHUNK: usize = 8;

/// How far the time between two steps may be stretched, in steps in which all that run decode, as
/// they soon will.
#[derive(Debug)]
struct Stretch {
    /// By prompts while others decode: running streams slow down evenly, and none stalls.
    prompts: f64,
    /// By prompts, guesses and training together.
    longest: f64,
    /// What guesses that paid keep of it; training has the rest before guesses do.
    guesses: f64,
}

/// Training between steps: with the scatter of steps and units, the longest times become a fifth to
/// two fifths longer than without training.
const BETWEEN: Stretch = Stretch { prompts: 1.8, longest: 2.4, guesses: 1.2 };
/// Training beside steps, which leaves them half of the cores: what they leave it of the other half
/// makes up for what it loses to the memory that both share, and the longest times become a tenth to a
/// third longer than without training.
const BESIDE: Stretch = Stretch { prompts: 1.3, longest: 1.3, guesses: 1.15 };

/// One step: which running sequences compute how many tokens, and which blocks are copied before.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub slots: Vec<Slot>,
    /// `(from, to)`: a shared block is about to be written to.
    pub copies: Vec<(u32, u32)>,
}

/// A running sequence's share of a step; its draft, if it has one, is part of its rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    /// Into [`Scheduler::running`].
    pub index: usize,
    pub rows: usize,
}

impl Scheduler {
    /// Decides one step. Training took `self.trained` seconds of the time since the one before.
    pub fn plan(&mut self, plan: &mut Plan) {
        plan.slots.clear();
        plan.copies.clear();
        if let Some(index) = self.running.iter().position(|s| s.request.alone.get()) {
            return self.plan_alone(index, plan);
        }
        let mut limits = self.limits;
        self.plan_decoding(&mut limits, plan);
        if self.running.iter().all(Sequence::decodes) {
            limits.tokens = limits.tokens.min(self.guessed_rows(plan.slots.len()));
            self.plan_drafts(limits, plan);
        } else {
            limits.tokens = limits.tokens.min(self.prompt_rows(plan.slots.len()));
            self.plan_prompts(limits, plan);
        }
    }

    fn plan_alone(&mut self, index: usize, plan: &mut Plan) {
        let mut limits = self.limits;
        if self.running[index].decodes() {
            if self.make_room(index, plan) {
                plan.slots.push(Slot { index, rows: 1 });
            }
        } else {
            let rows = chunk(&self.running[index], limits.tokens, &mut limits);
            plan.slots.push(Slot { index, rows });
        }
    }

    /// Whoever gives way to make room is the youngest, hence behind those already planned.
    fn plan_decoding(&mut self, limits: &mut StepLimits, plan: &mut Plan) {
        let mut index = 0;
        while index < self.running.len() && limits.tokens > 0 {
            if self.running[index].decodes() && self.make_room(index, plan) {
                plan.slots.push(Slot { index, rows: 1 });
                limits.tokens -= 1;
            }
            index += 1;
        }
    }

    /// Guesses for those that decode; a step that reads a prompt is wide enough without.
    fn plan_drafts(&mut self, mut limits: StepLimits, plan: &mut Plan) {
        if limits.speculation == Speculation::Off {
            return;
        }
        let (tokens, mut rows) = (plan.slots.len(), plan.slots.len());
        for slot in &mut plan.slots {
            let price = match limits.speculation {
                Speculation::Always => Price::NOTHING,
                _ => Price::of_a_row(&self.pace, rows, tokens),
            };
            let most = limits.tokens.min(limits.scored_rows);
            let drafted = self.draft(slot.index, price, most);
            limits.tokens -= drafted;
            limits.scored_rows -= drafted;
            slot.rows += drafted;
            rows += drafted;
        }
    }

    /// Lets one sequence guess, within the cache room that nobody else is about to need; returns
    /// how many tokens.
    fn draft(&mut self, index: usize, price: Price, most: usize) -> usize {
        let reserve = self.running.len();
        let sequence = &mut self.running[index];
        let most = most.min(sequence.unanswered().saturating_sub(1)).min(sequence.guesses());
        // A prompt of one token is still a prompt.
        if sequence.reads_prompt || !sequence.request.ask.speculative || most == 0 {
            return 0;
        }
        let length = price.worthwhile(sequence.belief.chance()).min(most);
        if length == 0 {
            sequence.belief.fade();
            return 0;
        }
        draft::look_up(&sequence.tokens, length, &mut sequence.draft);
        sequence.draft_no_pictures();
        let needed = sequence.tokens.len() + sequence.draft.len();
        let missing = blocks_for(needed).saturating_sub(sequence.blocks.len());
        if missing > 0
            && (missing + reserve > self.room.available()
                || !self.room.grow(&mut sequence.blocks, needed))
        {
            sequence.draft.clear();
        }
        sequence.draft.len()
    }

    /// Seconds of a step in which all that run decode; 0 if nothing was measured yet.
    fn decoding_seconds(&self) -> f64 {
        self.pace.seconds(self.running.len())
    }

    /// Seconds that training may have for itself before the next step, after one of `seconds`.
    pub fn room_for_training(&self, seconds: f64) -> f64 {
        let alone = self.decoding_seconds();
        let stretch = self.stretch();
        // Guesses that paid will be made again.
        let guessed = seconds.clamp(alone, stretch.guesses * alone);
        let step = if self.has_only_decoding() { guessed } else { stretch.prompts * alone };
        stretch.longest * alone - step
    }

    fn stretch(&self) -> Stretch {
        if self.shared { BESIDE } else { BETWEEN }
    }

    /// Rows of guesses that keep within what training leaves of the time between two steps.
    fn guessed_rows(&self, decoding: usize) -> usize {
        if self.trained == 0.0 && !self.shared {
            return usize::MAX;
        }
        let longest = self.stretch().longest * self.decoding_seconds();
        self.rows_within(longest - self.trained, decoding)
    }

    /// How many rows a step of `seconds` has room for beside `decoding` ones.
    fn rows_within(&self, seconds: f64, decoding: usize) -> usize {
        self.pace.widest(seconds, decoding + self.limits.tokens).saturating_sub(decoding)
    }

    /// Prompt rows that stretch a step of `decoding` rows no further than is good.
    fn prompt_rows(&self, decoding: usize) -> usize {
        if decoding == 0 {
            return usize::MAX;
        }
        let alone = self.decoding_seconds();
        let Stretch { prompts, longest, .. } = self.stretch();
        let seconds = (prompts * alone).min(longest * alone - self.trained);
        let rows = self.rows_within(seconds, decoding);
        // After training, which leaves room the next time, a prompt can wait.
        let least = if self.trained > 0.0 { 1 } else { LEAST_CHUNK };
        rows.max(least)
    }

    /// The older prompt takes what the younger ones leave, but never less than half of the budget
    /// that is left: a long prompt delays a short one by a chunk, not by its length.
    fn plan_prompts(&self, mut limits: StepLimits, plan: &mut Plan) {
        let prompts = || self.running.iter().enumerate().filter(|(_, s)| !s.decodes());
        let mut others: usize = prompts().map(|(_, sequence)| sequence.remaining()).sum();
        for (index, sequence) in prompts() {
            others -= sequence.remaining();
            let half = limits.tokens.div_ceil(2);
            let share = limits.tokens.saturating_sub(others).max(half);
            let rows = chunk(sequence, share, &mut limits);
            if rows > 0 {
                plan.slots.push(Slot { index, rows });
            }
        }
    }
}

/// Rows of the next chunk of a prompt: at most `share`, and within what is left of the limits,
/// which are lowered by it.
fn chunk(sequence: &Sequence, share: usize, limits: &mut StepLimits) -> usize {
    let mut rows = sequence.remaining().min(share).min(limits.tokens);
    if sequence.scores_prompt() {
        rows = rows.min(limits.scored_rows);
        limits.scored_rows -= rows;
    }
    limits.tokens -= rows;
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A step of one row takes 10 ms, each row more half a millisecond.
    fn scheduler() -> Scheduler {
        let speculation = Speculation::Off;
        let limits = StepLimits { tokens: 64, sequences: 4, scored_rows: 64, speculation };
        let mut scheduler = Scheduler::new(limits, 8);
        scheduler.pace.note(1, 0.010);
        scheduler.pace.note(33, 0.026);
        scheduler
    }

    #[test]
    fn prompts_get_what_training_left_of_the_time_between_two_steps() {
        let mut scheduler = scheduler();
        let rows = [0.0, 0.004, 0.0121, 0.050].map(|trained| {
            scheduler.trained = trained;
            scheduler.prompt_rows(1)
        });
        assert_eq!(rows, [16, 16, 3, 1]);
    }

    #[test]
    fn guesses_get_what_training_left_of_the_time_between_two_steps() {
        let mut scheduler = scheduler();
        let rows = [0.0, 0.0041, 0.0121, 0.050].map(|trained| {
            scheduler.trained = trained;
            scheduler.guessed_rows(1)
        });
        assert_eq!(rows, [usize::MAX, 19, 3, 0]);
    }

    #[test]
    fn beside_training_prompts_guesses_and_what_it_gets_alone_keep_within_one_bound() {
        let mut scheduler = scheduler();
        scheduler.share_device(true);
        assert!((scheduler.decoding_seconds() - 0.020).abs() < 1e-9, "at first, the worst case");
        scheduler.pace = self::tests::scheduler().pace;
        let rows = [0.0, 0.0011, 0.0025, 0.050].map(|trained| {
            scheduler.trained = trained;
            (scheduler.prompt_rows(1), scheduler.guessed_rows(1))
        });
        assert_eq!(rows, [(LEAST_CHUNK, 6), (3, 3), (1, 1), (1, 0)]);
        for (seconds, room) in [(0.010, 0.003), (0.011, 0.002), (0.5, 0.0015)] {
            assert!((scheduler.room_for_training(seconds) - room).abs() < 1e-9, "{seconds}");
        }
    }

    #[test]
    fn training_leaves_room_for_guesses_that_paid_within_half_of_the_time() {
        let scheduler = scheduler();
        for (seconds, room) in [(0.002, 0.014), (0.010, 0.014), (0.011, 0.013), (0.5, 0.012)] {
            assert!((scheduler.room_for_training(seconds) - room).abs() < 1e-9, "{seconds}");
        }
    }
}
