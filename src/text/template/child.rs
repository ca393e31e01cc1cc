//! The process in which a template that came with a model is rendered, and its bounds.

use std::io::{self, BufRead, Write};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::TemplateError;
use super::compiled::Compiled;
use super::question::Source;

/// Most memory of the process: sixty times the longest prompt.
pub(super) const MEMORY_BYTES: u64 = 1 << 30;
/// Most processor time of one answer; an honest one takes milliseconds.
const SECONDS: u64 = 5;

/// Answers the parent's lines until there are no more: the first holds a template, each further
/// one what to render with it. Breaking a bound ends the process.
///
/// # Errors
/// [`io::Error`] if a bound cannot be set, or the parent has gone or does not speak JSON.
pub fn answer_parent() -> io::Result<()> {
    bound(Resource::Core, 0)?;
    bound(Resource::As, MEMORY_BYTES)?;
    bound_time()?;
    let mut lines = io::stdin().lock().lines();
    let Some(source) = lines.next() else { return Ok(()) };
    let source: Source = serde_json::from_str(&source?)?;
    let compiled = Compiled::new(source);
    say(&compiled.as_ref().map(|_| ()))?;
    let Ok(compiled) = compiled else { return Ok(()) };
    for question in lines {
        bound_time()?;
        say(&compiled.render(&serde_json::from_str(&question?)?).as_ref())?;
    }
    Ok(())
}

fn say<T: Serialize>(answer: &Result<T, &TemplateError>) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    out.flush()
}

fn bound(resource: Resource, most: u64) -> io::Result<()> {
    let maximum = getrlimit(resource).maximum;
    let most = maximum.map_or(most, |maximum| most.min(maximum));
    Ok(setrlimit(resource, Rlimit { current: Some(most), maximum })?)
}

/// Processor time and not time passed, so that a busy machine costs nobody an answer.
fn bound_time() -> io::Result<()> {
    let used = clock_gettime(ClockId::ProcessCPUTime).tv_sec.unsigned_abs();
    bound(Resource::Cpu, used + 1 + SECONDS)
}
