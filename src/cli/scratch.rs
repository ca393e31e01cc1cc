//! `tandem train --from-scratch`: the demo model, from nothing.

use std::path::PathBuf;

use super::Failure;
use crate::demo::{self, Options, Summary};
use crate::telemetry;

/// The seed of the model that is embedded.
const SEED: u64 = 1;

/// Trains the demo model and says what came of it.
///
/// # Errors
/// Exit code 1 with the reason.
pub(super) fn run(
    out: PathBuf,
    seed: Option<u64>,
    steps: Option<usize>,
    threads: Option<usize>,
) -> Result<(), Failure> {
    telemetry::init(false);
    let options = Options {
        seed: seed.unwrap_or(SEED),
        steps: steps.unwrap_or(demo::scratch::STEPS),
        threads: threads.unwrap_or(0),
        ..Options::new(out)
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
