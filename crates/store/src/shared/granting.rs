//! Granting leases, and taking those back whose answers are lost.

use std::fmt;
use std::sync::Arc;

use lease::{BorrowId, Grant, LeaseId, Refusal, Request, Terms};

use super::{Shared, Wait};
use crate::Unavailable;

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
    /// `None` once it is done, or when an earlier answer with the same lease was sent.
    pending: Option<Pending>,
}

struct Pending {
    store: Arc<Shared>,
    id: LeaseId,
    borrow_id: Option<BorrowId>,
}

impl Delivery {
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

impl Shared {
    /// Grants a lease. The delivery takes it back if its answer is lost.
    pub(crate) fn grant(
        self: &Arc<Self>,
        request: &Request<'_>,
        terms: &Terms<'_>,
    ) -> Result<(Result<Borrowed, Refusal>, Wait), Unavailable> {
        let mut state = self.state.lock();
        state.has_room(request.indexer, &*self.clock)?;
        let (outcome, mut wait) =
            self.apply(&mut state, |ledger, now| ledger.borrow(request, terms, now));
        if outcome == Err(Refusal::OldTerms) {
            // The borrow is decided again at once, and this outcome reveals no change.
            wait = None;
        }
        if outcome.is_ok() {
            state.charge(request.indexer, 1);
        }
        let outcome = outcome.map(|grant| {
            let takes_back = match (request.borrow_id, grant.replayed) {
                (None, _) => true,
                (Some(_), false) => state.undelivered.insert(grant.id.serial(), 1).is_none(),
                (Some(_), true) => {
                    let answers = state.undelivered.get_mut(&grant.id.serial());
                    answers.map(|answers| *answers += 1).is_some()
                }
            };
            let (store, id, borrow_id) = (self.clone(), grant.id, request.borrow_id);
            let pending = takes_back.then_some(Pending { store, id, borrow_id });
            Borrowed { grant, delivery: Delivery { pending } }
        });
        Ok((outcome, wait))
    }

    /// The answer was handed to the transport.
    fn delivered(&self, id: LeaseId, borrow_id: Option<BorrowId>) {
        if borrow_id.is_some() {
            self.state.lock().undelivered.remove(&id.serial());
        }
    }

    /// The answer is lost.
    fn take_back(&self, id: LeaseId, borrow_id: Option<BorrowId>) {
        let mut state = self.state.lock();
        if borrow_id.is_some() {
            match state.undelivered.get_mut(&id.serial()) {
                None => return, // an answer to another try was sent
                Some(1) => {
                    state.undelivered.remove(&id.serial());
                }
                Some(answers) => {
                    *answers -= 1;
                    return;
                }
            }
        }
        if state.check_writable(&*self.clock).is_ok() {
            self.apply(&mut state, |ledger, now| ledger.undo(id, borrow_id, now));
        }
    }
}
