//! Keep-alives, and the listeners that subscribe by them.

use std::sync::Arc;

use lease::{KeptAlive, LeaseId};

use super::{Shared, Wait};
use crate::answers::{KeptBatch, Unavailable};
use crate::attached::{Attachment, Detach, Listener};

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
        match self.apply(&mut state, |ledger, now| ledger.keep_alive(id, caller, now)) {
            (extended @ KeptAlive::Extended { .. }, _) => Ok((extended, None)),
            // The end of the lease may not be durable: the caller has to try again.
            ended => state.check_writable().map(|()| ended),
        }
    }

    /// Keeps the leases of a batch alive under one lock. The listener of that number is subscribed to
    /// those that were extended.
    pub(crate) fn keep_alive_batch(
        &self,
        ids: &[Option<LeaseId>],
        caller: Option<&str>,
        number: u64,
    ) -> (KeptBatch, Wait) {
        let mut kept = KeptBatch::default();
        let mut state = self.state.lock();
        if state.applying {
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
                    KeptAlive::Extended { .. } => attachments.subscribe(id, number),
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
        if state.check_writable().is_ok() { (kept, wait) } else { (kept.into_unavailable(), None) }
    }

    /// Attaches a listener.
    pub(crate) fn attach(self: &Arc<Self>, listener: Arc<dyn Listener>) -> Attachment {
        let number = self.state.lock().attachments.attach(listener);
        Attachment::new(self.clone(), number)
    }
}

impl Detach for Shared {
    fn detach(&self, number: u64) {
        self.state.lock().attachments.detach(number);
    }
}
