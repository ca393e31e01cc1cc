//! Whether the server takes requests: ready, draining, or at its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_util::sync::CancellationToken;

/// Shared by the server, the probes and every stream. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    ready: Arc<AtomicBool>,
    draining: CancellationToken,
    ended: CancellationToken,
}

impl Lifecycle {
    /// Models are loaded: requests may come.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::SeqCst);
    }

    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::SeqCst) && !self.is_draining()
    }

    /// From now on new requests are refused; those at work go on.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// The time for draining is over: what still runs ends with an error.
    pub fn end(&self) {
        self.draining.cancel();
        self.ended.cancel();
    }

    /// Waits for [`Lifecycle::drain`].
    pub async fn draining(&self) {
        self.draining.cancelled().await;
    }

    /// Waits for [`Lifecycle::end`].
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }
}
