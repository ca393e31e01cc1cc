//! The body of a completion request, and what it settles to.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use crate::api::ApiError;
use crate::api::options::{Common, MAX_N, count, generation_body};
use crate::api::refused::{NoInfill, Refused};
use crate::engine::{MaxTokens, PromptInput, TextRequest};

/// Most prompts of one request, and most choices of all of them together.
const MAX_PROMPTS: usize = 2048;
const MAX_BEST_OF: i64 = 20;
const MAX_LOGPROBS: i64 = 5;
const DEFAULT_MAX_TOKENS: usize = 16;

/// A prompt, as text or as token ids; or several.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(
    untagged,
    expecting = "must be a string, a list of strings, a list of token ids, or a list of such lists"
)]
pub enum Prompt {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

generation_body! {
    /// What `POST /v1/completions` takes.
    pub struct CompletionBody {
        /// What to continue; `null` is the beginning of a text.
        #[serde(deserialize_with = "required")]
        #[schema(required)]
        pub prompt: Option<Prompt>,
        /// Draw so many answers and give the `n` likeliest of them; not with `stream`.
        #[schema(minimum = 1, maximum = 20)]
        pub best_of: Option<i64>,
        /// Put the prompt before the answer.
        #[schema(default = false)]
        pub echo: Option<bool>,
        /// Log-probabilities of the tokens, with so many likeliest ones; with `echo` also the prompt's.
        #[schema(minimum = 0, maximum = 5)]
        pub logprobs: Option<i64>,
        /// Most tokens to answer with; 0 only scores the prompt.
        #[schema(minimum = 0, default = 16)]
        pub max_tokens: Option<i64>,
        #[serde(default)]
        #[schema(ignore)]
        suffix: Refused<NoInfill>,
    }
}

/// How the answer is to look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    pub n: usize,
    pub best_of: usize,
    pub echo: bool,
    pub logprobs: Option<usize>,
    pub prompt_logprobs: Option<usize>,
    pub return_token_ids: bool,
    pub stream: bool,
    pub include_usage: bool,
}

impl CompletionBody {
    /// Checks every range and settles every default.
    ///
    /// # Errors
    /// A 400 that names the parameter.
    pub(super) fn settle(mut self, tenant: Arc<str>) -> Result<(TextRequest, Form), ApiError> {
        let common = Common::try_from(self.common())?;
        let form = self.form(&common)?;
        let prompt = prompts(self.prompt)?;
        if prompt.count() > MAX_PROMPTS || prompt.count() * form.best_of > MAX_PROMPTS {
            let message = format!("at most {MAX_PROMPTS} answers can be asked for at once");
            return Err(ApiError::invalid("prompt", message));
        }
        let mut sampling = common.sampling;
        sampling.logprobs = form.logprobs.or((form.best_of > form.n).then_some(0));
        if form.echo && form.logprobs > sampling.prompt_logprobs {
            sampling.prompt_logprobs = form.logprobs;
        }
        let max_tokens = match self.max_tokens {
            None => MaxTokens::UpTo(DEFAULT_MAX_TOKENS),
            Some(most) => MaxTokens::Asked(count("max_tokens", most, 0..=i64::from(u32::MAX))?),
        };
        let request = TextRequest {
            model: self.model,
            tenant,
            prompt,
            choices: form.best_of,
            sampling,
            max_tokens,
            seed: common.seed,
            stop: common.stop,
            adapter_scale: common.adapter_scale,
            speculative: common.speculative,
            echo: form.echo,
        };
        Ok((request, form))
    }

    fn form(&self, common: &Common) -> Result<Form, ApiError> {
        let n = common.n;
        let best_of = match self.best_of {
            None => n,
            Some(best_of) => count("best_of", best_of, 0..=MAX_BEST_OF.min(MAX_N))?,
        };
        if best_of < n {
            let message = format!("`best_of` is {best_of}; it must be at least `n`, which is {n}");
            return Err(ApiError::invalid("best_of", message));
        }
        if common.stream && best_of > n {
            return Err(ApiError::invalid("best_of", "`best_of` cannot be streamed"));
        }
        let logprobs = self.logprobs.map(|top| count("logprobs", top, 0..=MAX_LOGPROBS));
        Ok(Form {
            n,
            best_of,
            echo: self.echo.unwrap_or(false),
            logprobs: logprobs.transpose()?,
            prompt_logprobs: common.sampling.prompt_logprobs,
            return_token_ids: self.return_token_ids.unwrap_or(false),
            stream: common.stream,
            include_usage: common.include_usage,
        })
    }
}

fn prompts(prompt: Option<Prompt>) -> Result<PromptInput, ApiError> {
    let empty = || ApiError::invalid("prompt", "`prompt` is an empty list");
    match prompt {
        None => Ok(PromptInput::Beginning),
        Some(Prompt::Text(text)) => Ok(PromptInput::Texts(vec![text])),
        Some(Prompt::Texts(texts)) if texts.is_empty() => Err(empty()),
        Some(Prompt::Texts(texts)) => Ok(PromptInput::Texts(texts)),
        Some(Prompt::Tokens(ids)) => Ok(PromptInput::Tokens(vec![ids])),
        Some(Prompt::TokenLists(lists)) => match lists.iter().position(Vec::is_empty) {
            Some(at) => {
                Err(ApiError::invalid(format!("prompt[{at}]"), "a list of tokens is empty"))
            }
            None => Ok(PromptInput::Tokens(lists)),
        },
    }
}

/// A field that may be `null` but not absent.
fn required<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Prompt>, D::Error> {
    Option::deserialize(deserializer)
}
