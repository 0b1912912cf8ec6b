//! Granting leases, and taking those back whose answers are lost.

use std::sync::Arc;

use lease::{BorrowId, Grant, LeaseId, Refusal, Request, Terms};

use super::{Shared, Wait};
use crate::Unavailable;
use crate::delivery::{Delivery, TakeBack};

impl Shared {
    /// Grants a lease. The delivery takes it back if its answer is lost.
    #[expect(clippy::type_complexity, reason = "an answer, and what it waits for")]
    pub(crate) fn grant(
        self: &Arc<Self>,
        request: &Request<'_>,
        terms: &Terms<'_>,
    ) -> Result<(Result<(Grant, Delivery), Refusal>, Wait), Unavailable> {
        let mut state = self.state.lock();
        state.has_room(request.indexer)?;
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
                (Some(_), true) => match state.undelivered.get_mut(&grant.id.serial()) {
                    Some(answers) => {
                        *answers += 1;
                        true
                    }
                    None => false,
                },
            };
            let delivery = if takes_back {
                Delivery::pending(self.clone(), grant.id, request.borrow_id)
            } else {
                Delivery::done()
            };
            (grant, delivery)
        });
        Ok((outcome, wait))
    }
}

impl TakeBack for Shared {
    fn delivered(&self, id: LeaseId, borrow_id: Option<BorrowId>) {
        if borrow_id.is_some() {
            self.state.lock().undelivered.remove(&id.serial());
        }
    }

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
        if state.check_writable().is_ok() {
            self.apply(&mut state, |ledger, now| ledger.undo(id, borrow_id, now));
        }
    }
}
