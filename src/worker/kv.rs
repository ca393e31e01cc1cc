//! The KV room of one base model: blocks, and the prefixes they are remembered by.

use std::sync::Arc;

use super::blocks::Blocks;
use super::prefix::{Namespace, NodeId, Parent, PrefixCache};
use crate::backend::BLOCK_TOKENS;

/// Hands out KV blocks; parked ones are given away, the longest unused first, when no other is free.
#[derive(Debug)]
pub(super) struct KvRoom {
    blocks: Blocks,
    prefixes: PrefixCache,
}

/// How far a sequence's blocks are registered in the prefix cache.
#[derive(Clone, Debug, Default)]
pub(super) struct Registered {
    blocks: usize,
    last: Option<NodeId>,
}

/// Blocks that `tokens` tokens take.
pub(super) fn blocks_for(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK_TOKENS)
}

impl KvRoom {
    pub fn new(total: usize) -> Self {
        Self { blocks: Blocks::new(total), prefixes: PrefixCache::default() }
    }

    pub fn total(&self) -> usize {
        self.blocks.total()
    }

    /// Blocks that can be had.
    pub fn available(&self) -> usize {
        self.blocks.free() + self.prefixes.parked()
    }

    /// Blocks that sequences hold.
    pub fn used(&self) -> usize {
        self.total() - self.available()
    }

    /// Adds blocks until `held` has room for `tokens` tokens; on `false` nothing was added.
    pub fn grow(&mut self, held: &mut Vec<u32>, tokens: usize) -> bool {
        let missing = blocks_for(tokens).saturating_sub(held.len());
        if missing > self.available() {
            return false;
        }
        held.extend((0..missing).map(|_| self.take().expect("as many are available")));
        true
    }

    /// A block of one's own.
    pub fn take(&mut self) -> Option<u32> {
        if self.blocks.free() == 0 {
            self.blocks.put_back(self.prefixes.evict()?);
        }
        self.blocks.take()
    }

    /// One more sequence reads these blocks.
    pub fn share(&mut self, blocks: &[u32]) {
        for &block in blocks {
            if self.blocks.share(block) {
                self.prefixes.unpark(block);
            }
        }
    }

    /// Whether another sequence reads `block` too.
    pub fn is_shared(&self, block: u32) -> bool {
        self.blocks.is_shared(block)
    }

    /// Gives blocks back, the last first: the end of a prefix is forgotten before its beginning.
    pub fn release(&mut self, blocks: &mut Vec<u32>) {
        while let Some(block) = blocks.pop() {
            if self.blocks.release(block) && !self.prefixes.park(block) {
                self.blocks.put_back(block);
            }
        }
    }

    /// Takes the longest known prefix of `tokens`, in full blocks, leaving at least one token to
    /// compute: blocks to read, and how far they are registered.
    pub fn reuse(&mut self, space: &Arc<Namespace>, tokens: &[u32]) -> (Vec<u32>, Registered) {
        let (mut blocks, mut registered) = (Vec::new(), Registered::default());
        let reusable = &tokens[..tokens.len().saturating_sub(1)];
        for chunk in reusable.chunks_exact(BLOCK_TOKENS) {
            let Some((node, block)) = self.prefixes.find(&registered.parent(space), chunk) else {
                break;
            };
            blocks.push(block);
            registered = Registered { blocks: blocks.len(), last: Some(node) };
        }
        self.share(&blocks);
        (blocks, registered)
    }

    /// Registers the blocks of `tokens` that are full and computed.
    pub fn register(
        &mut self,
        registered: &mut Registered,
        space: &Arc<Namespace>,
        computed: &[u32],
        blocks: &[u32],
    ) {
        for chunk in computed.chunks_exact(BLOCK_TOKENS).skip(registered.blocks) {
            let block = blocks[registered.blocks];
            let node = self.prefixes.register(registered.parent(space), chunk, block);
            *registered = Registered { blocks: registered.blocks + 1, last: Some(node) };
        }
    }
}

impl Registered {
    fn parent(&self, space: &Arc<Namespace>) -> Parent {
        self.last.map_or_else(|| Parent::Root(Arc::clone(space)), Parent::Node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(tenant: &str, adapter: Option<(&str, f32)>) -> Arc<Namespace> {
        let adapter = adapter.map(|(key, scale)| (key.to_owned(), scale.to_bits()));
        Arc::new(Namespace { tenant: tenant.into(), adapter, kind: 0 })
    }

    /// Computes `tokens` as a sequence would and gives the blocks back.
    fn compute(room: &mut KvRoom, space: &Arc<Namespace>, tokens: &[u32]) -> usize {
        let (mut blocks, mut registered) = room.reuse(space, tokens);
        let cached = blocks.len() * BLOCK_TOKENS;
        assert!(room.grow(&mut blocks, tokens.len()));
        room.register(&mut registered, space, tokens, &blocks);
        room.release(&mut blocks);
        cached
    }

    #[test]
    fn a_prefix_is_found_again_and_one_token_is_left_to_compute() {
        let mut room = KvRoom::new(8);
        let mine = space("a", None);
        let tokens: Vec<u32> = (0..48).collect();
        assert_eq!(compute(&mut room, &mine, &tokens), 0);
        assert_eq!(compute(&mut room, &mine, &tokens), 32);
        assert_eq!(compute(&mut room, &mine, &tokens[..33]), 32);
        assert_eq!(compute(&mut room, &mine, &tokens[1..]), 0);
        assert_eq!((room.used(), room.available()), (0, 8));
    }

    #[test]
    fn tenants_adapters_and_scales_share_nothing() {
        let mut room = KvRoom::new(32);
        let tokens: Vec<u32> = (0..20).collect();
        let spaces = [
            space("a", None),
            space("b", None),
            space("a", Some(("k", 1.0))),
            space("a", Some(("k", 0.5))),
            space("a", Some(("l", 1.0))),
        ];
        for space in &spaces {
            assert_eq!(compute(&mut room, space, &tokens), 0);
        }
        for space in &spaces {
            assert_eq!(compute(&mut room, space, &tokens), 16);
        }
    }

    #[test]
    fn the_longest_unused_is_forgotten_first_and_from_its_end() {
        let mut room = KvRoom::new(4);
        let mine = space("a", None);
        let old: Vec<u32> = (0..33).collect();
        let new: Vec<u32> = (100..117).collect();
        compute(&mut room, &mine, &old); // two full blocks stay
        compute(&mut room, &mine, &new); // one full block stays, one is free
        let mut held = Vec::new();
        assert!(room.grow(&mut held, 2 * BLOCK_TOKENS)); // the free one, and the end of `old`
        let (mut blocks, _) = room.reuse(&mine, &old);
        assert_eq!(blocks.len(), 1);
        room.release(&mut blocks);
        let (mut blocks, _) = room.reuse(&mine, &new);
        assert_eq!(blocks.len(), 1);
        room.release(&mut blocks);
        room.release(&mut held);
        assert_eq!(room.used(), 0);
    }

    #[test]
    fn a_block_in_use_is_never_given_away() {
        let mut room = KvRoom::new(3);
        let mine = space("a", None);
        let tokens: Vec<u32> = (0..33).collect();
        compute(&mut room, &mine, &tokens);
        let (mut blocks, _) = room.reuse(&mine, &tokens);
        let mut other = Vec::new();
        assert!(!room.grow(&mut other, 2 * BLOCK_TOKENS));
        assert!(other.is_empty() && room.grow(&mut other, BLOCK_TOKENS));
        assert!(!blocks.contains(&other[0]));
        room.share(&blocks);
        assert!(room.is_shared(blocks[0]));
        let mut twin = blocks.clone();
        room.release(&mut blocks);
        assert_eq!(room.used(), 3);
        room.release(&mut twin);
        room.release(&mut other);
        assert_eq!(room.used(), 0);
    }
}
