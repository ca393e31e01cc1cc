//! `tandem complete`: a prompt, and how the model goes on.

use clap::Args;
use serde_json::json;

use super::generate::{Sampling, stream, text_or_stdin};
use super::{ClientError, ClientResult, ServerOptions, say};

const COMPLETIONS: [&str; 2] = ["v1", "completions"];
/// The API's own default is too short to read.
const USUAL_TOKENS: u64 = 64;

/// What `tandem complete` takes.
#[derive(Args, Clone, Debug)]
pub struct CompleteOptions {
    /// Text to go on from [default: standard input].
    prompt: Option<String>,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    server: ServerOptions,
}

/// Prints the completion as it arrives; with `--json` the whole object.
///
/// # Errors
/// [`ClientError`].
pub async fn run(options: CompleteOptions) -> ClientResult<()> {
    let client = options.server.client()?;
    let prompt = text_or_stdin(options.prompt.as_deref())?.ok_or_else(|| {
        ClientError::Usage(
            "there is no prompt; write `tandem complete \"Once upon a time\"`".into(),
        )
    })?;
    let mut body = options.sampling.body(&options.sampling.model(&client).await?);
    body.insert("prompt".to_owned(), json!(prompt));
    body.entry("max_tokens").or_insert(json!(USUAL_TOKENS));
    if options.server.json {
        let value = client.post(&COMPLETIONS, Some(&body.into())).await?;
        return say(format!("{value:#}\n"));
    }
    stream(&client, &COMPLETIONS, body, |choice| &choice["text"]).await?;
    say("\n")
}
