//! One prompt at work: the device thread's events in, text events out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt, unfold};

use super::EngineError;
use super::choice::{ChoiceText, Delta};
use super::output::TextEvent;
use super::prompt::PreparedPrompt;
use crate::domain::{FinishReason, GenerationRequest};
use crate::text::Tokenizer;
use crate::worker::{GenerationEvent, GenerationEvents, WorkerError, WorkerHandle};

/// How long a further prompt of an admitted request waits before it asks for room again.
const RETRY: Duration = Duration::from_millis(20);

/// The events of one request, text side.
pub(super) type TextEvents = BoxStream<'static, Result<TextEvent, EngineError>>;

/// One prompt of a request, from the queue to its last choice.
pub(super) struct PromptRun {
    pub index: usize,
    pub prompt: Arc<PreparedPrompt>,
    pub tokenizer: Arc<Tokenizer>,
    pub choices: Vec<ChoiceText>,
    pub source: Source,
    pub ready: VecDeque<TextEvent>,
}

/// Where its tokens come from.
pub(super) enum Source {
    /// Not queued yet: earlier prompts of the request come first.
    Waiting(WorkerHandle, Box<GenerationRequest>),
    Running(GenerationEvents),
    /// Every choice ended, or the request failed.
    Over,
}

impl PromptRun {
    /// The run as a stream; dropping it cancels the prompt.
    pub fn into_events(self) -> TextEvents {
        unfold(self, |mut run| async move { run.next().await.map(|event| (event, run)) }).boxed()
    }

    async fn next(&mut self) -> Option<Result<TextEvent, EngineError>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            let event = match &mut self.source {
                Source::Over => return None,
                Source::Running(events) => events.next().await,
                Source::Waiting(worker, request) => match open(worker, request).await {
                    Ok(events) => {
                        self.source = Source::Running(events);
                        continue;
                    }
                    Err(error) => return self.fail(error.into()),
                },
            };
            match event {
                Some(GenerationEvent::Failed(error)) => return self.fail(error.into()),
                Some(event) => self.take(event),
                None => return self.fail(EngineError::Lost),
            }
        }
    }

    fn fail(&mut self, error: EngineError) -> Option<Result<TextEvent, EngineError>> {
        self.source = Source::Over;
        Some(Err(error))
    }

    fn take(&mut self, event: GenerationEvent) {
        match event {
            GenerationEvent::Prefilled { cached_tokens, prompt } => {
                let scored = self.prompt.scored(&self.tokenizer, &prompt);
                let prompt = self.index;
                self.ready.push_back(TextEvent::Started { prompt, cached_tokens, scored });
            }
            GenerationEvent::Token { choice, token } => {
                self.update(choice, |text| text.push(&token))
            }
            GenerationEvent::Finished { choice, reason } => self.finish(choice, reason),
            GenerationEvent::Failed(_) => {}
        }
    }

    /// Moves one choice on; news of a choice that a stop string has ended comes too late.
    fn update(&mut self, choice: usize, step: impl FnOnce(&mut ChoiceText) -> Delta) {
        let Some(text) = self.choices.get_mut(choice).filter(|text| text.finished().is_none())
        else {
            return;
        };
        let Delta { text: delta, tokens } = step(text);
        let prompt = self.index;
        if !delta.is_empty() || !tokens.is_empty() {
            self.ready.push_back(TextEvent::Delta { prompt, choice, text: delta, tokens });
        }
        let Some(reason) = text.finished() else { return };
        let generated = text.generated();
        self.ready.push_back(TextEvent::Finished { prompt, choice, reason, generated });
        if let Source::Running(events) = &self.source {
            events.stop(choice);
        }
        if self.choices.iter().all(|choice| choice.finished().is_some()) {
            self.source = Source::Over;
        }
    }

    fn finish(&mut self, choice: usize, reason: FinishReason) {
        self.update(choice, |text| text.finish(reason));
    }
}

/// Queues a further prompt of a request that was admitted: a full queue makes it wait, not fail.
async fn open(
    worker: &WorkerHandle,
    request: &GenerationRequest,
) -> Result<GenerationEvents, WorkerError> {
    loop {
        match worker.generate(request.clone()) {
            Err(WorkerError::Overloaded { .. }) => tokio::time::sleep(RETRY).await,
            other => return other,
        }
    }
}
