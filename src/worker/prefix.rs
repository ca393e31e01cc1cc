//! The prefix cache: full KV blocks found again by the tokens they hold.
//!
//! It is a tree. A node is one full block; its key is its parent and its own tokens, and the root
//! of each tree names tenant and adapter. A lookup compares every token on the way, so no two
//! prompts are ever taken for one another, and no tenant meets another's blocks.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::backend::BLOCK_TOKENS;

/// Whose blocks, computed with which adapter: requests that differ here share nothing. (The base
/// model is named by the cache itself; each has its own.)
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Namespace {
    pub tenant: Arc<str>,
    /// `AdapterWeights::key` and the bits of `adapter_scale`.
    pub adapter: Option<(String, u32)>,
    /// See [`super::border::Border::kind`].
    pub kind: usize,
}

/// A node's place in the tree, never used twice.
pub(super) type NodeId = u64;

/// Where a block hangs: at a root, or below the block with the tokens before its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Parent {
    Root(Arc<Namespace>),
    Node(NodeId),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    parent: Parent,
    tokens: [u32; BLOCK_TOKENS],
}

/// The tree, and the parked blocks in the order they fell out of use.
#[derive(Debug, Default)]
pub(super) struct PrefixCache {
    nodes: HashMap<Key, (NodeId, u32)>,
    /// The key of each registered block.
    keys: HashMap<u32, Key>,
    parked: BTreeMap<u64, u32>,
    parked_at: HashMap<u32, u64>,
    next_node: NodeId,
    clock: u64,
}

impl PrefixCache {
    /// The block below `parent` that holds `tokens`, and its node.
    pub fn find(&self, parent: &Parent, tokens: &[u32]) -> Option<(NodeId, u32)> {
        let tokens = tokens.try_into().ok()?;
        self.nodes.get(&Key { parent: parent.clone(), tokens }).copied()
    }

    /// Registers the full block that holds `tokens` below `parent`, unless another block with the
    /// same content already is; returns the node either way.
    pub fn register(&mut self, parent: Parent, tokens: &[u32], block: u32) -> NodeId {
        let tokens = tokens.try_into().expect("only full blocks are registered");
        let key = Key { parent, tokens };
        if let Some(&(node, _)) = self.nodes.get(&key) {
            return node;
        }
        let node = self.next_node;
        self.next_node += 1;
        self.keys.insert(block, key.clone());
        self.nodes.insert(key, (node, block));
        node
    }

    /// Keeps a block that nobody reads any more, if it is registered.
    pub fn park(&mut self, block: u32) -> bool {
        if !self.keys.contains_key(&block) {
            return false;
        }
        self.clock += 1;
        self.parked.insert(self.clock, block);
        self.parked_at.insert(block, self.clock);
        true
    }

    /// A parked block is read again.
    pub fn unpark(&mut self, block: u32) {
        if let Some(at) = self.parked_at.remove(&block) {
            self.parked.remove(&at);
        }
    }

    /// Forgets the parked block that has been out of use the longest and returns it.
    pub fn evict(&mut self) -> Option<u32> {
        let (_, block) = self.parked.pop_first()?;
        self.parked_at.remove(&block);
        let key = self.keys.remove(&block).expect("a parked block is registered");
        self.nodes.remove(&key);
        Some(block)
    }

    pub fn parked(&self) -> usize {
        self.parked.len()
    }
}
