//! Memory that one tensor leaves to the next: as much as the largest takes, touched once.

use crate::backend::{HostThreads, HostValues};
use crate::model::gguf;

/// The tensor that was read last.
#[derive(Default)]
pub struct Room {
    bytes: Vec<u8>,
    /// How many of `bytes` are the tensor's.
    len: usize,
    /// Where bytes go that are put in another order.
    ordered: Vec<u8>,
    values: Vec<f32>,
}

impl Room {
    /// The tensor's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Room for the `len` bytes of the next tensor.
    pub fn bytes_mut(&mut self, len: usize) -> &mut [u8] {
        self.len = len;
        at_least(&mut self.bytes, len)
    }

    /// The tensor's bytes, and where values may go.
    pub fn parts(&mut self) -> (&[u8], &mut Vec<f32>) {
        (&self.bytes[..self.len], &mut self.values)
    }

    /// Takes `bytes` in the place of the tensor's.
    pub fn put_bytes(&mut self, bytes: Vec<u8>) {
        self.len = bytes.len();
        self.bytes = bytes;
    }

    /// Takes `values` as those of the tensor.
    pub fn put_values(&mut self, values: Vec<f32>) -> HostValues<'_> {
        self.values = values;
        HostValues::F32(&self.values)
    }

    /// Puts the rows of each head in the order of its halves, where they alternate now.
    pub fn split_halves(&mut self, threads: &HostThreads, rows: usize, heads: usize) {
        let head = self.len / heads;
        let into = at_least(&mut self.ordered, self.len);
        let heads_of = self.bytes[..self.len].chunks_exact(head).zip(into.chunks_exact_mut(head));
        threads.for_each(&mut heads_of.collect::<Vec<_>>(), |(from, into)| {
            gguf::split_halves(from, rows / heads, 1, into);
        });
        std::mem::swap(&mut self.bytes, &mut self.ordered);
    }
}

/// The first `len` of `bytes`, which may hold anything.
fn at_least(bytes: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if bytes.len() < len {
        // Not grown, which would copy what nobody needs: fresh pages are zero without being written.
        *bytes = vec![0; len];
    }
    &mut bytes[..len]
}
