//! A template compiled for the interpreter, and its bounds: work, depth, output.

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, ErrorKind, Value};

use super::question::{Question, Source};
use super::{MAX_OUTPUT_BYTES, TemplateError};
use super::{filters, functions, methods};

/// About so many instructions, and 64 times as many bytes, may one rendering take.
const FUEL: u64 = 3_000_000;
const RECURSION_LIMIT: usize = 200;
const NAME: &str = "chat";

/// What [`Source`] becomes.
#[derive(Debug)]
pub(super) struct Compiled {
    environment: Environment<'static>,
    source: Source,
}

impl Compiled {
    /// # Errors
    /// [`TemplateError::Syntax`] with the line.
    pub fn new(source: Source) -> Result<Self, TemplateError> {
        let mut environment = environment();
        let text = without_generation_tags(&source.text);
        environment.add_template_owned(NAME, text).map_err(|error| TemplateError::Syntax {
            template: source.name.clone(),
            line: error.line().unwrap_or(1),
            reason: sentence(&error),
        })?;
        Ok(Self { environment, source })
    }

    /// # Errors
    /// [`TemplateError::Raised`] if the template refuses, the others if it fails or grows too large.
    pub fn render(&self, question: &Question<'_>) -> Result<String, TemplateError> {
        let mut output = Bounded { text: Vec::new(), overflow: false };
        let template = self.environment.get_template(NAME).map_err(|e| self.failed(&e))?;
        match template.render_captured_to(self.context(question), &mut output) {
            Err(_) if output.overflow => Err(TemplateError::TooLong {
                template: self.source.name.clone(),
                limit: MAX_OUTPUT_BYTES,
            }),
            Err(error) => Err(self.failed(&error)),
            Ok(_) => Ok(String::from_utf8_lossy(&output.text).into_owned()),
        }
    }

    fn context(&self, question: &Question<'_>) -> Value {
        let own = [
            ("messages", Value::from(Serde(&question.messages))),
            ("tools", Value::from(Serde(&question.tools))),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(question.add_generation_prompt)),
            ("bos_token", Value::from(&self.source.bos_token)),
            ("eos_token", Value::from(&self.source.eos_token)),
        ];
        let own = own.into_iter().map(|(key, value)| (key.to_owned(), value));
        let given = self.source.tokens.iter().chain(question.extra.iter());
        let given = given.map(|(key, value)| (key.clone(), Value::from(Serde(value))));
        Value::from_pairs(given.chain(own))
    }

    fn failed(&self, error: &minijinja::Error) -> TemplateError {
        if let Some(message) = functions::raised_message(error) {
            return TemplateError::Raised { message };
        }
        let template = self.source.name.clone();
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
    environment.set_unknown_method_callback(methods::call);
    environment.set_recursion_limit(RECURSION_LIMIT);
    environment.set_fuel(Some(FUEL));
    functions::add_to(&mut environment);
    filters::add_to(&mut environment);
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
