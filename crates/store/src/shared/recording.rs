//! What operators set and did, kept beside the ledger.
//!
//! It has a lock of its own, so that no call waits while a hundred thousand overrides are copied.
//! That lock is taken before the ledger's, never after it: what is applied here and what goes into
//! the gathering batch have the same order.

use std::sync::Arc;

use policy::overrides::{AuditEntry, OverrideChange, Overrides};

use super::{Shared, Wait};
use crate::journal::Operated;
use crate::records::Kept;
use crate::{MAX_PAGE, RecordError, Unavailable};

impl Shared {
    pub(crate) fn overrides(&self) -> Arc<Overrides> {
        self.kept.lock().overrides.clone()
    }

    pub(crate) fn audit(&self, before: Option<u64>, limit: usize) -> Vec<AuditEntry> {
        let kept = self.kept.lock();
        let end = before.map_or(kept.audit.len(), |before| match kept.place(before) {
            Ok(at) | Err(at) => at,
        });
        kept.audit.range(..end).rev().take(limit.min(MAX_PAGE)).cloned().collect()
    }

    pub(crate) fn record(
        &self,
        change: Option<OverrideChange>,
        entry: AuditEntry,
    ) -> Result<(u64, Wait), RecordError> {
        let mut kept = self.kept.lock();
        if let Some(change) = &change {
            kept.has_room_for(change)?;
        }
        Ok(self.note(&mut kept, change, entry)?)
    }

    /// Writes down what an operator does that changes no override.
    pub(crate) fn note_alone(&self, entry: AuditEntry) -> Result<(u64, Wait), Unavailable> {
        self.note(&mut self.kept.lock(), None, entry)
    }

    fn note(
        &self,
        kept: &mut Kept,
        change: Option<OverrideChange>,
        mut entry: AuditEntry,
    ) -> Result<(u64, Wait), Unavailable> {
        let number = kept.next_number();
        entry.number = number;
        let operated = change.map(Operated::Override).into_iter().chain([Operated::Audit(entry)]);
        let operated: Vec<Operated> = operated.collect();
        let wait = self.keep(&operated)?;
        operated.into_iter().for_each(|operated| kept.apply(operated));
        Ok((number, wait))
    }
}
