//! `tandem chat`: one question, or a conversation at the terminal.

use std::io;

use clap::Args;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::generate::{Sampling, stream, text_or_stdin};
use super::{Client, ClientError, ClientResult, ServerOptions, say};

const CHAT: [&str; 3] = ["v1", "chat", "completions"];
const HELP: &str = "\
/reset         forget the conversation
/model NAME    go on with another model
/system TEXT   begin anew with these instructions
/quit          leave, as Ctrl-D does; Ctrl-C ends an answer early
";

/// What `tandem chat` takes.
#[derive(Args, Clone, Debug)]
pub struct ChatOptions {
    /// One question [default: a conversation at a terminal, else standard input].
    message: Option<String>,
    /// Instructions for the whole conversation.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    server: ServerOptions,
}

/// Answers one question, or converses until the input ends.
///
/// # Errors
/// [`ClientError`]; in a conversation a refusal is told and the conversation goes on.
pub async fn run(options: ChatOptions) -> ClientResult<()> {
    let client = options.server.client()?;
    let message = text_or_stdin(options.message.as_deref())?;
    let json = options.server.json;
    if message.is_none() && json {
        let reason = "`--json` needs the question: `tandem chat --json \"Who are you?\"`";
        return Err(ClientError::Usage(reason.to_owned()));
    }
    let model = options.sampling.model(&client).await?;
    let mut talk = Conversation { client, model, sampling: options.sampling, messages: Vec::new() };
    talk.begin(options.system.as_deref());
    match message {
        None => talk.converse().await,
        Some(message) if json => talk.whole(message).await,
        Some(message) => talk.ask(message).await,
    }
}

struct Conversation {
    client: Client,
    model: String,
    sampling: Sampling,
    messages: Vec<Value>,
}

impl Conversation {
    fn begin(&mut self, system: Option<&str>) {
        let system = system.map(|text| json!({"role": "system", "content": text}));
        self.messages = system.into_iter().collect();
    }

    /// One question, answered as it comes. What fails leaves no trace in the conversation.
    async fn ask(&mut self, message: String) -> ClientResult<()> {
        let known = self.messages.len();
        let answered = self.answer(message).await;
        if answered.is_err() {
            self.messages.truncate(known);
        }
        answered
    }

    async fn answer(&mut self, message: String) -> ClientResult<()> {
        self.messages.push(json!({"role": "user", "content": message}));
        let mut body = self.sampling.body(&self.model);
        body.insert("messages".to_owned(), json!(self.messages));
        let text = stream(&self.client, &CHAT, body, |choice| &choice["delta"]["content"]).await?;
        self.messages.push(json!({"role": "assistant", "content": text}));
        say("\n")
    }

    async fn whole(&mut self, message: String) -> ClientResult<()> {
        self.messages.push(json!({"role": "user", "content": message}));
        let mut body = self.sampling.body(&self.model);
        body.insert("messages".to_owned(), json!(self.messages));
        let value = self.client.post(&CHAT, Some(&body.into())).await?;
        say(format!("{value:#}\n"))
    }

    async fn converse(&mut self) -> ClientResult<()> {
        say(format!("Chatting with `{}`; /help lists the commands.\n", self.model))?;
        let mut lines = lines_of_stdin();
        loop {
            say("> ")?;
            let line = tokio::select! {
                line = lines.recv() => line,
                _ = tokio::signal::ctrl_c() => None,
            };
            let Some(line) = line else { return say("\n") };
            match line.trim() {
                "" => {}
                "/quit" | "/exit" => return Ok(()),
                command if command.starts_with('/') => say(self.command(command))?,
                message => self.turn(message.to_owned()).await?,
            }
        }
    }

    /// A question that may be refused or broken off without ending the conversation.
    async fn turn(&mut self, message: String) -> ClientResult<()> {
        let known = self.messages.len();
        let asked = tokio::select! {
            asked = self.ask(message) => Some(asked),
            _ = tokio::signal::ctrl_c() => None,
        };
        match asked {
            None => {
                self.messages.truncate(known);
                say("\n")
            }
            Some(Err(ClientError::Refused(body, remedy))) => {
                let full = body.code.as_deref() == Some("context_length_exceeded");
                let remedy = if full { "; /reset begins anew" } else { remedy };
                say(format!("{}{remedy}\n", body.message))
            }
            Some(asked) => asked,
        }
    }

    /// What a command did, as a line.
    fn command(&mut self, line: &str) -> String {
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        match (command, rest.trim()) {
            ("/help", _) => HELP.to_owned(),
            ("/reset", _) => {
                self.messages.retain(|message| message["role"] == "system");
                "the conversation is forgotten\n".to_owned()
            }
            ("/model", name) if !name.is_empty() => {
                self.model = name.to_owned();
                format!("going on with `{name}`\n")
            }
            ("/system", text) => {
                self.begin(Some(text).filter(|text| !text.is_empty()));
                "beginning anew\n".to_owned()
            }
            _ => format!("`{command}` is no command\n{HELP}"),
        }
    }
}

/// Lines as they are typed. A thread of its own waits for them, which nobody has to wait for.
fn lines_of_stdin() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in io::stdin().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}
