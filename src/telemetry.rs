//! Log lines on standard error; counters live in `api::metrics`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging. `TANDEM_LOG` filters (default `info`), in the syntax of `tracing_subscriber`.
pub fn init(json: bool) {
    let filter = EnvFilter::try_from_env("TANDEM_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn,hyper=warn"));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    // A second start in one process (tests) keeps the first subscriber.
    let _ = if json { lines.json().try_init() } else { lines.compact().try_init() };
}
