//! Requests that have not begun, served in turns.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use super::prefix::Namespace;
use super::sequence::Request;

/// One queue per tenant and adapter, round robin among them: nobody waits behind somebody else's
/// thousand requests.
#[derive(Debug, Default)]
pub(super) struct FairQueue {
    queues: VecDeque<(Arc<Namespace>, VecDeque<Rc<Request>>)>,
}

impl FairQueue {
    pub fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    pub fn push(&mut self, request: impl Into<Rc<Request>>) {
        let request = request.into();
        match self.queues.iter_mut().find(|(space, _)| *space == request.space) {
            Some((_, queue)) => queue.push_back(request),
            None => {
                let space = Arc::clone(&request.space);
                self.queues.push_back((space, VecDeque::from([request])));
            }
        }
    }

    /// The next request; its queue goes to the end of the round.
    pub fn pop(&mut self) -> Option<Rc<Request>> {
        let (space, mut queue) = self.queues.pop_front()?;
        let request = queue.pop_front();
        if !queue.is_empty() {
            self.queues.push_back((space, queue));
        }
        request
    }

    /// Removes the requests of which `gone` says so.
    pub fn remove(&mut self, mut gone: impl FnMut(&Request) -> bool) {
        for (_, queue) in &mut self.queues {
            queue.retain(|request| !gone(request));
        }
        self.queues.retain(|(_, queue)| !queue.is_empty());
    }
}
