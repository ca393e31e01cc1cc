//! Adapters on the device, by content, under a budget of bytes.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use super::WorkerError;
use crate::backend::Backend;
use crate::domain::AdapterWeights;
use crate::model::{Adapter, Model};

/// The key of a resident adapter. While a sequence holds a clone the adapter stays.
pub(super) type AdapterPin = Rc<str>;

/// Why a request cannot have its adapter now.
#[derive(Debug)]
pub(super) enum Refusal {
    /// Others hold the room; it will be free when they end.
    NoRoomNow,
    Never(WorkerError),
}

/// The adapters of one base model, the least recently used dropped first.
pub(super) struct Resident<B: Backend> {
    entries: HashMap<AdapterPin, Entry<B>>,
    budget_bytes: usize,
    used_bytes: usize,
    clock: u64,
}

struct Entry<B: Backend> {
    adapter: Adapter<B>,
    last_used: u64,
}

impl<B: Backend> Resident<B> {
    pub fn new(budget_bytes: usize) -> Self {
        Self { entries: HashMap::new(), budget_bytes, used_bytes: 0, clock: 0 }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Adapters that sequences hold.
    #[cfg(test)]
    pub fn pinned(&self) -> usize {
        self.entries.keys().filter(|key| Rc::strong_count(key) > 1).count()
    }

    /// The adapter behind a pin.
    pub fn get(&self, pin: &AdapterPin) -> &Adapter<B> {
        &self.entries.get(pin).expect("a pinned adapter stays").adapter
    }

    /// Brings an adapter to the device, unless it is there, and pins it.
    pub fn pin(
        &mut self,
        b: &mut B,
        model: &Model<B>,
        weights: &Arc<AdapterWeights>,
    ) -> Result<AdapterPin, Refusal> {
        self.clock += 1;
        if let Some(pin) = self.touch(&weights.key) {
            return Ok(pin);
        }
        self.make_room(b, model, weights.size_bytes())?;
        let adapter = model.attach_shared(b, weights).map_err(|error| never(error.to_string()))?;
        self.used_bytes += adapter.size_bytes();
        let key = AdapterPin::from(weights.key.as_str());
        self.entries.insert(Rc::clone(&key), Entry { adapter, last_used: self.clock });
        Ok(key)
    }

    /// Forgets every adapter without touching its memory: after a panic nothing there is trusted.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.used_bytes = 0;
    }

    fn touch(&mut self, key: &str) -> Option<AdapterPin> {
        self.entries.get_mut(key)?.last_used = self.clock;
        self.entries.get_key_value(key).map(|(pin, _)| Rc::clone(pin))
    }

    fn make_room(&mut self, b: &mut B, model: &Model<B>, bytes: usize) -> Result<(), Refusal> {
        if bytes > self.budget_bytes {
            return Err(never(format!(
                "it takes {bytes} bytes and the adapter cache holds {}",
                self.budget_bytes
            )));
        }
        while self.used_bytes + bytes > self.budget_bytes {
            let unused = self.entries.iter().filter(|(key, _)| Rc::strong_count(key) == 1);
            let oldest = unused.min_by_key(|(_, entry)| entry.last_used);
            let key = oldest.map(|(key, _)| Rc::clone(key)).ok_or(Refusal::NoRoomNow)?;
            let entry = self.entries.remove(&key).expect("just found");
            self.used_bytes -= entry.adapter.size_bytes();
            model.detach(b, entry.adapter);
        }
        Ok(())
    }
}

fn never(reason: String) -> Refusal {
    Refusal::Never(WorkerError::Adapter(reason))
}
