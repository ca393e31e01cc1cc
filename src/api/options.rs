//! The controls that completions and chat share: their fields, ranges and defaults, once.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ApiError;
use crate::domain::SamplingParams;
use crate::text::StopMatcher;

/// Most `logit_bias` entries.
const MAX_LOGIT_BIAS: usize = 1024;
/// Most choices of one prompt.
pub(super) const MAX_N: i64 = 128;
/// Most log-probabilities per token that the extension `prompt_logprobs` gives.
const MAX_PROMPT_LOGPROBS: i64 = 20;

/// One string, or several.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(untagged, expecting = "must be a string or a list of strings")]
pub enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// What else a stream tells.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StreamOptions {
    /// One more chunk before `[DONE]`, without choices, that holds the usage.
    pub include_usage: Option<bool>,
    /// Only `false` is supported.
    pub include_obfuscation: Option<bool>,
}

/// Fields that completions and chat have in common, as they stand in a body.
#[derive(Clone, Debug, Default)]
pub(super) struct CommonFields {
    pub frequency_penalty: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub logit_bias: Option<BTreeMap<String, f64>>,
    pub n: Option<i64>,
    pub seed: Option<i64>,
    pub stop: Option<OneOrMany>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<i64>,
    pub min_p: Option<f64>,
    pub repetition_penalty: Option<f64>,
    pub ignore_eos: Option<bool>,
    pub min_tokens: Option<i64>,
    pub prompt_logprobs: Option<i64>,
    pub adapter_scale: Option<f64>,
    pub speculative: Option<bool>,
}

/// Declares a request body: its own fields, and after them those of [`CommonFields`].
macro_rules! generation_body {
    ($(#[$meta:meta])* pub struct $name:ident { $($own:tt)* }) => {
        $(#[$meta])*
        #[derive(Debug, serde::Deserialize, utoipa::ToSchema)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "of a refused parameter, decoding is the check")]
        pub struct $name {
            /// A base model, a registered adapter, a fine-tuned model or one of its checkpoints.
            pub model: String,
            $($own)*
            /// Lowers the logit of a token per earlier occurrence in the answer.
            #[schema(minimum = -2, maximum = 2, default = 0)]
            pub frequency_penalty: Option<f64>,
            /// Lowers the logit of a token that occurs in the answer.
            #[schema(minimum = -2, maximum = 2, default = 0)]
            pub presence_penalty: Option<f64>,
            /// Token id to what is added to its logit, from -100 to 100; at most 1024 entries.
            pub logit_bias: Option<std::collections::BTreeMap<String, f64>>,
            /// Answers to draw for each prompt.
            #[schema(minimum = 1, maximum = 128, default = 1)]
            pub n: Option<i64>,
            /// The same seed and request give the same tokens, whatever else the server does.
            pub seed: Option<i64>,
            /// At most four strings that end an answer; they are not part of it.
            pub stop: Option<$crate::api::options::OneOrMany>,
            /// Send the answer as server-sent events while it is made.
            #[schema(default = false)]
            pub stream: Option<bool>,
            /// Only with `stream`.
            pub stream_options: Option<$crate::api::options::StreamOptions>,
            /// 0 always takes the likeliest token.
            #[schema(minimum = 0, maximum = 2, default = 1)]
            pub temperature: Option<f64>,
            /// Draw from the smallest set of tokens whose probability reaches this.
            #[schema(minimum = 0, maximum = 1, default = 1)]
            pub top_p: Option<f64>,
            /// Accepted for compatibility; it changes nothing.
            pub user: Option<String>,
            /// Extension: draw from so many tokens; 0 or -1 is off.
            #[schema(minimum = -1, default = 0)]
            pub top_k: Option<i64>,
            /// Extension: draw from tokens at least this fraction as likely as the likeliest.
            #[schema(minimum = 0, maximum = 1, default = 0)]
            pub min_p: Option<f64>,
            /// Extension: divides positive and multiplies negative logits of tokens seen before.
            #[schema(exclusive_minimum = 0, maximum = 10, default = 1)]
            pub repetition_penalty: Option<f64>,
            /// Extension: go on past the end-of-sequence token.
            #[schema(default = false)]
            pub ignore_eos: Option<bool>,
            /// Extension: tokens before which nothing ends the answer.
            #[schema(minimum = 0, default = 0)]
            pub min_tokens: Option<i64>,
            /// Extension: log-probabilities of the prompt's tokens, with so many likeliest ones.
            #[schema(minimum = 0, maximum = 20)]
            pub prompt_logprobs: Option<i64>,
            /// Extension: adds the token ids of prompt and answer.
            #[schema(default = false)]
            pub return_token_ids: Option<bool>,
            /// Extension: multiplies the adapter's own scaling; 1 is as trained.
            #[schema(minimum = -10, maximum = 10, default = 1)]
            pub adapter_scale: Option<f64>,
            /// Extension: whether tokens may be guessed and checked several at once; no answer changes.
            #[schema(default = true)]
            pub speculative: Option<bool>,
        }

        impl $name {
            fn common(&mut self) -> $crate::api::options::CommonFields {
                $crate::api::options::CommonFields {
                    frequency_penalty: self.frequency_penalty,
                    presence_penalty: self.presence_penalty,
                    logit_bias: self.logit_bias.take(),
                    n: self.n,
                    seed: self.seed,
                    stop: self.stop.take(),
                    stream: self.stream,
                    stream_options: self.stream_options,
                    temperature: self.temperature,
                    top_p: self.top_p,
                    top_k: self.top_k,
                    min_p: self.min_p,
                    repetition_penalty: self.repetition_penalty,
                    ignore_eos: self.ignore_eos,
                    min_tokens: self.min_tokens,
                    prompt_logprobs: self.prompt_logprobs,
                    adapter_scale: self.adapter_scale,
                    speculative: self.speculative,
                }
            }
        }
    };
}
pub(super) use generation_body;

/// The same, ranges checked and defaults settled.
#[derive(Clone, Debug)]
pub(super) struct Common {
    /// `logprobs` and `max_tokens` are the route's to set.
    pub sampling: SamplingParams,
    pub n: usize,
    pub seed: Option<u64>,
    pub stop: Vec<String>,
    pub stream: bool,
    pub include_usage: bool,
    pub adapter_scale: Option<f32>,
    pub speculative: bool,
}

impl TryFrom<CommonFields> for Common {
    type Error = ApiError;

    fn try_from(fields: CommonFields) -> Result<Self, ApiError> {
        let number = |param, value: Option<f64>, default, range: RangeInclusive<f64>| {
            within(param, value.unwrap_or(default), range).map(|value| value as f32)
        };
        let top_k = within("top_k", fields.top_k.unwrap_or(0), -1..=i64::from(u32::MAX))?;
        let penalty = number("repetition_penalty", fields.repetition_penalty, 1.0, 0.0..=10.0)?;
        if penalty == 0.0 {
            return Err(ApiError::invalid("repetition_penalty", "it must be greater than 0"));
        }
        let sampling = SamplingParams {
            temperature: number("temperature", fields.temperature, 1.0, 0.0..=2.0)?,
            top_p: number("top_p", fields.top_p, 1.0, 0.0..=1.0)?,
            top_k: usize::try_from(top_k).unwrap_or(0),
            min_p: number("min_p", fields.min_p, 0.0, 0.0..=1.0)?,
            repetition_penalty: penalty,
            frequency_penalty: number(
                "frequency_penalty",
                fields.frequency_penalty,
                0.0,
                -2.0..=2.0,
            )?,
            presence_penalty: number("presence_penalty", fields.presence_penalty, 0.0, -2.0..=2.0)?,
            logit_bias: logit_bias(fields.logit_bias.unwrap_or_default())?,
            min_tokens: count(
                "min_tokens",
                fields.min_tokens.unwrap_or(0),
                0..=i64::from(u32::MAX),
            )?,
            ignore_eos: fields.ignore_eos.unwrap_or(false),
            prompt_logprobs: fields
                .prompt_logprobs
                .map(|top| count("prompt_logprobs", top, 0..=MAX_PROMPT_LOGPROBS))
                .transpose()?,
            ..SamplingParams::default()
        };
        let stream = fields.stream.unwrap_or(false);
        Ok(Self {
            sampling,
            n: count("n", fields.n.unwrap_or(1), 1..=MAX_N)?,
            seed: fields.seed.map(|seed| seed as u64),
            stop: stop_strings(fields.stop)?,
            stream,
            include_usage: include_usage(stream, fields.stream_options)?,
            adapter_scale: fields
                .adapter_scale
                .map(|scale| number("adapter_scale", Some(scale), 1.0, -10.0..=10.0))
                .transpose()?,
            speculative: fields.speculative.unwrap_or(true),
        })
    }
}

/// A number in its range.
///
/// # Errors
/// A 400 that names `param` and the range.
pub(super) fn within<T: PartialOrd + Display>(
    param: &str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<T, ApiError> {
    match range.contains(&value) {
        true => Ok(value),
        false => {
            let (low, high) = range.into_inner();
            let message = format!("`{param}` is {value}; it must be from {low} to {high}");
            Err(ApiError::invalid(param, message))
        }
    }
}

/// A count in its range.
///
/// # Errors
/// As [`within`].
pub(super) fn count(
    param: &str,
    value: i64,
    range: RangeInclusive<i64>,
) -> Result<usize, ApiError> {
    within(param, value, range).map(|value| value as usize)
}

fn logit_bias(biases: BTreeMap<String, f64>) -> Result<Vec<(u32, f32)>, ApiError> {
    if biases.len() > MAX_LOGIT_BIAS {
        let message =
            format!("{} entries given; at most {MAX_LOGIT_BIAS} are allowed", biases.len());
        return Err(ApiError::invalid("logit_bias", message));
    }
    let entry = |(token, bias): (String, f64)| {
        let id = token.parse().map_err(|_| {
            let message = format!("`{token}` is not a token id");
            ApiError::invalid("logit_bias", message)
        })?;
        Ok((id, within("logit_bias", bias, -100.0..=100.0)? as f32))
    };
    biases.into_iter().map(entry).collect()
}

fn stop_strings(stop: Option<OneOrMany>) -> Result<Vec<String>, ApiError> {
    let stops = match stop {
        None => Vec::new(),
        Some(OneOrMany::One(stop)) => vec![stop],
        Some(OneOrMany::Many(stops)) => stops,
    };
    StopMatcher::new(&stops).map_err(|error| ApiError::invalid("stop", error))?;
    Ok(stops)
}

fn include_usage(stream: bool, options: Option<StreamOptions>) -> Result<bool, ApiError> {
    let Some(options) = options else { return Ok(false) };
    if !stream {
        return Err(ApiError::invalid("stream_options", "`stream_options` needs `stream: true`"));
    }
    if options.include_obfuscation == Some(true) {
        let message = "`include_obfuscation` is not supported unless it is false";
        return Err(ApiError::unsupported("stream_options.include_obfuscation", message));
    }
    Ok(options.include_usage.unwrap_or(false))
}

/// OpenAI's limits of `metadata`: 16 pairs of strings, 64 and 512 characters.
///
/// # Errors
/// A 400 that names the pair.
pub fn check_metadata(metadata: &BTreeMap<String, String>) -> Result<(), ApiError> {
    if metadata.len() > 16 {
        let message = format!("{} pairs given; at most 16 are allowed", metadata.len());
        return Err(ApiError::invalid("metadata", message));
    }
    for (key, value) in metadata {
        let (key_length, length) = (key.chars().count(), value.chars().count());
        if key_length > 64 || length > 512 {
            let message = "keys have at most 64 characters and values 512";
            return Err(ApiError::invalid(format!("metadata.{key}"), message));
        }
    }
    Ok(())
}
