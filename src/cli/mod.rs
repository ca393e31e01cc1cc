//! The command line: what each command takes, and the exit code it ends with.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::app::{RENDER_TEMPLATES, render_templates};
use crate::config::ServeOptions;

mod bench;
mod check;
mod client;
mod convert;
mod local;
mod recipes;
mod scratch;
mod serve;
mod train;

pub use bench::{BenchOptions, DoctorOptions};
use client::{adapters, chat, complete, files, jobs};

/// Serve a language model, fine-tune it, and use the result at once.
#[derive(Debug, Parser)]
#[command(
    name = "tandem",
    version,
    about,
    max_term_width = 100,
    after_help = "Without a command, `tandem` is `tandem serve`: a server with a small demo model \
                  on http://127.0.0.1:8080."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the server (what `tandem` does without a command).
    #[command(next_line_help = true)]
    Serve(Box<ServeOptions>),
    /// Ask a model a question, or converse with it.
    Chat(chat::ChatOptions),
    /// Have a model go on from a prompt.
    Complete(complete::CompleteOptions),
    /// Check a training file: every bad line, and what a job on it would do.
    Check(check::CheckOptions),
    /// Fine-tune on a running server: create, list, show, watch, cancel, pause, resume.
    Jobs(jobs::JobsOptions),
    /// Files on a running server: upload, list, show, delete, content.
    Files(files::FilesOptions),
    /// Adapters on a running server: list, show, add, delete.
    Adapters(adapters::AdaptersOptions),
    /// Fine-tune without a server, one job.
    Train(Box<train::TrainOptions>),
    /// Show well-known fine-tunes that a job can take its settings from.
    Recipes(recipes::RecipesOptions),
    /// Write a model in another format, with an adapter merged into it.
    Convert(convert::ConvertOptions),
    /// Say what this machine can do, which kernels will be used, and why.
    Doctor(DoctorOptions),
    /// Measure a model on this machine, or a running server.
    Bench(Box<BenchOptions>),
    /// What a server starts to render the chat templates of its models.
    #[command(hide = true, name = RENDER_TEMPLATES)]
    RenderTemplates,
}

/// A failed command: the sentence for the person, and the exit code for the shell.
#[derive(Debug)]
pub struct Failure {
    pub message: String,
    /// 1 failed, 2 usage, 70 device lost, 78 configuration or model file unusable.
    pub code: u8,
}

impl Failure {
    pub(crate) fn new(code: u8, message: impl ToString) -> Self {
        Self { message: message.to_string(), code }
    }
}

/// Runs the command in `args`, the program's name first, to its end.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(with_default_command(args)) {
        Ok(cli) => cli,
        // clap writes help to standard output with code 0, mistakes to standard error with code 2.
        Err(error) => error.exit(),
    };
    let result = match cli.command {
        Command::Serve(options) => serve::run(*options),
        Command::Chat(options) => client::block_on(chat::run(options)),
        Command::Complete(options) => client::block_on(complete::run(options)),
        Command::Check(options) => check::run(options),
        Command::Jobs(options) => client::block_on(jobs::run(options)),
        Command::Files(options) => client::block_on(files::run(options)),
        Command::Adapters(options) => client::block_on(adapters::run(options)),
        Command::Train(options) => train::run(*options),
        Command::Recipes(options) => recipes::run(&options),
        Command::Convert(options) => convert::run(options),
        Command::Doctor(options) => bench::doctor(&options),
        Command::Bench(options) => bench::bench(*options),
        Command::RenderTemplates => render_templates().map_err(|error| Failure::new(1, error)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("tandem: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

/// `tandem --listen …` means `tandem serve --listen …`.
fn with_default_command(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<_> = args.into_iter().collect();
    let about_itself = ["-h", "--help", "-V", "--version"];
    let bare = args.get(1).is_none_or(|first| {
        first.to_str().is_some_and(|text| text.starts_with('-') && !about_itself.contains(&text))
    });
    if bare {
        args.insert(1.min(args.len()), "serve".into());
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command_of(line: &str) -> Command {
        let args = line.split_whitespace().map(OsString::from);
        Cli::try_parse_from(with_default_command(args)).expect("a valid command line").command
    }

    #[test]
    fn without_a_command_it_serves() {
        assert!(matches!(command_of("tandem"), Command::Serve(_)));
        let Command::Serve(options) = command_of("tandem --listen 127.0.0.1:1") else {
            panic!("it must serve");
        };
        assert_eq!(options.listen.as_deref(), Some("127.0.0.1:1"));
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
