//! Keep-alives, and the listeners that subscribe by them.

use std::fmt;
use std::sync::Arc;

use lease::{KeptAlive, LeaseId};

use super::{Shared, Wait};
use crate::answers::{NotExtended, Unavailable};
use crate::attached::Listener;

/// Keeps a [`Listener`] attached to a store. Dropping the attachment detaches the listener.
#[must_use = "dropping it detaches the listener"]
pub struct Attachment {
    number: u64,
    store: Arc<Shared>,
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.store.state.lock().attachments.detach(self.number);
    }
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Attachment").field(&self.number).finish()
    }
}

impl Shared {
    /// Keeps a lease alive. The answer about an extended TTL does not wait for the disk.
    pub(crate) fn keep_alive(
        &self,
        id: LeaseId,
        caller: Option<&str>,
    ) -> Result<(KeptAlive, Wait), Unavailable> {
        let mut state = self.state.lock();
        if state.applying {
            return Err(Unavailable::Failed);
        }
        state.role.check(&*self.clock)?;
        match self.apply(&mut state, |ledger, now| ledger.keep_alive(id, caller, now)) {
            (extended @ KeptAlive::Extended { .. }, _) => Ok((extended, None)),
            // The end of the lease may not be durable: the caller has to try again.
            ended => state.check_writable(&*self.clock).map(|()| ended),
        }
    }

    /// Keeps the leases of a batch alive under one lock. The listener of `attachment` is subscribed
    /// to those that were extended.
    pub(crate) fn keep_alive_batch(
        &self,
        ids: &[Option<LeaseId>],
        caller: Option<&str>,
        attachment: &Attachment,
    ) -> (NotExtended, Wait) {
        let mut kept = NotExtended::default();
        let mut state = self.state.lock();
        if state.applying || state.role.check(&*self.clock).is_err() {
            kept.failed = (0..).take(ids.len()).collect();
            return (kept.into_unavailable(), None);
        }
        // Moved out of the state, because `apply` borrows the state.
        let mut attachments = std::mem::take(&mut state.attachments);
        let ((), wait) = self.apply(&mut state, |ledger, now| {
            for (place, id) in (0..).zip(ids) {
                let Some(id) = *id else {
                    kept.failed.push(place);
                    continue;
                };
                match ledger.keep_alive(id, caller, now) {
                    KeptAlive::Extended { .. } => attachments.subscribe(id, attachment.number),
                    KeptAlive::Failed => kept.failed.push(place),
                    KeptAlive::Revoked(why) => kept.revoked.push((place, why)),
                }
            }
        });
        state.attachments = attachments;
        if kept.listed() == 0 {
            return (kept, None);
        }
        // The ends of the leases may not be durable: the caller has to try again.
        if state.check_writable(&*self.clock).is_ok() {
            (kept, wait)
        } else {
            (kept.into_unavailable(), None)
        }
    }

    /// Attaches a listener.
    pub(crate) fn attach(self: &Arc<Self>, listener: Arc<dyn Listener>) -> Attachment {
        let number = self.state.lock().attachments.attach(listener);
        Attachment { number, store: self.clone() }
    }
}
