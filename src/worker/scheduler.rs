//! Who runs: waiting requests become running sequences when cache room is free, and the youngest
//! gives way when it runs out.
//!
//! Everything here is bookkeeping; [`super::lane`] does what is decided.

use std::rc::Rc;

use super::WorkerError;
use super::kv::{KvRoom, Registered, blocks_for};
use super::pace::Pace;
use super::plan::Plan;
use super::queue::FairQueue;
use super::resident::{AdapterPin, Refusal};
use super::sequence::{Request, Sequence};
use crate::backend::BLOCK_TOKENS;
use crate::domain::Speculation;

/// The bounds of one step.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepLimits {
    pub tokens: usize,
    pub sequences: usize,
    /// Rows of logits that prompts being scored may ask for.
    pub scored_rows: usize,
    pub speculation: Speculation,
}

/// The sequences of one base model.
#[derive(Debug)]
pub(super) struct Scheduler {
    pub waiting: FairQueue,
    /// Next in line, and those that gave way; the oldest first.
    pub ready: Vec<Sequence>,
    /// The oldest first.
    pub running: Vec<Sequence>,
    pub room: KvRoom,
    pub preemptions: u64,
    /// What steps take.
    pub pace: Pace,
    /// What it was while the device was shared with training, or was not: whichever is not so now.
    other_pace: Pace,
    /// Whether steps share the device with training.
    pub shared: bool,
    /// Seconds that training took of the time since the last step.
    pub trained: f64,
    pub limits: StepLimits,
    next_age: u64,
}

impl Scheduler {
    pub fn new(limits: StepLimits, blocks: usize) -> Self {
        Self {
            waiting: FairQueue::default(),
            ready: Vec::new(),
            running: Vec::new(),
            room: KvRoom::new(blocks),
            preemptions: 0,
            pace: Pace::default(),
            other_pace: Pace::default(),
            shared: false,
            trained: 0.0,
            limits,
            next_age: 0,
        }
    }

    /// Says whether training shares the device from now on: steps then take longer, and each way of
    /// working has a pace of its own.
    pub fn share_device(&mut self, shared: bool) {
        if self.shared == shared {
            return;
        }
        self.shared = shared;
        std::mem::swap(&mut self.pace, &mut self.other_pace);
        if self.pace.is_unknown() {
            // With half of the device a step takes no more than twice as long.
            self.pace = self.other_pace.slower(2.0);
        }
    }

    pub fn has_work(&self) -> bool {
        !(self.waiting.is_empty() && self.ready.is_empty() && self.running.is_empty())
    }

    /// Whether no prompt is left to read.
    pub fn has_only_decoding(&self) -> bool {
        let none_waits = self.waiting.is_empty() && self.ready.is_empty();
        none_waits && self.running.iter().all(Sequence::decodes)
    }

    /// Moves sequences to running while there is a place, cache room and, through `pin`, their
    /// adapter. `began` hears of each request that leaves the queue.
    pub fn admit(
        &mut self,
        mut pin: impl FnMut(&Rc<Request>) -> Result<Option<AdapterPin>, Refusal>,
        mut began: impl FnMut(&Request),
    ) {
        self.restart_crossed();
        loop {
            if self.ready.is_empty() {
                let Some(request) = self.waiting.pop() else { return };
                began(&request);
                self.next_age += 1;
                self.ready.push(Sequence::new(request, self.next_age));
            }
            if !self.start_first(&mut pin) {
                return;
            }
        }
    }

    /// Starts the first sequence in line; false if it has to wait.
    fn start_first(
        &mut self,
        pin: &mut impl FnMut(&Rc<Request>) -> Result<Option<AdapterPin>, Refusal>,
    ) -> bool {
        if !self.has_place(&self.ready[0]) {
            return false;
        }
        let adapter = match pin(&self.ready[0].request) {
            Ok(adapter) => adapter,
            Err(Refusal::NoRoomNow) => return false,
            Err(Refusal::Never(error)) => {
                self.ready.remove(0).request.fail(error);
                return true;
            }
        };
        if !self.give_room() {
            return false;
        }
        let mut sequence = self.ready.remove(0);
        sequence.adapter = adapter;
        self.insert_running(sequence);
        true
    }

    fn has_place(&self, sequence: &Sequence) -> bool {
        let places = |s: &Sequence| if s.reads_prompt { s.request.ask.choices } else { 1 };
        let taken: usize = self.running.iter().map(places).sum();
        taken == 0 || taken + places(sequence) <= self.limits.sequences
    }

    /// Blocks for all known tokens of the first in line, cached ones first; a block per running
    /// sequence stays in reserve, so that nobody has to give way at once.
    fn give_room(&mut self) -> bool {
        let reserve = self.running.len();
        let sequence = &mut self.ready[0];
        let (mut blocks, registered) = if sequence.scores_prompt() {
            (Vec::new(), Registered::default())
        } else {
            self.room.reuse(&sequence.space, &sequence.tokens)
        };
        let computed = blocks.len() * BLOCK_TOKENS;
        let missing = blocks_for(sequence.tokens.len()) - blocks.len();
        if missing + reserve > self.room.available()
            || !self.room.grow(&mut blocks, sequence.tokens.len())
        {
            self.room.release(&mut blocks);
            return false;
        }
        (sequence.computed, sequence.cached_tokens) = (computed, computed);
        (sequence.blocks, sequence.registered) = (blocks, registered);
        true
    }

    /// Makes the block of the next token writable, taking blocks from the youngest if none is left.
    /// False if the sequence itself had to give way.
    pub fn make_room(&mut self, index: usize, plan: &mut Plan) -> bool {
        let at = self.running[index].computed / BLOCK_TOKENS;
        let held = self.running[index].blocks.get(at).copied();
        if held.is_some_and(|block| !self.room.is_shared(block)) {
            return true;
        }
        let Some(block) = self.take_block(index) else { return false };
        let blocks = &mut self.running[index].blocks;
        match blocks.get_mut(at) {
            // Those who shared it may have given way meanwhile; a copy is right all the same.
            Some(shared) => {
                let from = std::mem::replace(shared, block);
                plan.copies.push((from, block));
                self.room.release(&mut vec![from]);
            }
            None => blocks.push(block),
        }
        true
    }

    fn take_block(&mut self, index: usize) -> Option<u32> {
        loop {
            if let Some(block) = self.room.take() {
                return Some(block);
            }
            let youngest = self.running.len() - 1;
            self.preempt(youngest);
            if youngest == index {
                return None;
            }
        }
    }

    /// Puts a running sequence back in line; what it has said stays, what it computed is redone.
    fn preempt(&mut self, index: usize) {
        let mut sequence = self.running.remove(index);
        self.room.release(&mut sequence.blocks);
        sequence.rewind();
        self.preemptions += 1;
        self.insert_ready(sequence);
    }

    /// Puts back in line what has become long and whose keys are those of short sequences.
    fn restart_crossed(&mut self) {
        while let Some(index) = self.running.iter().position(Sequence::has_crossed) {
            let mut sequence = self.running.remove(index);
            self.room.release(&mut sequence.blocks);
            sequence.rewind();
            sequence.read_anew();
            self.insert_ready(sequence);
        }
    }

    /// A new choice joins, running if there is a place.
    pub fn join(&mut self, mut fork: Sequence) {
        if self.running.len() < self.limits.sequences {
            self.room.share(&fork.blocks);
            self.insert_running(fork);
        } else {
            fork.rewind();
            self.insert_ready(fork);
        }
    }

    fn insert_running(&mut self, sequence: Sequence) {
        let rank = |s: &Sequence| (s.age, s.choice);
        let at = self.running.partition_point(|other| rank(other) < rank(&sequence));
        self.running.insert(at, sequence);
    }

    fn insert_ready(&mut self, sequence: Sequence) {
        let rank = |s: &Sequence| (s.age, s.choice);
        let at = self.ready.partition_point(|other| rank(other) < rank(&sequence));
        self.ready.insert(at, sequence);
    }

    /// Frees what is finished, stopped, failed or abandoned. `left` hears of each request that
    /// leaves the queue.
    pub fn release_ended(&mut self, mut left: impl FnMut(&Request)) {
        self.waiting.remove(|request| {
            let over = request.is_over();
            if over {
                left(request);
            }
            over
        });
        for sequences in [&mut self.ready, &mut self.running] {
            sequences.iter_mut().for_each(Sequence::heed_stop);
            for mut ended in sequences.extract_if(.., |sequence| sequence.is_over()) {
                self.room.release(&mut ended.blocks);
            }
        }
    }

    /// Fails everything that has not begun.
    pub fn refuse_waiting(&mut self, error: &WorkerError, mut left: impl FnMut(&Request)) {
        self.waiting.remove(|request| {
            request.fail(error.clone());
            left(request);
            true
        });
        for sequence in self.ready.extract_if(.., |s| !s.request.has_emitted()) {
            sequence.request.fail(error.clone());
        }
    }

    /// Starts over with empty caches: what runs is put back in line, to be computed again.
    pub fn forget_cache(&mut self) {
        self.room = KvRoom::new(self.room.total());
        for mut sequence in std::mem::take(&mut self.running) {
            sequence.rewind();
            self.insert_ready(sequence);
        }
    }
}
