//! Listeners, which learn at once that a lease was revoked.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use lease::{LeaseId, RevokedFor};

/// Receives revocations.
///
/// A listener is called after the revocation is as durable as the store makes it, on the thread that
/// made it so. It must neither block nor call the store.
pub trait Listener: fmt::Debug + Send + Sync + 'static {
    /// The lease was revoked.
    fn revoked(&self, id: LeaseId, why: RevokedFor);
}

/// The listeners, and which of them subscribed last to each lease.
///
/// There is one entry for each slot of the lease table, so entries need no cleaning. When a lease has
/// ended, its entry has another serial number than the next lease of the slot. When a listener was
/// detached, its number leads to no listener, because numbers are never used again.
#[derive(Debug, Default)]
pub(crate) struct Attachments {
    listeners: HashMap<u64, Arc<dyn Listener>>,
    last_number: u64,
    by_slot: Vec<Subscription>,
}

/// The serial number of a lease and the number of its listener; 0 means none.
#[derive(Clone, Copy, Debug, Default)]
struct Subscription {
    serial: u64,
    listener: u64,
}

impl Attachments {
    /// Adds a listener and returns its number.
    pub(crate) fn attach(&mut self, listener: Arc<dyn Listener>) -> u64 {
        self.last_number += 1;
        self.listeners.insert(self.last_number, listener);
        self.last_number
    }

    pub(crate) fn detach(&mut self, number: u64) {
        self.listeners.remove(&number);
    }

    /// Makes the listener of that number the only one that learns of the lease's revocation.
    pub(crate) fn subscribe(&mut self, id: LeaseId, number: u64) {
        let place = id.slot() as usize;
        if self.by_slot.len() <= place {
            self.by_slot.resize(place + 1, Subscription::default());
        }
        self.by_slot[place] = Subscription { serial: id.serial(), listener: number };
    }

    /// The listener that subscribed to the lease last.
    pub(crate) fn listener(&self, id: LeaseId) -> Option<Arc<dyn Listener>> {
        let subscription = self.by_slot.get(id.slot() as usize)?;
        if subscription.serial != id.serial() {
            return None;
        }
        self.listeners.get(&subscription.listener).cloned()
    }
}

/// A revocation to push to the listener of the lease.
#[derive(Debug)]
pub(crate) struct Push {
    pub(crate) listener: Arc<dyn Listener>,
    pub(crate) id: LeaseId,
    pub(crate) why: RevokedFor,
}

impl Push {
    pub(crate) fn deliver(self) {
        self.listener.revoked(self.id, self.why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Nobody;

    impl Listener for Nobody {
        fn revoked(&self, _: LeaseId, _: RevokedFor) {}
    }

    fn lease(slot: u32, serial: u64) -> LeaseId {
        LeaseId::new(slot, serial, [7; 12])
    }

    #[test]
    fn the_listener_that_named_a_lease_last_is_notified() {
        let mut attachments = Attachments::default();
        let listeners: [Arc<dyn Listener>; 2] = [Arc::new(Nobody), Arc::new(Nobody)];
        let [first, second] = listeners.clone().map(|listener| attachments.attach(listener));
        attachments.subscribe(lease(3, 9), first);
        assert!(Arc::ptr_eq(&attachments.listener(lease(3, 9)).unwrap(), &listeners[0]));
        attachments.subscribe(lease(3, 9), second);
        assert!(Arc::ptr_eq(&attachments.listener(lease(3, 9)).unwrap(), &listeners[1]));
        attachments.detach(second);
        assert!(attachments.listener(lease(3, 9)).is_none(), "nobody is told for somebody else");
    }

    #[test]
    fn a_lease_in_the_slot_of_a_named_one_has_no_listener_until_it_is_named() {
        let mut attachments = Attachments::default();
        let number = attachments.attach(Arc::new(Nobody));
        attachments.subscribe(lease(0, 1), number);
        assert!(attachments.listener(lease(0, 2)).is_none());
        attachments.subscribe(lease(0, 2), number);
        assert!(attachments.listener(lease(0, 2)).is_some());
        assert!(attachments.listener(lease(0, 1)).is_none());
        assert_eq!(attachments.by_slot.len(), 1, "one entry for each place, whoever stood there");
    }
}
