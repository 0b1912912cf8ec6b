//! The promise that a borrow nobody hears of takes no slot.

use std::fmt;
use std::sync::Arc;

use lease::{BorrowId, Grant, LeaseId};

/// A granted borrow on its way to the caller.
#[derive(Debug)]
pub struct Borrowed {
    /// What was granted.
    pub grant: Grant,
    /// Takes the lease back unless the answer gets away.
    pub delivery: Delivery,
}

/// The promise that a borrow nobody hears of takes no slot.
///
/// It travels with the answer. Dropped before [`Delivery::complete`], it returns the lease at
/// once: the caller was gone before the answer was handed to the transport, so nobody knows the
/// key. A lease that several tries of one borrow were granted is returned when the last of their
/// answers is lost, and never once one of them got away.
#[must_use = "dropping it takes the lease back"]
pub struct Delivery {
    pending: Option<Pending>,
}

struct Pending {
    store: Arc<dyn TakeBack>,
    id: LeaseId,
    borrow_id: Option<BorrowId>,
}

/// What a store does about the answers of its grants. Neither method waits.
pub(crate) trait TakeBack: Send + Sync {
    /// The answer was handed to the transport.
    fn delivered(&self, id: LeaseId, borrow_id: Option<BorrowId>);

    /// The answer is lost.
    fn take_back(&self, id: LeaseId, borrow_id: Option<BorrowId>);
}

impl Delivery {
    /// The promise for the lease `id` of `store`.
    pub(crate) fn pending(
        store: Arc<dyn TakeBack>,
        id: LeaseId,
        borrow_id: Option<BorrowId>,
    ) -> Self {
        Self { pending: Some(Pending { store, id, borrow_id }) }
    }

    /// A promise that is kept already: an earlier answer with the same lease got away.
    pub(crate) const fn done() -> Self {
        Self { pending: None }
    }

    /// Says that the answer was handed to the transport: the lease is the caller's now.
    pub fn complete(mut self) {
        if let Some(Pending { store, id, borrow_id }) = self.pending.take() {
            store.delivered(id, borrow_id);
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Some(Pending { store, id, borrow_id }) = self.pending.take() {
            store.take_back(id, borrow_id);
        }
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lease = self.pending.as_ref().map(|pending| pending.id);
        f.debug_struct("Delivery").field("pending", &lease).finish()
    }
}
