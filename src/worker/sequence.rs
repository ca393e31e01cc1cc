//! A request on the device thread, and the sequences that answer it.

use std::cell::{Cell, OnceCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc;

use super::border::Border;
use super::draft::Belief;
use super::kv::{KvRoom, Registered};
use super::pictures::SeenPicture;
use super::prefix::Namespace;
use super::resident::AdapterPin;
use super::{GenerationEvent, WorkerError};
use crate::domain::{FinishReason, GenerationRequest, PromptToken};
use crate::sample::{Draw, Seen};

/// One request, shared by the sequences of its choices.
#[derive(Debug)]
pub(super) struct Request {
    pub ask: GenerationRequest,
    /// Whose cached prefixes it may read while it is short.
    pub space: Arc<Namespace>,
    /// Where it would be long.
    pub border: Option<Border>,
    /// What its pictures look like, once they are seen.
    pub pictures: OnceCell<Vec<SeenPicture>>,
    /// Most tokens an answer may have: `max_tokens`, or what the context leaves.
    pub max_answer: usize,
    /// After a panic in company it is tried once more alone.
    pub alone: Cell<bool>,
    pub retried: Cell<bool>,
    stops: Arc<[AtomicBool]>,
    events: mpsc::Sender<GenerationEvent>,
    emitted: Cell<bool>,
    failed: Cell<bool>,
}

impl Request {
    pub fn new(
        ask: GenerationRequest,
        stops: Arc<[AtomicBool]>,
        events: mpsc::Sender<GenerationEvent>,
        context_length: usize,
        border: Option<Border>,
    ) -> Self {
        let adapter = ask.adapter.as_ref().map(|a| (a.key.clone(), ask.adapter_scale.to_bits()));
        let space = Arc::new(Namespace { tenant: Arc::clone(&ask.tenant), adapter, kind: 0 });
        let max_answer =
            ask.sampling.max_tokens.min(context_length.saturating_sub(ask.prompt.len()));
        let (alone, retried) = (Cell::new(false), Cell::new(false));
        let (emitted, failed) = (Cell::new(false), Cell::new(false));
        let pictures = OnceCell::new();
        Self {
            ask,
            space,
            border,
            pictures,
            max_answer,
            alone,
            retried,
            stops,
            events,
            emitted,
            failed,
        }
    }

    /// Whose cached prefixes a sequence of it may read of which `read` tokens are read as one.
    fn space_of(&self, read: usize) -> Arc<Namespace> {
        match self.border.map_or(0, |border| border.kind(read)) {
            0 => Arc::clone(&self.space),
            kind => Arc::new(Namespace { kind, ..Namespace::clone(&self.space) }),
        }
    }

    /// What was seen of its pictures.
    pub fn seen(&self) -> &[SeenPicture] {
        self.pictures.get().map_or(&[], Vec::as_slice)
    }

    /// The prompt as the caches know it: where a picture is, the token that is this picture's own.
    fn cached_prompt(&self) -> Vec<u32> {
        let mut tokens = self.ask.prompt.clone();
        for picture in self.seen() {
            tokens[picture.tokens()].fill(picture.token);
        }
        tokens
    }

    /// Tells its owner. The channel holds every event of a request, so one that does not take an
    /// event has no owner any more.
    pub fn send(&self, event: GenerationEvent) {
        self.emitted.set(true);
        self.alone.set(false);
        if self.events.try_send(event).is_err() {
            self.failed.set(true);
        }
    }

    /// Ends it for all choices.
    pub fn fail(&self, error: WorkerError) {
        if !self.failed.replace(true) {
            let _gone_is_fine = self.events.try_send(GenerationEvent::Failed(error));
        }
    }

    /// Whether nobody waits for more of it: it failed, or its owner left.
    pub fn is_over(&self) -> bool {
        self.failed.get() || self.events.is_closed()
    }

    /// Whether its owner has heard anything of it.
    pub fn has_emitted(&self) -> bool {
        self.emitted.get()
    }

    /// Whether its owner asked to end choice `choice`.
    pub fn stop_asked(&self, choice: usize) -> bool {
        self.stops.get(choice).is_some_and(|stop| stop.load(Ordering::Relaxed))
    }
}

/// The tokens of one choice, and where their keys and values lie.
#[derive(Debug)]
pub(super) struct Sequence {
    pub request: Rc<Request>,
    pub choice: usize,
    /// When it left the queue: the younger give way to the older.
    pub age: u64,
    /// Prompt, then answer; at a picture's rows the caches' token for it.
    pub tokens: Vec<u32>,
    /// How many of `tokens` are read as one: the prompt, or what there was when it began anew.
    pub read: usize,
    /// Whose cached prefixes it may read.
    pub space: Arc<Namespace>,
    /// How many of `tokens` have their keys and values in `blocks`.
    pub computed: usize,
    pub blocks: Vec<u32>,
    /// Guesses at the tokens after `tokens`, to be checked in this step.
    pub draft: Vec<u32>,
    /// How good its guesses were.
    pub belief: Belief,
    pub registered: Registered,
    /// Held while it runs.
    pub adapter: Option<AdapterPin>,
    /// It stands for every choice until the prompt is read.
    pub reads_prompt: bool,
    /// Prompt tokens that came from the prefix cache.
    pub cached_tokens: usize,
    /// What the model thought of the prompt so far.
    pub report: Vec<PromptToken>,
    pub seen: Seen,
    finished: bool,
}

impl Sequence {
    pub fn new(request: Rc<Request>, age: u64) -> Self {
        Self {
            choice: 0,
            age,
            tokens: request.cached_prompt(),
            read: request.ask.prompt.len(),
            space: request.space_of(request.ask.prompt.len()),
            computed: 0,
            blocks: Vec::new(),
            draft: Vec::new(),
            belief: Belief::default(),
            registered: Registered::default(),
            adapter: None,
            reads_prompt: true,
            cached_tokens: 0,
            report: Vec::new(),
            seen: Seen::new(&request.ask.sampling, &request.ask.prompt),
            finished: false,
            request,
        }
    }

    /// Another choice of the same request, at the end of the prompt, reading the same blocks.
    pub fn fork(&self, choice: usize) -> Self {
        Self {
            request: Rc::clone(&self.request),
            choice,
            tokens: self.tokens.clone(),
            space: Arc::clone(&self.space),
            blocks: self.blocks.clone(),
            draft: Vec::new(),
            registered: self.registered.clone(),
            adapter: self.adapter.clone(),
            report: Vec::new(),
            seen: self.seen.clone(),
            ..*self
        }
    }

    /// Tokens to compute before the next one can be drawn.
    pub fn remaining(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether its next row draws the next token of its answer.
    pub fn decodes(&self) -> bool {
        self.remaining() == 1
    }

    /// Whether log-probabilities of prompt tokens are still to be reported.
    pub fn scores_prompt(&self) -> bool {
        self.reads_prompt && self.request.ask.sampling.prompt_logprobs.is_some()
    }

    /// Whether the logits at `position` are needed.
    pub fn wants_logits(&self, position: usize) -> bool {
        position + 1 >= self.tokens.len() || self.scores_prompt()
    }

    /// Tokens of the answer so far.
    pub fn answered(&self) -> usize {
        self.tokens.len() - self.request.ask.prompt.len()
    }

    /// Tokens it may still draw.
    pub fn unanswered(&self) -> usize {
        self.request.max_answer.saturating_sub(self.answered())
    }

    /// Makes its full blocks known to the prefix cache.
    pub fn register(&mut self, room: &mut KvRoom) {
        let computed = &self.tokens[..self.computed];
        room.register(&mut self.registered, &self.space, computed, &self.blocks);
    }

    /// What the next token is drawn by.
    pub fn draw(&self) -> Draw<'_> {
        Draw {
            params: &self.request.ask.sampling,
            stop_tokens: &self.request.ask.stop_tokens,
            seen: &self.seen,
            choice: self.choice,
            index: self.answered(),
        }
    }

    /// Forgets everything computed; the tokens stay. Its blocks must have been released.
    pub fn rewind(&mut self) {
        self.blocks.clear();
        self.draft.clear();
        self.registered = Registered::default();
        (self.computed, self.cached_tokens) = (0, 0);
        self.adapter = None;
        self.report.clear();
    }

    /// Whether its keys are those of a short sequence, and it is none any more.
    pub fn has_crossed(&self) -> bool {
        let border = self.request.border;
        border.is_some_and(|border| border.is_crossed(self.read, self.tokens.len()))
    }

    /// What it has is read as one from now on. It must have been rewound.
    pub fn read_anew(&mut self) {
        self.read = self.tokens.len();
        self.space = self.request.space_of(self.read);
    }

    /// Guesses that it may make without becoming another sequence.
    pub fn guesses(&self) -> usize {
        let border = self.request.border;
        border.map_or(usize::MAX, |border| border.guesses(self.read, self.tokens.len()))
    }

    /// Cuts the draft before a picture: none is ever said.
    pub fn draft_no_pictures(&mut self) {
        let seen = self.request.seen();
        let is_picture = |token: &u32| seen.iter().any(|picture| picture.token == *token);
        if let Some(at) = self.draft.iter().position(is_picture) {
            self.draft.truncate(at);
        }
    }

    /// Ends this choice.
    pub fn finish(&mut self, reason: FinishReason) {
        self.finished = true;
        self.request.send(GenerationEvent::Finished { choice: self.choice, reason });
    }

    /// Ends this choice if its owner asked for it.
    pub fn heed_stop(&mut self) {
        if !self.reads_prompt && !self.finished && self.request.stop_asked(self.choice) {
            self.finish(FinishReason::Stop);
        }
    }

    pub fn is_over(&self) -> bool {
        self.finished || self.request.is_over()
    }
}
