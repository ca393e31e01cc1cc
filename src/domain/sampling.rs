//! How the next token is chosen.

/// Every control of sampling, with its default settled. Ranges were checked at the edge.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// Nucleus: the smallest set of tokens whose probability reaches this; 1 is off.
    pub top_p: f32,
    /// Keep only so many tokens; 0 is off.
    pub top_k: usize,
    /// Keep tokens at least this fraction as likely as the likeliest; 0 is off.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or answer; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from a logit per earlier occurrence in the answer.
    pub frequency_penalty: f32,
    /// Subtracted once from the logit of a token that occurs in the answer.
    pub presence_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// The same seed, prompt and parameters give the same tokens, whatever else is in the batch.
    pub seed: u64,
    /// Most tokens to answer with; 0 only scores the prompt.
    pub max_tokens: usize,
    /// Tokens before which no stop token may be chosen.
    pub min_tokens: usize,
    /// Go on past the end-of-sequence token.
    pub ignore_eos: bool,
    /// Report the log-probability of each chosen token and of this many likeliest ones.
    pub logprobs: Option<usize>,
    /// The same for each prompt token but the first.
    pub prompt_logprobs: Option<usize>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            max_tokens: 16,
            min_tokens: 0,
            ignore_eos: false,
            logprobs: None,
            prompt_logprobs: None,
        }
    }
}
