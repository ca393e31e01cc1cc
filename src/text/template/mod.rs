//! Chat templates: a conversation to the text the model was taught to read.
//!
//! Jinja as `transformers` runs it: `trim_blocks`, `lstrip_blocks`, loop controls, Python's string
//! methods and `tojson`, `raise_exception`, `strftime_now`. A template comes with a model and so
//! from outside: its work, its depth and its output are bounded.

mod functions;
mod presets;
mod strftime;

use std::io;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, ErrorKind, Value};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

pub use presets::{PRESETS, preset};

/// Most text one rendering may produce.
const MAX_OUTPUT_BYTES: usize = super::tokenizer::MAX_INPUT_BYTES;
/// About so many instructions, and 64 times as many bytes, may one rendering take.
const FUEL: u64 = 3_000_000;
const RECURSION_LIMIT: usize = 200;
/// A template that is tried for so long never ends: lists that double are not charged to the budget.
const TRIAL: Duration = Duration::from_secs(5);
const NAME: &str = "chat";

/// Why a template could not be compiled or rendered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("the chat template {template} does not compile: line {line}: {reason}")]
    Syntax { template: String, line: usize, reason: String },
    #[error("there is no chat template preset `{name}`; there are {known}")]
    UnknownPreset { name: String, known: String },
    /// The template itself refused the conversation.
    #[error("the chat template refused the conversation: {message}")]
    Raised { message: String },
    #[error("the chat template {template} failed at line {line}: {reason}")]
    Render { template: String, line: usize, reason: String },
    #[error("the chat template {template} did not finish within its budget of work")]
    OutOfFuel { template: String },
    #[error("the chat template {template} wrote more than {limit} bytes")]
    TooLong { template: String, limit: usize },
}

/// A compiled chat template with the special tokens it writes.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    name: String,
    bos_token: String,
    eos_token: String,
    fingerprint: String,
    takes: Takes,
    /// A text that does not begin with the beginning-of-sequence token gets it.
    begins: bool,
}

/// What content of messages a template writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Takes {
    pub text: bool,
    /// Lists of parts, of type `text` and `image`.
    pub parts: bool,
}

impl ChatTemplate {
    /// Compiles `source`, and tries it; `name` is what errors call it.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`] with the line, or [`TemplateError::OutOfFuel`] if it does not end.
    pub fn compile(
        name: &str,
        source: &str,
        bos_token: &str,
        eos_token: &str,
    ) -> Result<Self, TemplateError> {
        let mut environment = environment();
        environment.add_template_owned(NAME, without_generation_tags(source)).map_err(|error| {
            TemplateError::Syntax {
                template: name.to_owned(),
                line: error.line().unwrap_or(1),
                reason: sentence(&error),
            }
        })?;
        let template = Self {
            environment,
            name: name.to_owned(),
            bos_token: bos_token.to_owned(),
            eos_token: eos_token.to_owned(),
            fingerprint: hex::encode(Sha256::digest(source)),
            takes: Takes::default(),
            begins: false,
        };
        template.tried()
    }

    /// With what it takes. A trial that does not end is left behind on its thread.
    fn tried(mut self) -> Result<Self, TemplateError> {
        let (sender, tried) = mpsc::channel();
        let endless = TemplateError::OutOfFuel { template: self.name.clone() };
        thread::spawn(move || {
            self.takes = self.try_content();
            let _nobody_waits_any_more = sender.send(self);
        });
        tried.recv_timeout(TRIAL).map_err(|_| endless)
    }

    /// Found by asking it. A template that refuses both is taken to read text.
    fn try_content(&self) -> Takes {
        const WORD: &str = "wordless";
        const UNREAD: &str = "unread";
        let shows = |content: Json| {
            let message = serde_json::json!({"role": "user", "content": content});
            let text = self.render(&[message], None, true, &serde_json::Map::new());
            // A list that is written as a list shows keys that nobody reads.
            text.is_ok_and(|text| text.contains(WORD) && !text.contains(UNREAD))
        };
        let parts = shows(serde_json::json!([{"type": "text", "text": WORD, UNREAD: true}]));
        Takes { text: shows(WORD.into()) || !parts, parts }
    }

    /// Writes the beginning-of-sequence token where the source leaves it to a processor.
    pub fn begin_every_text(&mut self) {
        self.begins = true;
    }

    fn begin(&self) -> &str {
        if self.begins { &self.bos_token } else { "" }
    }

    /// What content it writes.
    pub fn takes(&self) -> Takes {
        self.takes
    }

    /// Compiles the preset `name`, one of [`PRESETS`].
    ///
    /// # Errors
    /// [`TemplateError::UnknownPreset`].
    pub fn from_preset(
        name: &str,
        bos_token: &str,
        eos_token: &str,
    ) -> Result<Self, TemplateError> {
        let source = preset(name).ok_or_else(|| TemplateError::UnknownPreset {
            name: name.to_owned(),
            known: PRESETS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
        })?;
        Self::compile(name, source, bos_token, eos_token)
    }

    /// The text of `messages`; with `add_generation_prompt` also the opening of the next assistant
    /// turn. `extra` are further variables (`enable_thinking`, …).
    ///
    /// # Errors
    /// [`TemplateError::Raised`] if the template refuses, the others if it fails or grows too large.
    pub fn render(
        &self,
        messages: &[Json],
        tools: Option<&[Json]>,
        add_generation_prompt: bool,
        extra: &serde_json::Map<String, Json>,
    ) -> Result<String, TemplateError> {
        let own = [
            ("messages", Value::from(Serde(messages))),
            ("tools", Value::from(Serde(tools))),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            ("bos_token", Value::from(&self.bos_token)),
            ("eos_token", Value::from(&self.eos_token)),
        ];
        let own = own.into_iter().map(|(key, value)| (key.to_owned(), value));
        let extra = extra.iter().map(|(key, value)| (key.clone(), Value::from(Serde(value))));
        let context = Value::from_pairs(extra.chain(own));
        let mut output = Bounded { text: Vec::new(), overflow: false };
        let template = self.environment.get_template(NAME).map_err(|e| self.failed(&e))?;
        match template.render_captured_to(context, &mut output) {
            Err(_) if output.overflow => {
                Err(TemplateError::TooLong { template: self.name.clone(), limit: MAX_OUTPUT_BYTES })
            }
            Err(error) => Err(self.failed(&error)),
            Ok(_) => {
                let text = String::from_utf8_lossy(&output.text);
                let bos = if text.starts_with(self.bos_token.as_str()) { "" } else { self.begin() };
                Ok(format!("{bos}{text}"))
            }
        }
    }

    /// What errors call it: a preset or a file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Hex SHA-256 of the source.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn failed(&self, error: &minijinja::Error) -> TemplateError {
        if let Some(message) = functions::raised_message(error) {
            return TemplateError::Raised { message };
        }
        let template = self.name.clone();
        match error.kind() {
            ErrorKind::OutOfFuel => TemplateError::OutOfFuel { template },
            _ => TemplateError::Render {
                template,
                line: error.line().unwrap_or(1),
                reason: sentence(error),
            },
        }
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the default delimiters are valid"));
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_recursion_limit(RECURSION_LIMIT);
    environment.set_fuel(Some(FUEL));
    functions::add_to(&mut environment);
    environment
}

/// Templates made for training mark answers with `{% generation %}`. Their answers are found by
/// rendering here, so the tag becomes one that changes nothing, whitespace control included.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let Some(length) = rest[open..].find("%}") else { break };
        let tag = &rest[open..open + length];
        out.push_str(&rest[..open]);
        match tag.trim_start_matches(['{', '%', '-', '+']).trim_end_matches('-').trim() {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = &rest[open + length..];
    }
    out + rest
}

/// Kind and detail, without the place, which our errors state themselves.
fn sentence(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

/// A buffer that refuses to grow without end.
struct Bounded {
    text: Vec<u8>,
    overflow: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.overflow |= self.text.len() + bytes.len() > MAX_OUTPUT_BYTES;
        if self.overflow {
            return Err(io::Error::other("the output is too long"));
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
