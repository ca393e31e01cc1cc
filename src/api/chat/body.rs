//! The body of a chat request, and what it settles to.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::messages;
use crate::api::ApiError;
use crate::api::options::{Common, check_metadata, count, generation_body};
use crate::api::refused::{
    Absent, DefaultTier, Either, EmptyList, InMemory, Medium, NoReasoning, NoTools, Off, PlainText,
    Refused, TextOnly,
};
use crate::engine::{MaxTokens, PromptInput, TextRequest};

const MAX_TOP_LOGPROBS: i64 = 20;

generation_body! {
    /// What `POST /v1/chat/completions` takes.
    pub struct ChatBody {
        /// The conversation: objects with `role` (`system`, `developer`, `user`, `assistant`,
        /// `tool`) and `content`, a string or a list of parts: `text`, and for models that see
        /// `image_url` with the picture itself as a data URL (PNG, JPEG or WebP).
        #[schema(value_type = Vec<Object>, min_items = 1)]
        pub messages: Vec<Value>,
        /// Most tokens to answer with; by default the rest of the context.
        #[schema(minimum = 1)]
        pub max_completion_tokens: Option<i64>,
        /// The older name of `max_completion_tokens`.
        #[schema(minimum = 1)]
        pub max_tokens: Option<i64>,
        /// Give the log-probability of each token.
        #[schema(default = false)]
        pub logprobs: Option<bool>,
        /// And of so many likeliest tokens in its place; needs `logprobs`.
        #[schema(minimum = 0, maximum = 20)]
        pub top_logprobs: Option<i64>,
        /// At most 16 pairs of strings. Checked; answers are not stored, so nothing comes of it.
        pub metadata: Option<BTreeMap<String, String>>,
        /// Accepted for compatibility; it changes nothing.
        pub safety_identifier: Option<String>,
        /// Accepted for compatibility: the prefix cache finds what prompts share by itself.
        pub prompt_cache_key: Option<String>,
        #[serde(default)]
        #[schema(ignore)]
        tools: Refused<EmptyList>,
        #[serde(default)]
        #[schema(ignore)]
        tool_choice: Refused<NoTools>,
        #[serde(default)]
        #[schema(ignore)]
        parallel_tool_calls: Refused<Either>,
        #[serde(default)]
        #[schema(ignore)]
        functions: Refused<EmptyList>,
        #[serde(default)]
        #[schema(ignore)]
        function_call: Refused<NoTools>,
        #[serde(default)]
        #[schema(ignore)]
        response_format: Refused<PlainText>,
        #[serde(default)]
        #[schema(ignore)]
        modalities: Refused<TextOnly>,
        #[serde(default)]
        #[schema(ignore)]
        audio: Refused<Absent>,
        #[serde(default)]
        #[schema(ignore)]
        prediction: Refused<Absent>,
        #[serde(default)]
        #[schema(ignore)]
        web_search_options: Refused<Absent>,
        #[serde(default)]
        #[schema(ignore)]
        store: Refused<Off>,
        #[serde(default)]
        #[schema(ignore)]
        service_tier: Refused<DefaultTier>,
        #[serde(default)]
        #[schema(ignore)]
        reasoning_effort: Refused<NoReasoning>,
        #[serde(default)]
        #[schema(ignore)]
        verbosity: Refused<Medium>,
        #[serde(default)]
        #[schema(ignore)]
        prompt_cache_retention: Refused<InMemory>,
    }
}

/// How the answer is to look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    pub n: usize,
    /// The likeliest tokens to show in each place, if log-probabilities were asked for.
    pub logprobs: Option<usize>,
    pub prompt_logprobs: Option<usize>,
    pub return_token_ids: bool,
    pub stream: bool,
    pub include_usage: bool,
}

impl ChatBody {
    /// Checks every range and settles every default.
    ///
    /// # Errors
    /// A 400 that names the parameter.
    pub(super) fn settle(mut self, tenant: Arc<str>) -> Result<(TextRequest, Form), ApiError> {
        let common = Common::try_from(self.common())?;
        messages::check(&self.messages)?;
        check_metadata(self.metadata.as_ref().unwrap_or(&BTreeMap::new()))?;
        let form = Form {
            n: common.n,
            logprobs: self.top_logprobs()?,
            prompt_logprobs: common.sampling.prompt_logprobs,
            return_token_ids: self.return_token_ids.unwrap_or(false),
            stream: common.stream,
            include_usage: common.include_usage,
        };
        let mut sampling = common.sampling;
        sampling.logprobs = form.logprobs;
        let max_tokens = self.max_tokens()?;
        let request = TextRequest {
            model: self.model,
            tenant,
            prompt: PromptInput::Chat(self.messages),
            choices: form.n,
            sampling,
            max_tokens,
            seed: common.seed,
            stop: common.stop,
            adapter_scale: common.adapter_scale,
            speculative: common.speculative,
            echo: false,
        };
        Ok((request, form))
    }

    fn top_logprobs(&self) -> Result<Option<usize>, ApiError> {
        match (self.logprobs.unwrap_or(false), self.top_logprobs) {
            (false, None) => Ok(None),
            (false, Some(_)) => {
                Err(ApiError::invalid("top_logprobs", "`top_logprobs` needs `logprobs: true`"))
            }
            (true, top) => count("top_logprobs", top.unwrap_or(0), 0..=MAX_TOP_LOGPROBS).map(Some),
        }
    }

    fn max_tokens(&self) -> Result<MaxTokens, ApiError> {
        let (param, most) = match (self.max_completion_tokens, self.max_tokens) {
            (None, None) => return Ok(MaxTokens::UpTo(usize::MAX)),
            (Some(new), Some(old)) if new != old => {
                let message = "`max_tokens` and `max_completion_tokens` are two names of one \
                               parameter and differ; send only `max_completion_tokens`";
                return Err(ApiError::invalid("max_tokens", message));
            }
            (Some(most), _) => ("max_completion_tokens", most),
            (None, Some(most)) => ("max_tokens", most),
        };
        Ok(MaxTokens::Asked(count(param, most, 1..=i64::from(u32::MAX))?))
    }
}
