//! What `chat` and `complete` share: the sampling options, and text as it arrives.

use std::io::{self, IsTerminal, Read};

use clap::Args;
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::error::{ClientError, ClientResult, ErrorBody};
use super::sse::SseStream;
use super::{Client, say, view};

/// How to sample. What is not named, the server chooses.
#[derive(Args, Clone, Debug)]
pub struct Sampling {
    /// Model to ask: a base model, a fine-tuned one, a checkpoint or an adapter [default: the
    /// server's first base model].
    #[arg(long, short, value_name = "NAME")]
    pub model: Option<String>,
    /// Most tokens of an answer.
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<u64>,
    /// 0 takes the likeliest token each time.
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,
    /// Sample from the likeliest tokens of this probability together.
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// The same seed gives the same answer.
    #[arg(long, value_name = "N")]
    seed: Option<i64>,
    /// End the answer before this text; repeatable.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
}

impl Sampling {
    /// The fields of a request that samples so.
    pub fn body(&self, model: &str) -> Map<String, Value> {
        let named = [
            ("model", Some(json!(model))),
            ("max_tokens", self.max_tokens.map(Value::from)),
            ("temperature", self.temperature.map(Value::from)),
            ("top_p", self.top_p.map(Value::from)),
            ("seed", self.seed.map(Value::from)),
            ("stop", (!self.stop.is_empty()).then(|| json!(self.stop))),
        ];
        let fields = named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        fields.collect()
    }

    /// The model to ask.
    pub async fn model(&self, client: &Client) -> ClientResult<String> {
        match &self.model {
            Some(model) => Ok(model.clone()),
            None => client.first_model().await,
        }
    }
}

/// The text given as an argument, else all of standard input; `None` at a terminal.
pub(super) fn text_or_stdin(text: Option<&str>) -> ClientResult<Option<String>> {
    let mut stdin = io::stdin().lock();
    match text {
        Some(text) => Ok(Some(text.to_owned())),
        None if stdin.is_terminal() => Ok(None),
        None => {
            let mut text = String::new();
            let unreadable = |source| ClientError::Read { path: "standard input".into(), source };
            stdin.read_to_string(&mut text).map_err(unreadable)?;
            Ok(Some(text.trim_end_matches('\n').to_owned()))
        }
    }
}

/// Prints an answer as it arrives and gives it back whole. `text` finds the new piece in a choice.
pub(super) async fn stream(
    client: &Client,
    path: &[&str],
    mut body: Map<String, Value>,
    text: impl Fn(&Value) -> &Value,
) -> ClientResult<String> {
    body.insert("stream".to_owned(), json!(true));
    let request = client.request(Method::POST, path, &[]).json(&body);
    let mut events = SseStream::new(client, client.open(request).await?);
    let mut whole = String::new();
    while let Some(event) = events.next().await? {
        if event.data == "[DONE]" {
            return Ok(whole);
        }
        let chunk: Value = serde_json::from_str(&event.data)
            .map_err(|error| ClientError::Unreadable(error.to_string()))?;
        if let Some(error) = chunk.get("error") {
            return Err(ClientError::refused(view::<ErrorBody>(error)?, ""));
        }
        if let Some(piece) = text(&chunk["choices"][0]).as_str() {
            whole.push_str(piece);
            say(printable(piece, io::stdout().is_terminal()))?;
        }
    }
    Err(ClientError::Broken { url: client.address(), reason: "the answer has no end".to_owned() })
}

/// A model may write anything; to a terminal go no control characters.
fn printable(text: &str, terminal: bool) -> String {
    let shown = |c: &char| !terminal || !c.is_control() || matches!(c, '\n' | '\t');
    text.chars().filter(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_does_not_steer_the_terminal() {
        assert_eq!(printable("a\x1b[2J\tb\r\n", true), "a[2J\tb\n");
        assert_eq!(printable("a\x1b\n", false), "a\x1b\n");
    }
}
