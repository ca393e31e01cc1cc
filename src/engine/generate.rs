//! From a request for text to a queued generation.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::stream::{self, StreamExt};
use rand::RngCore;
use tokio::sync::Semaphore;

use super::EngineError;
use super::choice::ChoiceText;
use super::prompt::{Preparation, PreparedPrompt, PromptInput};
use super::stream::{PromptRun, Source, TextEvents};
use crate::catalog::{Catalog, ResolvedModel};
use crate::domain::{GenerationRequest, SamplingParams};
use crate::text::{Detokenizer, Start, StopMatcher, TextModel};
use crate::worker::WorkerHandle;

/// Most tokens one request may ask for, all prompts and choices together.
pub const MAX_REQUEST_TOKENS: usize = 1 << 20;
/// Prompts of one request that are with the device thread at the same time.
const WINDOW: usize = 32;

/// A request for text, its ranges checked and its defaults settled.
#[derive(Clone, Debug)]
pub struct TextRequest {
    pub model: String,
    /// Whose prefix cache entries may be shared.
    pub tenant: Arc<str>,
    pub prompt: PromptInput,
    /// Answers to draw for each prompt.
    pub choices: usize,
    /// `max_tokens` and `seed` of it are settled here.
    pub sampling: SamplingParams,
    pub max_tokens: MaxTokens,
    /// `None` draws one.
    pub seed: Option<u64>,
    pub stop: Vec<String>,
    pub adapter_scale: Option<f32>,
    /// Whether tokens may be guessed and checked several at once.
    pub speculative: bool,
    /// Whether the prompt's text will be shown.
    pub echo: bool,
}

/// How long an answer may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxTokens {
    /// The caller said so; more than the context holds is an error.
    Asked(usize),
    /// Nobody said; less if the context ends earlier.
    UpTo(usize),
}

/// A request at work. Dropping it cancels whatever still runs.
pub struct Generation {
    pub model: ResolvedModel,
    pub prompts: Vec<Arc<PreparedPrompt>>,
    /// Answers to each prompt.
    pub choices: usize,
    pub events: TextEvents,
}

/// Turns requests for text into generations. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Engine {
    worker: WorkerHandle,
    catalog: Catalog,
    tokenising: Arc<Semaphore>,
}

impl Engine {
    /// An engine that finds models in `catalog` and has them run by `worker`.
    pub fn new(worker: WorkerHandle, catalog: Catalog) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { worker, catalog, tokenising: Arc::new(Semaphore::new(threads)) }
    }

    /// Every servable model.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The door to the device thread.
    pub fn worker(&self) -> &WorkerHandle {
        &self.worker
    }

    /// Runs slow work with text off the async threads, a bounded number at a time.
    ///
    /// # Errors
    /// [`EngineError::Tokenising`] if the work panicked.
    pub async fn tokenise<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, EngineError> {
        let permit = Arc::clone(&self.tokenising).acquire_owned().await;
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        task.await.map_err(EngineError::Tokenising)
    }

    /// Queues `request`; the first prompt at once, the others as earlier ones end.
    ///
    /// # Errors
    /// [`EngineError`]: an unknown model, an impossible prompt, too little context, a full queue.
    pub async fn generate(&self, request: TextRequest) -> Result<Generation, EngineError> {
        let model = self.catalog.resolve(&request.model).await?;
        check(&request, &model)?;
        let text = Arc::clone(&model.text);
        let stops = stop_strings(&request, &text)?;
        let (input, echo) = (request.prompt.clone(), request.echo);
        let (base, pictures) = (Arc::clone(&model.base), model.pictures.clone());
        let with = Preparation { text: Arc::clone(&text), base, pictures };
        let prompts = self.tokenise(move || input.prepare(&with, echo)).await??;
        let prompts: Vec<_> = prompts.into_iter().map(Arc::new).collect();
        let commands = commands(&request, &model, &text, &prompts)?;
        let events = self.start(commands, &prompts, &text, &stops)?;
        Ok(Generation { model, prompts, choices: request.choices, events })
    }

    fn start(
        &self,
        commands: Vec<GenerationRequest>,
        prompts: &[Arc<PreparedPrompt>],
        text: &TextModel,
        stops: &StopMatcher,
    ) -> Result<TextEvents, EngineError> {
        let mut runs = Vec::with_capacity(commands.len());
        for (index, command) in commands.into_iter().enumerate() {
            let choices = (0..command.choices)
                .map(|_| choice_text(text, stops, &command))
                .collect::<Result<_, EngineError>>()?;
            let source = match index {
                0 => Source::Running(self.worker.generate(command)?),
                _ => Source::Waiting(self.worker.clone(), Box::new(command)),
            };
            let tokenizer = text.tokenizer().clone();
            let prompt = Arc::clone(&prompts[index]);
            let ready = VecDeque::new();
            runs.push(PromptRun { index, prompt, tokenizer, choices, source, ready });
        }
        if runs.len() == 1 {
            return Ok(runs.remove(0).into_events());
        }
        let streams = stream::iter(runs).map(PromptRun::into_events);
        Ok(streams.flatten_unordered(WINDOW).boxed())
    }
}

/// What can be checked before the prompt is tokenised.
fn check(request: &TextRequest, model: &ResolvedModel) -> Result<(), EngineError> {
    let vocab_size = model.base.vocab_size;
    let unknown = request.sampling.logit_bias.iter().find(|(id, _)| *id as usize >= vocab_size);
    if let Some(&(id, _)) = unknown {
        return Err(EngineError::UnknownToken { param: "logit_bias", id, vocab_size });
    }
    if request.adapter_scale.is_some_and(|scale| scale != 1.0) && model.adapter.is_none() {
        return Err(EngineError::NoAdapter { model: model.name.clone() });
    }
    Ok(())
}

fn commands(
    request: &TextRequest,
    model: &ResolvedModel,
    text: &TextModel,
    prompts: &[Arc<PreparedPrompt>],
) -> Result<Vec<GenerationRequest>, EngineError> {
    let sequences = prompts.len() * request.choices;
    let mut asked = 0;
    let mut commands = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        let max_tokens = room(request.max_tokens, prompt.ids.len(), &model.base, sequences)?;
        asked += max_tokens * request.choices;
        let seed = request.seed.unwrap_or_else(|| rand::rng().next_u64());
        let mut sampling = SamplingParams { max_tokens, seed, ..request.sampling.clone() };
        // A model says no pictures.
        let unsayable = model.base.vision.map(|vision| (vision.image_token, f32::NEG_INFINITY));
        sampling.logit_bias.extend(unsayable);
        commands.push(GenerationRequest {
            base: Arc::clone(&model.base.name),
            adapter: model.adapter.clone(),
            adapter_scale: request.adapter_scale.unwrap_or(1.0),
            tenant: Arc::clone(&request.tenant),
            prompt: prompt.ids.clone(),
            pictures: prompt.pictures.clone(),
            choices: request.choices,
            sampling,
            stop_tokens: text.stop_ids().to_vec(),
            speculative: request.speculative,
        });
    }
    if asked > MAX_REQUEST_TOKENS {
        return Err(EngineError::TooManyTokens { asked, limit: MAX_REQUEST_TOKENS });
    }
    Ok(commands)
}

/// The tokens an answer may have beside a prompt of `prompt` tokens.
fn room(
    max_tokens: MaxTokens,
    prompt: usize,
    base: &crate::domain::BaseInfo,
    sequences: usize,
) -> Result<usize, EngineError> {
    let context = base.context_length;
    let rest = context.saturating_sub(prompt);
    let exceeded = |max_tokens| EngineError::ContextExceeded { prompt, max_tokens, context };
    match max_tokens {
        MaxTokens::Asked(asked) if prompt > context || asked > rest => Err(exceeded(asked)),
        MaxTokens::Asked(asked) => Ok(asked),
        MaxTokens::UpTo(_) if rest == 0 => Err(exceeded(1)),
        MaxTokens::UpTo(most) => Ok(most.min(rest).min((MAX_REQUEST_TOKENS / sequences).max(1))),
    }
}

/// The request's own, and for a chat whose template ends turns in plain text, that text.
fn stop_strings(request: &TextRequest, text: &TextModel) -> Result<StopMatcher, EngineError> {
    let stops = StopMatcher::new(&request.stop)?;
    match (&request.prompt, text.turn_stop()) {
        (PromptInput::Chat(_), Some(turn_stop)) => Ok(stops.also(turn_stop)),
        _ => Ok(stops),
    }
}

fn choice_text(
    text: &TextModel,
    stops: &StopMatcher,
    command: &GenerationRequest,
) -> Result<ChoiceText, EngineError> {
    let ending: Arc<[u32]> = match command.sampling.ignore_eos {
        true => Arc::from([]),
        false => Arc::from(&*command.stop_tokens),
    };
    let tokenizer = text.tokenizer().clone();
    let detokenizer = Detokenizer::new(tokenizer.clone(), Start::Continuation, true);
    let stops = stops.clone();
    Ok(ChoiceText::new(tokenizer, detokenizer, stops, ending, command.sampling.min_tokens))
}
