//! Adapters in host memory: each generation is loaded once, and the least used go first.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OnceCell;

use super::resolve::LoadedAdapter;
use crate::domain::AdapterId;

/// Keyed by generation, so an entry never becomes wrong.
#[derive(Debug)]
pub(super) struct AdapterCache {
    entries: Mutex<Entries>,
    budget_bytes: usize,
}

#[derive(Debug, Default)]
struct Entries {
    by_id: HashMap<AdapterId, Entry>,
    clock: u64,
}

#[derive(Debug, Default)]
struct Entry {
    adapter: Arc<OnceCell<Arc<LoadedAdapter>>>,
    last_used: u64,
}

impl AdapterCache {
    pub fn new(budget_bytes: usize) -> Self {
        Self { entries: Mutex::default(), budget_bytes }
    }

    /// The adapter of that generation; `load` runs at most once at a time, however many ask.
    pub async fn get<E, F: Future<Output = Result<LoadedAdapter, E>>>(
        &self,
        id: &AdapterId,
        load: impl FnOnce() -> F,
    ) -> Result<Arc<LoadedAdapter>, E> {
        let cell = self.cell(id);
        let adapter = cell.get_or_try_init(|| async { load().await.map(Arc::new) }).await?.clone();
        self.evict(id);
        Ok(adapter)
    }

    /// Forgets a generation; whoever has it keeps it.
    pub fn remove(&self, id: &AdapterId) {
        self.lock().by_id.remove(id);
    }

    fn cell(&self, id: &AdapterId) -> Arc<OnceCell<Arc<LoadedAdapter>>> {
        let mut entries = self.lock();
        entries.clock += 1;
        let now = entries.clock;
        let entry = entries.by_id.entry(id.clone()).or_default();
        entry.last_used = now;
        entry.adapter.clone()
    }

    /// Drops the least recently used until the rest fits, but never the one just asked for.
    fn evict(&self, keep: &AdapterId) {
        let mut entries = self.lock();
        let size =
            |entry: &Entry| entry.adapter.get().map_or(0, |adapter| adapter.weights.size_bytes());
        let mut total: usize = entries.by_id.values().map(size).sum();
        while total > self.budget_bytes {
            let loaded = entries.by_id.iter().filter(|(id, entry)| *id != keep && size(entry) > 0);
            let Some((id, freed)) = loaded
                .min_by_key(|(_, entry)| entry.last_used)
                .map(|(id, entry)| (id.clone(), size(entry)))
            else {
                return;
            };
            entries.by_id.remove(&id);
            total -= freed;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::peft::testing::adapter;

    fn loaded() -> LoadedAdapter {
        let (weights, spec) = adapter(&["q_proj"], 2);
        LoadedAdapter {
            weights: Arc::new(weights),
            r: spec.r,
            alpha: spec.alpha,
            use_rslora: false,
            notes: Vec::new(),
        }
    }

    #[tokio::test]
    async fn many_who_ask_at_once_load_once() {
        let cache = AdapterCache::new(1 << 20);
        let id = AdapterId::generate();
        let loads = AtomicUsize::new(0);
        let load = || async {
            loads.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            Ok::<_, ()>(loaded())
        };
        let asked = futures::future::join_all((0..8).map(|_| cache.get(&id, load))).await;
        assert!(asked.iter().all(Result::is_ok));
        assert_eq!(loads.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_failed_load_is_tried_again() {
        let cache = AdapterCache::new(1 << 20);
        let id = AdapterId::generate();
        assert!(cache.get(&id, || async { Err(()) }).await.is_err());
        assert!(cache.get(&id, || async { Ok::<_, ()>(loaded()) }).await.is_ok());
    }

    #[tokio::test]
    async fn the_least_recently_used_goes_first() {
        let size = loaded().weights.size_bytes();
        let cache = AdapterCache::new(2 * size);
        let ids: Vec<_> = (0..3).map(|_| AdapterId::generate()).collect();
        for id in [&ids[0], &ids[1], &ids[0], &ids[2]] {
            let loaded = cache.get(id, || async { Ok::<_, ()>(loaded()) }).await;
            assert!(loaded.is_ok());
        }
        let kept = cache.lock();
        assert!(kept.by_id.contains_key(&ids[0]) && kept.by_id.contains_key(&ids[2]));
        assert_eq!(kept.by_id.len(), 2);
    }
}
