//! One base model on the device, with all that serves it: cache, adapters, scheduler.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::answer::Reader;
use super::batch::{Batch, Group, Shown};
use super::kv::blocks_for;
use super::pictures::Pictures;
use super::plan::Plan;
use super::resident::{AdapterPin, Refusal, Resident};
use super::scheduler::{Scheduler, StepLimits};
use super::sequence::Request;
use super::{WorkerError, WorkerStats};
use crate::backend::{BLOCK_TOKENS, Backend, KvFormat};
use crate::model::{AdapterRows, Model, PictureRows, Step};

pub(super) struct Lane<B: Backend> {
    pub model: Arc<Model<B>>,
    pub scheduler: Scheduler,
    pictures: Pictures<B>,
    pub resident: Resident<B>,
    /// Empty only while it is being rebuilt.
    cache: Option<B::Cache>,
    kv_format: KvFormat,
    plan: Plan,
    batch: Batch,
    reader: Reader,
    /// Whose fault it may be if the device panics now.
    suspects: Vec<Rc<Request>>,
}

impl<B: Backend> Lane<B> {
    pub fn new(
        b: &mut B,
        model: Model<B>,
        limits: StepLimits,
        (blocks, kv_format): (usize, KvFormat),
        adapter_cache_bytes: usize,
        picture_cache_bytes: usize,
    ) -> Self {
        Self {
            pictures: Pictures::new(&model.info, picture_cache_bytes),
            scheduler: Scheduler::new(limits, blocks),
            resident: Resident::new(adapter_cache_bytes),
            cache: Some(model.cache_as(b, blocks, kv_format)),
            kv_format,
            model: Arc::new(model),
            plan: Plan::default(),
            batch: Batch::default(),
            reader: Reader::default(),
            suspects: Vec::new(),
        }
    }

    /// Puts a request in line; false if it could never run and has been told so: its prompt is
    /// empty, outside the vocabulary, or longer than context or cache.
    pub fn accept(&mut self, request: Request) -> bool {
        match self.refusal(&request) {
            Some(error) => {
                request.fail(error);
                false
            }
            None => {
                match request.ask.pictures.is_empty() {
                    true => self.scheduler.waiting.push(request),
                    false => self.pictures.push(request),
                }
                true
            }
        }
    }

    pub fn has_work(&self) -> bool {
        self.scheduler.has_work() || self.pictures.has_work()
    }

    /// Frees what is finished, stopped, failed or abandoned; see [`Scheduler::release_ended`].
    pub fn release_ended(&mut self, mut left: impl FnMut(&Request)) {
        self.pictures.remove(Request::is_over, &mut left);
        self.scheduler.release_ended(left);
    }

    /// Fails everything that has not begun.
    pub fn refuse_waiting(&mut self, error: &WorkerError, mut left: impl FnMut(&Request)) {
        let refuse = |request: &Request| {
            request.fail(error.clone());
            true
        };
        self.pictures.remove(refuse, &mut left);
        self.scheduler.refuse_waiting(error, left);
    }

    fn refusal(&self, request: &Request) -> Option<WorkerError> {
        let (prompt, info) = (&request.ask.prompt, &self.model.info);
        if prompt.is_empty() || prompt.iter().any(|&token| token as usize >= info.vocab_size) {
            let problem = "the prompt is empty or holds an id outside the vocabulary";
            return Some(WorkerError::Device(problem.to_owned()));
        }
        let room = self.scheduler.room.total() * BLOCK_TOKENS;
        // The last token of an answer is never fed back.
        let needed = prompt.len() + request.max_answer.saturating_sub(1);
        if prompt.len() > info.context_length || blocks_for(needed) * BLOCK_TOKENS > room {
            let capacity_tokens = room.min(info.context_length);
            return Some(WorkerError::TooLarge { needed_tokens: needed, capacity_tokens });
        }
        self.pictures.refusal(info, request)
    }

    /// One step: look at pictures, admit, compute, answer. Returns the tokens computed; 0 if there
    /// was nothing to do.
    pub fn step(&mut self, b: &mut B, stats: &WorkerStats) -> usize {
        if let Some(request) = self.pictures.advance(b, &self.model) {
            self.scheduler.waiting.push(request);
        }
        self.admit(b, stats);
        self.scheduler.plan(&mut self.plan);
        if self.plan.slots.is_empty() {
            return 0;
        }
        let started = Instant::now();
        let running = &mut self.scheduler.running;
        self.batch.fill(&mut self.plan.slots, running);
        let planned = self.plan.slots.iter().map(|slot| Rc::clone(&running[slot.index].request));
        self.suspects.extend(planned);
        let (logits, width) = self.forward(b);
        self.answer(&logits, width, stats);
        self.suspects.clear();
        let rows = self.batch.tokens.len();
        self.batch.clear();
        self.scheduler.pace.note(rows, started.elapsed().as_secs_f64());
        rows
    }

    fn admit(&mut self, b: &mut B, stats: &WorkerStats) {
        let Self { model, resident, suspects, scheduler, .. } = self;
        let pin = |request: &Rc<Request>| -> Result<Option<AdapterPin>, Refusal> {
            let Some(weights) = &request.ask.adapter else { return Ok(None) };
            suspects.push(Rc::clone(request));
            let pin = resident.pin(b, model, weights);
            suspects.clear();
            pin.map(Some)
        };
        scheduler.admit(pin, |begun| stats.leave(begun.ask.cost()));
    }

    /// The forward pass of the batch: logits `(batch.logits.len(), width)`.
    fn forward(&mut self, b: &mut B) -> (Vec<f32>, usize) {
        let cache = self.cache.as_mut().expect("the cache is missing only while it is rebuilt");
        for &(from, to) in &self.plan.copies {
            b.copy_block(cache, from, to);
        }
        let dress = |group: &Group| AdapterRows {
            rows: group.rows.clone(),
            adapter: self.resident.get(&group.adapter),
            scale: group.scale,
        };
        let adapters: Vec<AdapterRows<'_, B>> = self.batch.groups.iter().map(dress).collect();
        let pictures: Vec<PictureRows<'_>> = self.batch.pictures.iter().map(Shown::rows).collect();
        let step = Step {
            tokens: &self.batch.tokens,
            sequences: &self.batch.sequences,
            adapters: &adapters,
            logits: &self.batch.logits,
            pictures: &pictures,
        };
        let logits = self.model.forward(b, cache, &step);
        let (_, width) = b.shape(&logits);
        let values = b.download(&logits);
        b.recycle(logits);
        (values, width)
    }

    fn answer(&mut self, logits: &[f32], width: usize, stats: &WorkerStats) {
        let Self { scheduler, batch, plan, reader, .. } = self;
        batch.return_blocks(&plan.slots, &mut scheduler.running);
        let mut first = 0;
        for (slot, rows) in plan.slots.iter().zip(&batch.sequences) {
            let sequence = &mut scheduler.running[slot.index];
            sequence.computed += slot.rows - sequence.draft.len();
            sequence.register(&mut scheduler.room);
            let wanted = batch.logits[first..].partition_point(|&row| row < rows.rows.end);
            let own = &logits[first * width..(first + wanted) * width];
            first += wanted;
            reader.read(sequence, rows.start, own, width, stats);
        }
        for fork in reader.forks.drain(..) {
            scheduler.join(fork);
        }
    }

    /// After a panic: nothing computed is trusted. Who was in the step and has heard nothing yet is
    /// tried once more, alone; who has fails; everybody else is computed again.
    pub fn recover(&mut self, b: &mut B, reason: &str) {
        let looked = self.pictures.recover(reason);
        if self.suspects.is_empty() && !looked {
            let running = &self.scheduler.running;
            self.suspects.extend(running.iter().map(|sequence| Rc::clone(&sequence.request)));
        }
        for suspect in self.suspects.drain(..) {
            let begun = self.scheduler.running.iter().any(|s| Rc::ptr_eq(&s.request, &suspect));
            if suspect.has_emitted() || suspect.retried.replace(true) || !begun {
                suspect.fail(WorkerError::Device(reason.to_owned()));
            } else {
                suspect.alone.set(true);
            }
        }
        self.batch.clear();
        self.reader = Reader::default();
        self.scheduler.forget_cache();
        self.resident.clear();
        self.cache = None; // Freed first: there may be no room for two.
        self.cache = Some(self.model.cache_as(b, self.scheduler.room.total(), self.kv_format));
    }
}
