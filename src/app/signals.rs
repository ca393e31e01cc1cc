//! SIGINT and SIGTERM.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Requests to stop the process, counted from [`StopSignals::listen`] on.
#[derive(Debug)]
pub struct StopSignals {
    /// `None` without handlers: the signals keep their default, which ends the process.
    handlers: Option<(Signal, Signal)>,
}

impl StopSignals {
    pub fn listen() -> Self {
        let handlers = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
        Self { handlers: if let (Ok(a), Ok(b)) = handlers { Some((a, b)) } else { None } }
    }

    /// Ends when the process is asked to stop. May be dropped and called again: no request is lost.
    pub async fn requested(&mut self) {
        let Some((interrupt, terminate)) = &mut self.handlers else {
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
    let mut signals = StopSignals::listen();
    tokio::spawn(async move {
        signals.requested().await;
        std::process::exit(1);
    });
}
