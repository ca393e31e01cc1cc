//! A template rendered in a process of its own, which may end in place of the server.
//!
//! Fuel counts instructions and bytes, not how deep values nest nor how often one list is shared:
//! a hostile template overflows the stack, fills the memory or compares for hours without spending
//! any. Here that ends only a child process; the next rendering starts another. A JSON line asks,
//! a JSON line answers.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use rustix::process::Signal;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::TemplateError;
use super::child::MEMORY_BYTES;
use super::question::{Question, Source};

/// The command with which this program renders for its parent.
pub const COMMAND: &str = "render-templates";

/// A template with the process that renders it.
#[derive(Debug)]
pub(super) struct Apart {
    program: PathBuf,
    source: Source,
    process: Mutex<Option<Process>>,
}

impl Apart {
    /// Compiles `source` in a process that runs `program`.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`]; [`TemplateError::NotStarted`]; as [`Apart::render`].
    pub fn new(program: PathBuf, source: Source) -> Result<Self, TemplateError> {
        let process = start(&program, &source)?;
        Ok(Self { program, source, process: Mutex::new(Some(process)) })
    }

    /// # Errors
    /// As within one process; [`TemplateError::OutOfFuel`] and [`TemplateError::Overgrown`] if the
    /// other one had to end.
    pub fn render(&self, question: &Question<'_>) -> Result<String, TemplateError> {
        let mut place = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let mut process = match place.take().and_then(Process::alive) {
            Some(process) => process,
            None => start(&self.program, &self.source)?,
        };
        match process.ask(question) {
            Ok(answer) => {
                *place = Some(process);
                answer
            }
            Err(_) => Err(process.reason(&self.source)),
        }
    }
}

fn start(program: &Path, source: &Source) -> Result<Process, TemplateError> {
    let mut process = Process::spawn(program).map_err(|error| TemplateError::NotStarted {
        template: source.name.clone(),
        reason: error.to_string(),
    })?;
    match process.ask(source) {
        Ok(compiled) => compiled.map(|()| process),
        Err(_) => Err(process.reason(source)),
    }
}

#[derive(Debug)]
struct Process {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Process {
    /// With no environment, which may hold keys, and out of the terminal's group, so that an
    /// interrupt leaves it to render for the requests that are being finished.
    fn spawn(program: &Path) -> io::Result<Self> {
        let mut child = Command::new(program)
            .arg(COMMAND)
            .env_clear()
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let (questions, answers) = child.stdin.take().zip(child.stdout.take()).expect("piped");
        Ok(Self { child, questions, answers: BufReader::new(answers) })
    }

    fn alive(mut self) -> Option<Self> {
        matches!(self.child.try_wait(), Ok(None)).then_some(self)
    }

    /// What the other process answers; an error if it ends instead.
    fn ask<T: DeserializeOwned>(
        &mut self,
        question: &impl Serialize,
    ) -> io::Result<Result<T, TemplateError>> {
        let mut line = serde_json::to_vec(question)?;
        line.push(b'\n');
        self.questions.write_all(&line)?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        Ok(serde_json::from_str(&answer)?)
    }

    /// Why it gave no answer.
    fn reason(mut self, source: &Source) -> TemplateError {
        let template = source.name.clone();
        let signal = self.child.wait().ok().and_then(|status| status.signal());
        match signal == Some(Signal::XCPU.as_raw()) {
            true => TemplateError::OutOfFuel { template },
            false => TemplateError::Overgrown { template, limit_mib: MEMORY_BYTES >> 20 },
        }
    }
}

impl Drop for Process {
    /// Waited for, so that the system forgets it.
    fn drop(&mut self) {
        let _it_may_have_ended = self.child.kill();
        let _nothing_to_learn = self.child.wait();
    }
}
