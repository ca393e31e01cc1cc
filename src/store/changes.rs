//! Waking those who wait for a change: the runner, and the streams of events.

use std::time::Duration;

use sqlx::postgres::PgListener;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::Store;

/// How long a notice from another server may at worst be late.
const POLL: Duration = Duration::from_secs(2);

/// A counter that moves whenever something may have changed.
#[derive(Debug)]
pub(super) struct Changes {
    counter: watch::Sender<u64>,
    /// Postgres: hears of changes that other servers made.
    _listener: Option<AbortOnDropHandle<()>>,
}

impl Changes {
    /// Changes of this process only.
    pub fn local() -> Self {
        Self { counter: watch::Sender::new(0), _listener: None }
    }

    /// Changes of every server on the Postgres at `url`.
    pub fn with_listener(url: String) -> Self {
        let counter = watch::Sender::new(0);
        let listener = tokio::spawn(listen(url, counter.clone()));
        Self { counter, _listener: Some(AbortOnDropHandle::new(listener)) }
    }

    pub fn announce(&self) {
        self.counter.send_modify(|count| *count += 1);
    }
}

impl Store {
    /// Resolves `changed()` after jobs, events or adapters may have changed, here or, with
    /// Postgres, on another server. It says only "look again": it may come for nothing, and
    /// several changes may arrive as one.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.counter.subscribe()
    }
}

/// Notices are a hint and can be lost while reconnecting, so the counter also moves every [`POLL`].
async fn listen(url: String, counter: watch::Sender<u64>) {
    loop {
        if let Err(error) = hear(&url, &counter).await {
            tracing::warn!(%error, "the database's notice channel broke; reconnecting");
        }
        tokio::time::sleep(POLL).await;
        counter.send_modify(|count| *count += 1);
    }
}

/// Passes notices on until the connection breaks.
async fn hear(url: &str, counter: &watch::Sender<u64>) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect(url).await?;
    listener.listen("tandem").await?;
    loop {
        if let Ok(notice) = tokio::time::timeout(POLL, listener.recv()).await {
            notice?;
        }
        counter.send_modify(|count| *count += 1);
    }
}
