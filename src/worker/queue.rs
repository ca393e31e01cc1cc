//! Requests that have not begun, served in turns.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use super::prefix::Namespace;
use super::sequence::Request;

/// Tenants take turns, and so do the adapters of each: nobody waits behind somebody else's thousand
/// requests, and nobody gets ahead by spreading them over many adapters.
#[derive(Debug, Default)]
pub(super) struct FairQueue {
    tenants: VecDeque<(Arc<str>, Turns)>,
}

/// One tenant's requests, a queue per adapter.
#[derive(Debug, Default)]
struct Turns(VecDeque<(Arc<Namespace>, VecDeque<Rc<Request>>)>);

impl FairQueue {
    pub fn is_empty(&self) -> bool {
        self.tenants.is_empty()
    }

    pub fn push(&mut self, request: impl Into<Rc<Request>>) {
        let request = request.into();
        let tenant = &request.space.tenant;
        let at = self.tenants.iter().position(|(other, _)| other == tenant).unwrap_or_else(|| {
            self.tenants.push_back((Arc::clone(tenant), Turns::default()));
            self.tenants.len() - 1
        });
        self.tenants[at].1.push(request);
    }

    /// The next request; its tenant goes to the end of the round.
    pub fn pop(&mut self) -> Option<Rc<Request>> {
        let (tenant, mut turns) = self.tenants.pop_front()?;
        let request = turns.pop();
        if !turns.0.is_empty() {
            self.tenants.push_back((tenant, turns));
        }
        request
    }

    /// Removes the requests of which `gone` says so.
    pub fn remove(&mut self, mut gone: impl FnMut(&Request) -> bool) {
        for (_, queue) in self.tenants.iter_mut().flat_map(|(_, turns)| &mut turns.0) {
            queue.retain(|request| !gone(request));
        }
        for (_, turns) in &mut self.tenants {
            turns.0.retain(|(_, queue)| !queue.is_empty());
        }
        self.tenants.retain(|(_, turns)| !turns.0.is_empty());
    }
}

impl Turns {
    fn push(&mut self, request: Rc<Request>) {
        match self.0.iter_mut().find(|(space, _)| *space == request.space) {
            Some((_, queue)) => queue.push_back(request),
            None => {
                let space = Arc::clone(&request.space);
                self.0.push_back((space, VecDeque::from([request])));
            }
        }
    }

    fn pop(&mut self) -> Option<Rc<Request>> {
        let (space, mut queue) = self.0.pop_front()?;
        let request = queue.pop_front();
        if !queue.is_empty() {
            self.0.push_back((space, queue));
        }
        request
    }
}
