//! Takes leases back when their answers are lost.

use std::fmt;
use std::sync::Arc;

use lease::{BorrowId, Grant, LeaseId};

/// A granted borrow whose answer is not sent yet.
#[derive(Debug)]
pub struct Borrowed {
    /// What was granted.
    pub grant: Grant,
    /// Takes the lease back if the answer is lost.
    pub delivery: Delivery,
}

/// Takes a lease back if its answer is lost, so that it occupies no slot.
///
/// It travels with the answer. When it is dropped before [`Delivery::complete`], it returns the lease
/// at once: the answer was not handed to the transport, so no client knows the key. A lease that was
/// granted to several tries of one borrow is returned when the answers of all of them are lost.
#[must_use = "dropping it takes the lease back"]
pub struct Delivery {
    pending: Option<Pending>,
}

struct Pending {
    store: Arc<dyn TakeBack>,
    id: LeaseId,
    borrow_id: Option<BorrowId>,
}

/// Learns whether the answers of grants were sent; implemented by the store. Neither method waits.
pub(crate) trait TakeBack: Send + Sync {
    /// The answer was handed to the transport.
    fn delivered(&self, id: LeaseId, borrow_id: Option<BorrowId>);

    /// The answer is lost.
    fn take_back(&self, id: LeaseId, borrow_id: Option<BorrowId>);
}

impl Delivery {
    /// Takes the lease `id` of `store` back when it is dropped.
    pub(crate) fn pending(
        store: Arc<dyn TakeBack>,
        id: LeaseId,
        borrow_id: Option<BorrowId>,
    ) -> Self {
        Self { pending: Some(Pending { store, id, borrow_id }) }
    }

    /// Does nothing when it is dropped: an earlier answer with the same lease was sent.
    pub(crate) const fn done() -> Self {
        Self { pending: None }
    }

    /// Says that the answer was handed to the transport: the lease belongs to the caller now.
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
