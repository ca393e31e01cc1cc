//! SIGINT and SIGTERM.

use tokio::signal::unix::{SignalKind, signal};

/// Returns when the process is asked to stop.
pub async fn stop_requested() {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        // Without handlers the signals keep their default, which ends the process.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// From now on a signal ends the process without waiting for anything.
pub fn end_at_once_on_the_next() {
    tokio::spawn(async {
        stop_requested().await;
        std::process::exit(1);
    });
}
