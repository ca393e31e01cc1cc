//! Chat templates: a conversation to the text the model was taught to read.
//!
//! Jinja as `transformers` runs it: `trim_blocks`, `lstrip_blocks`, loop controls, Python's string
//! methods and `tojson`, `raise_exception`, `strftime_now`. A template comes with a model and so
//! from outside: its work, its depth and its output are bounded, and a server renders it in a
//! process of its own.

mod apart;
mod child;
mod compiled;
mod filters;
mod functions;
mod methods;
mod presets;
mod question;
mod strftime;

use std::borrow::Cow;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use apart::Apart;
pub use apart::COMMAND;
pub use child::answer_parent;
use compiled::Compiled;
pub use presets::{PRESETS, preset};
use question::{Question, Source};

/// Most text one rendering may produce.
const MAX_OUTPUT_BYTES: usize = super::tokenizer::MAX_INPUT_BYTES;

/// Why a template could not be compiled or rendered.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
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
    #[error(
        "the chat template {template} broke off: its values nest too deep or take more than \
         {limit_mib} MiB"
    )]
    Overgrown { template: String, limit_mib: u64 },
    #[error("no process could be started to render the chat template {template}: {reason}")]
    NotStarted { template: String, reason: String },
}

/// Where a template is rendered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Rendering {
    /// In this process, for templates of trust: a hostile one can overflow its stack.
    #[default]
    Here,
    /// In a process of its own that runs this program with [`COMMAND`], which must call
    /// [`answer_parent`].
    Apart(PathBuf),
}

/// A compiled chat template with the special tokens it writes.
#[derive(Debug)]
pub struct ChatTemplate {
    renderer: Renderer,
    name: String,
    bos_token: String,
    fingerprint: String,
    takes: Takes,
    /// A text that does not begin with the beginning-of-sequence token gets it.
    begins: bool,
}

#[derive(Debug)]
enum Renderer {
    Here(Box<Compiled>),
    Apart(Box<Apart>),
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
    /// [`TemplateError::Syntax`] with the line; [`TemplateError::NotStarted`];
    /// [`TemplateError::OutOfFuel`] or [`TemplateError::Overgrown`] if the trial breaks its bounds.
    pub fn compile(
        name: &str,
        source: &str,
        bos_token: &str,
        eos_token: &str,
        rendering: &Rendering,
    ) -> Result<Self, TemplateError> {
        Self::compile_with(name, source, bos_token, eos_token, &Map::new(), rendering)
    }

    /// The same, with further special tokens by name: `pad_token`, …
    ///
    /// # Errors
    /// As [`ChatTemplate::compile`].
    pub fn compile_with(
        name: &str,
        source: &str,
        bos_token: &str,
        eos_token: &str,
        tokens: &Map<String, Value>,
        rendering: &Rendering,
    ) -> Result<Self, TemplateError> {
        let fingerprint = hex::encode(Sha256::digest(source));
        let source = Source {
            name: name.to_owned(),
            text: source.to_owned(),
            bos_token: bos_token.to_owned(),
            eos_token: eos_token.to_owned(),
            tokens: tokens.clone(),
        };
        let (name, bos_token) = (source.name.clone(), source.bos_token.clone());
        let renderer = match rendering {
            Rendering::Here => Renderer::Here(Box::new(Compiled::new(source)?)),
            Rendering::Apart(program) => {
                Renderer::Apart(Box::new(Apart::new(program.clone(), source)?))
            }
        };
        let takes = Takes::default();
        let mut template = Self { renderer, name, bos_token, fingerprint, takes, begins: false };
        template.takes = template.try_content()?;
        Ok(template)
    }

    /// Found by asking it. A template that refuses both is taken to read text.
    fn try_content(&self) -> Result<Takes, TemplateError> {
        const WORD: &str = "wordless";
        const UNREAD: &str = "unread";
        let shows = |content: Value| {
            let message = serde_json::json!({"role": "user", "content": content});
            match self.render(&[message], None, true, &Map::new()) {
                // A list that is written as a list shows keys that nobody reads.
                Ok(text) => Ok(text.contains(WORD) && !text.contains(UNREAD)),
                Err(TemplateError::Raised { .. } | TemplateError::Render { .. }) => Ok(false),
                Err(error) => Err(error),
            }
        };
        let parts = shows(serde_json::json!([{"type": "text", "text": WORD, UNREAD: true}]))?;
        Ok(Takes { text: shows(WORD.into())? || !parts, parts })
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
        Self::compile(name, source, bos_token, eos_token, &Rendering::Here)
    }

    /// The text of `messages`; with `add_generation_prompt` also the opening of the next assistant
    /// turn. `extra` are further variables (`enable_thinking`, …).
    ///
    /// # Errors
    /// [`TemplateError::Raised`] if the template refuses, the others if it fails or grows too large.
    pub fn render(
        &self,
        messages: &[Value],
        tools: Option<&[Value]>,
        add_generation_prompt: bool,
        extra: &Map<String, Value>,
    ) -> Result<String, TemplateError> {
        let question = Question {
            messages: Cow::Borrowed(messages),
            tools: tools.map(Cow::Borrowed),
            add_generation_prompt,
            extra: Cow::Borrowed(extra),
        };
        let text = match &self.renderer {
            Renderer::Here(compiled) => compiled.render(&question)?,
            Renderer::Apart(apart) => apart.render(&question)?,
        };
        let bos = if text.starts_with(&self.bos_token) { "" } else { self.begin() };
        Ok(format!("{bos}{text}"))
    }

    /// What errors call it: a preset or a file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Hex SHA-256 of the source.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}
