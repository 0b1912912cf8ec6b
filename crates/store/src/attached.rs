//! Who is told at once when a lease is revoked.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use lease::{LeaseId, RevokedFor};

/// Hears of revocations.
///
/// It is told after the revocation is as durable as the store makes it, from whatever thread made
/// it so, and must neither block nor call the store.
pub trait Listener: fmt::Debug + Send + Sync + 'static {
    /// The lease was revoked.
    fn revoked(&self, id: LeaseId, why: RevokedFor);
}

/// The promise that a [`Listener`] hears of the leases it named; dropped, it hears nothing more.
#[must_use = "dropping it detaches the listener"]
pub struct Attachment {
    number: u64,
    store: Arc<dyn Detach>,
}

/// What a store does about a listener that is gone.
pub(crate) trait Detach: Send + Sync {
    /// Forgets the listener.
    fn detach(&self, number: u64);
}

impl Attachment {
    /// The attachment that `store` knows by `number`.
    pub(crate) fn new(store: Arc<dyn Detach>, number: u64) -> Self {
        Self { number, store }
    }

    /// Its number.
    pub(crate) const fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.store.detach(self.number);
    }
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Attachment").field(&self.number).finish()
    }
}

/// Which listener named which lease last.
///
/// There is one entry for each place of the table, so entries need no cleaning: one whose lease has
/// ended is overwritten with the place, or found to be about another serial number, and one whose
/// listener is gone finds nobody under its number. Numbers are never used again.
#[derive(Debug, Default)]
pub(crate) struct Attached {
    listeners: HashMap<u64, Arc<dyn Listener>>,
    attached: u64,
    places: Vec<Named>,
}

/// A lease by its serial number, and the listener that named it; 0 for either is none.
#[derive(Clone, Copy, Debug, Default)]
struct Named {
    serial: u64,
    listener: u64,
}

impl Attached {
    /// Takes a listener in and answers its number.
    pub(crate) fn attach(&mut self, listener: Arc<dyn Listener>) -> u64 {
        self.attached += 1;
        self.listeners.insert(self.attached, listener);
        self.attached
    }

    pub(crate) fn detach(&mut self, number: u64) {
        self.listeners.remove(&number);
    }

    /// The listener called `number` is told about the lease from now on, and nobody else.
    pub(crate) fn name(&mut self, id: LeaseId, number: u64) {
        let place = id.slot() as usize;
        if self.places.len() <= place {
            self.places.resize(place + 1, Named::default());
        }
        self.places[place] = Named { serial: id.serial(), listener: number };
    }

    /// Who is to be told about the lease.
    pub(crate) fn listener(&self, id: LeaseId) -> Option<Arc<dyn Listener>> {
        let named = self.places.get(id.slot() as usize)?;
        if named.serial != id.serial() {
            return None;
        }
        self.listeners.get(&named.listener).cloned()
    }
}

/// A revocation on its way to the listener of the lease.
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
    fn the_listener_that_named_a_lease_last_is_told() {
        let mut attached = Attached::default();
        let listeners: [Arc<dyn Listener>; 2] = [Arc::new(Nobody), Arc::new(Nobody)];
        let [first, second] = listeners.clone().map(|listener| attached.attach(listener));
        attached.name(lease(3, 9), first);
        assert!(Arc::ptr_eq(&attached.listener(lease(3, 9)).unwrap(), &listeners[0]));
        attached.name(lease(3, 9), second);
        assert!(Arc::ptr_eq(&attached.listener(lease(3, 9)).unwrap(), &listeners[1]));
        attached.detach(second);
        assert!(attached.listener(lease(3, 9)).is_none(), "nobody is told for somebody else");
    }

    #[test]
    fn a_lease_that_took_the_place_of_a_named_one_is_nobodys_until_it_is_named() {
        let mut attached = Attached::default();
        let number = attached.attach(Arc::new(Nobody));
        attached.name(lease(0, 1), number);
        assert!(attached.listener(lease(0, 2)).is_none());
        attached.name(lease(0, 2), number);
        assert!(attached.listener(lease(0, 2)).is_some());
        assert!(attached.listener(lease(0, 1)).is_none());
        assert_eq!(attached.places.len(), 1, "one entry for each place, whoever stood there");
    }
}
