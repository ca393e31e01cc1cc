//! Requests with pictures, until their pictures are seen; and what was seen, by content.
//!
//! A request with pictures comes here first. One picture at a time goes through the vision tower,
//! one block per step of the device, beside whoever decodes; when all of a request's are seen, it
//! joins the others in line. Features, which a projector of the base or of an adapter has yet to
//! turn, are kept in host memory under a budget and shared by content, so the next turn of a
//! conversation waits for nothing.
//!
//! In the caches a picture's rows bear a token of their own, outside the vocabulary and given to
//! no other picture: prefixes with different pictures are different prefixes.

use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

use super::WorkerError;
use super::queue::FairQueue;
use super::sequence::Request;
use crate::backend::Backend;
use crate::domain::{BaseInfo, Picture, PlacedPicture};
use crate::model::{Model, PictureRun};

/// A picture in a prompt, its features known.
#[derive(Clone, Debug)]
pub(super) struct SeenPicture {
    /// Its first token in the prompt.
    pub start: usize,
    /// How many tokens there are.
    pub rows: usize,
    /// What the caches call its tokens.
    pub token: u32,
    /// What the tower says of each.
    pub features: Rc<[f32]>,
}

/// What one base model has seen and is to see.
pub(super) struct Pictures<B: Backend> {
    waiting: FairQueue,
    /// Whose pictures are being looked at.
    current: Option<Rc<Request>>,
    run: Option<(Digest, PictureRun<B>)>,
    seen: HashMap<Digest, Entry>,
    budget_bytes: usize,
    used_bytes: usize,
    next_token: u32,
    /// Tokens of a picture.
    rows: usize,
    clock: u64,
    /// Whether the device is at it now.
    looking: bool,
}

type Digest = [u8; 32];

#[derive(Debug)]
struct Entry {
    token: u32,
    /// While a request holds a clone the entry stays.
    features: Rc<[f32]>,
    last_used: u64,
}

impl<B: Backend> Pictures<B> {
    pub fn new(info: &BaseInfo, budget_bytes: usize) -> Self {
        Self {
            waiting: FairQueue::default(),
            current: None,
            run: None,
            seen: HashMap::new(),
            budget_bytes,
            used_bytes: 0,
            next_token: info.vocab_size as u32,
            rows: info.vision.map_or(0, |vision| vision.tokens_per_image),
            clock: 0,
            looking: false,
        }
    }

    pub fn has_work(&self) -> bool {
        self.current.is_some() || !self.waiting.is_empty()
    }

    /// Why these pictures could never be seen by this model.
    pub fn refusal(&self, info: &BaseInfo, request: &Request) -> Option<WorkerError> {
        let (prompt, pictures) = (&request.ask.prompt, &request.ask.pictures);
        let Some(vision) = info.vision.filter(|_| !pictures.is_empty()) else {
            let problem = "the request has pictures and the model sees none";
            return (!pictures.is_empty()).then(|| WorkerError::Device(problem.to_owned()));
        };
        let stands = |placed: &PlacedPicture| {
            let tokens = prompt.get(placed.start..placed.start + vision.tokens_per_image);
            tokens.is_some_and(|tokens| tokens.iter().all(|&token| token == vision.image_token))
                && placed.picture.pixels.len() == 3 * vision.image_size.pow(2)
        };
        let needed = pictures.len() * feature_bytes(info);
        if !pictures.iter().all(stands) {
            let problem = "a picture does not stand at image tokens, or has another size";
            return Some(WorkerError::Device(problem.to_owned()));
        }
        (needed > self.budget_bytes).then(|| WorkerError::TooManyPictures {
            pictures: pictures.len(),
            limit: self.budget_bytes / feature_bytes(info).max(1),
        })
    }

    /// Puts a request with pictures in line.
    pub fn push(&mut self, request: Request) {
        self.waiting.push(request);
    }

    /// One block of the tower for the next picture not yet seen. Returns a request when all of its
    /// pictures are.
    pub fn advance(&mut self, b: &mut B, model: &Model<B>) -> Option<Rc<Request>> {
        if self.current.is_none() {
            self.current = self.waiting.pop();
        }
        let request = Rc::clone(self.current.as_ref()?);
        let mut pictures = request.ask.pictures.iter().map(|placed| &placed.picture);
        match pictures.find(|picture| !self.seen.contains_key(&picture.digest)) {
            None => {
                self.place(&request);
                self.current.take()
            }
            Some(picture) => {
                if self.make_room(&request, feature_bytes(&model.info)) {
                    self.look(b, model, picture);
                }
                None
            }
        }
    }

    /// One block for `picture`; what was begun for another is given up.
    fn look(&mut self, b: &mut B, model: &Model<B>, picture: &Picture) {
        self.looking = true;
        if let Some((_, other)) = self.run.take_if(|(digest, _)| *digest != picture.digest) {
            other.release(b);
        }
        let (digest, mut run) = self.run.take().unwrap_or_else(|| {
            let run = model.see(b, picture).expect("what could not be seen was refused");
            (picture.digest, run)
        });
        match run.advance(b, model) {
            None => self.run = Some((digest, run)),
            Some(features) => {
                run.release(b);
                self.remember(digest, features.into(), model.info.vocab_size as u32);
            }
        }
        self.looking = false;
    }

    fn remember(&mut self, digest: Digest, features: Rc<[f32]>, first_token: u32) {
        self.used_bytes += size_of_val(&*features);
        let entry = Entry { token: self.next_token, features, last_used: self.clock };
        self.seen.insert(digest, entry);
        // Comes round after four thousand million pictures, when no block of the first is left.
        self.next_token = self.next_token.checked_add(1).unwrap_or(first_token);
    }

    /// Tells a request what its pictures look like.
    fn place(&mut self, request: &Request) {
        self.clock += 1;
        let mut placed = Vec::with_capacity(request.ask.pictures.len());
        for PlacedPicture { start, picture } in &request.ask.pictures {
            let entry = self.seen.get_mut(&picture.digest).expect("every picture was seen");
            entry.last_used = self.clock;
            let (start, rows, token) = (*start, self.rows, entry.token);
            placed.push(SeenPicture { start, rows, token, features: Rc::clone(&entry.features) });
        }
        request.pictures.set(placed).expect("a request is told once");
    }

    /// Room for `bytes` more, the longest unused forgotten first; false if others hold it now.
    fn make_room(&mut self, request: &Request, bytes: usize) -> bool {
        let own = |digest: &Digest| {
            request.ask.pictures.iter().any(|placed| placed.picture.digest == *digest)
        };
        while self.used_bytes + bytes > self.budget_bytes {
            let unused = self
                .seen
                .iter()
                .filter(|(digest, entry)| Rc::strong_count(&entry.features) == 1 && !own(digest));
            let Some((&digest, _)) = unused.min_by_key(|(_, entry)| entry.last_used) else {
                return false;
            };
            let entry = self.seen.remove(&digest).expect("just found");
            self.used_bytes -= size_of_val(&*entry.features);
        }
        true
    }

    /// Takes away the requests of which `gone` says so; `left` hears of each.
    pub fn remove(&mut self, gone: impl Fn(&Request) -> bool, mut left: impl FnMut(&Request)) {
        if let Some(request) = self.current.take_if(|request| gone(request)) {
            left(&request);
        }
        self.waiting.remove(|request| {
            let gone = gone(request);
            if gone {
                left(request);
            }
            gone
        });
    }

    /// After a panic: if it was here, the request whose picture it was fails. What was seen stays:
    /// it lies in host memory.
    pub fn recover(&mut self, reason: &str) -> bool {
        self.run = None;
        let looking = std::mem::take(&mut self.looking);
        if let Some(request) = self.current.as_ref().filter(|_| looking) {
            request.fail(WorkerError::Device(reason.to_owned()));
        }
        looking
    }
}

impl SeenPicture {
    /// Its tokens in the prompt.
    pub fn tokens(&self) -> Range<usize> {
        self.start..self.start + self.rows
    }

    /// The features of its tokens `part`, counted from its first.
    pub fn part(&self, part: &Range<usize>) -> &[f32] {
        let width = self.features.len() / self.rows;
        &self.features[part.start * width..part.end * width]
    }
}

fn feature_bytes(info: &BaseInfo) -> usize {
    info.vision.map_or(0, |vision| vision.feature_bytes())
}
