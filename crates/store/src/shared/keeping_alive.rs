//! Keep-alives, and the listeners that they name.

use std::sync::Arc;

use lease::{KeptAlive, LeaseId};

use super::{Shared, Wait};
use crate::answers::{KeptBatch, Unavailable};
use crate::attached::{Attachment, Detach, Listener};

impl Shared {
    /// Keeps a lease alive. An extended TTL is told whatever the disk does.
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
            // What ended may not be known to the disk: the caller had better ask again.
            ended => state.sound().map(|()| ended),
        }
    }

    /// Keeps the leases of a batch alive under one lock; the listener called `number` names those
    /// that it extends.
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
            return (kept.unsure(), None);
        }
        // Taken out of the state while the ledger in it is at work.
        let mut attached = std::mem::take(&mut state.attached);
        let ((), wait) = self.apply(&mut state, |ledger, now| {
            for (place, id) in (0..).zip(ids) {
                let Some(id) = *id else {
                    kept.failed.push(place);
                    continue;
                };
                match ledger.keep_alive(id, caller, now) {
                    KeptAlive::Extended { .. } => attached.name(id, number),
                    KeptAlive::Failed => kept.failed.push(place),
                    KeptAlive::Revoked(why) => kept.revoked.push((place, why)),
                }
            }
        });
        state.attached = attached;
        if kept.listed() == 0 {
            return (kept, None);
        }
        // What ended may not be known to the disk: the caller had better ask again.
        if state.sound().is_ok() { (kept, wait) } else { (kept.unsure(), None) }
    }

    /// Takes a listener in.
    pub(crate) fn attach(self: &Arc<Self>, listener: Arc<dyn Listener>) -> Attachment {
        let number = self.state.lock().attached.attach(listener);
        Attachment::new(self.clone(), number)
    }
}

impl Detach for Shared {
    fn detach(&self, number: u64) {
        self.state.lock().attached.detach(number);
    }
}
