//! `tandem train`: training without a server. Today that is the demo model, from nothing.

use std::path::PathBuf;

use clap::Args;

use super::Failure;
use crate::demo::{self, Options, Summary};
use crate::telemetry;

/// What `tandem train` takes.
#[derive(Args, Clone, Debug)]
pub struct TrainOptions {
    /// Train the embedded demo model anew: corpus, tokenizer and weights follow from the seed.
    #[arg(long, required = true)]
    from_scratch: bool,
    /// Folder to write the model to.
    #[arg(long, value_name = "DIR", default_value = "demo-model")]
    out: PathBuf,
    /// Seed of the corpus, the tokenizer and the first weights.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Optimiser steps of about 2,048 tokens.
    #[arg(long, default_value_t = demo::scratch::STEPS)]
    steps: usize,
    /// Compute threads; 0: one per core.
    #[arg(long, env = "TANDEM_THREADS", default_value_t = 0)]
    threads: usize,
}

/// Trains the demo model and says what came of it.
///
/// # Errors
/// Exit code 1 with the reason.
pub(super) fn run(options: TrainOptions) -> Result<(), Failure> {
    telemetry::init(false);
    let options = Options {
        seed: options.seed,
        steps: options.steps,
        threads: options.threads,
        ..Options::new(options.out)
    };
    let mut bar = demo::bar::bar(options.steps);
    let summary =
        demo::train_from_scratch(&options, &mut bar).map_err(|error| Failure::new(1, error))?;
    report(&options, &summary);
    Ok(())
}

fn report(options: &Options, summary: &Summary) {
    let (right, questions) = summary.answered;
    println!(
        "trained {} parameters on {} tokens in {:.0} s: {right} of {questions} questions right\n\
         serve it with: tandem serve --model mine={}",
        summary.parameters,
        summary.tokens,
        summary.elapsed.as_secs_f64(),
        options.out.display()
    );
}
