//! SIGINT and SIGTERM.

use tokio::signal::unix::{SignalKind, signal};

/// Ends when the process is asked to stop. Signals count from this call on, not from the first poll.
pub fn stop_requested() -> impl Future<Output = ()> {
    let handlers = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    async {
        let (Ok(mut interrupt), Ok(mut terminate)) = handlers else {
            // Without handlers the signals keep their default, which ends the process.
            return std::future::pending().await;
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
}

/// From now on a signal ends the process without waiting for anything.
pub fn end_at_once_on_the_next() {
    tokio::spawn(async {
        stop_requested().await;
        std::process::exit(1);
    });
}
