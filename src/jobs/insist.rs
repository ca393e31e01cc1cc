//! Patience with a database that is away for a moment.

use std::future::Future;
use std::time::Duration;

use crate::store::{StoreError, StoreResult};

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Repeats a fenced write until the database answers. Fencing makes that safe: a write whose answer
/// was lost either finds its lease still there and happens again, or finds it gone.
pub(super) async fn insist<T, F>(mut write: impl FnMut() -> F) -> StoreResult<T>
where
    F: Future<Output = StoreResult<T>>,
{
    let mut pause = FIRST_PAUSE;
    loop {
        match write().await {
            Err(StoreError::Unavailable(error)) => {
                tracing::warn!(%error, "the database does not answer; trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            other => return other,
        }
    }
}
