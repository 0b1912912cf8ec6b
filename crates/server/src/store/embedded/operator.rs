//! What operators set and did, kept beside the ledger.
//!
//! It has a lock of its own, so that no call waits while a hundred thousand overrides are copied.
//! That lock is taken before the ledger's, never after it: what is applied here and what goes into
//! the gathering batch have the same order.

use std::collections::VecDeque;
use std::sync::Arc;

use policy::overrides::{AuditEntry, MAX_AUDIT, MAX_OVERRIDES, OverrideChange, Overrides};

use super::shared::{Shared, Wait};
use crate::store::batch::Operated;
use crate::store::{MAX_PAGE, RecordError, Unavailable};

/// The overrides, and the audit list with the earliest entry first.
#[derive(Debug, Default)]
pub(in crate::store) struct Kept {
    overrides: Arc<Overrides>,
    audit: VecDeque<AuditEntry>,
}

impl Kept {
    /// Applies what was done, or what the journal says was done.
    pub(in crate::store) fn apply(&mut self, operated: Operated) {
        match operated {
            Operated::Override(OverrideChange { key, value: Some(value) }) => {
                Arc::make_mut(&mut self.overrides).insert(key, value);
            }
            Operated::Override(OverrideChange { key, value: None }) => {
                Arc::make_mut(&mut self.overrides).remove(&key);
            }
            Operated::Audit(entry) => match self.place(entry.number) {
                Ok(at) => self.audit[at] = entry,
                Err(at) => {
                    self.audit.insert(at, entry);
                    if self.audit.len() > MAX_AUDIT {
                        self.audit.pop_front();
                    }
                }
            },
        }
    }

    /// Where the entry of that number stands, or would.
    fn place(&self, number: u64) -> Result<usize, usize> {
        self.audit.binary_search_by_key(&number, |entry| entry.number)
    }

    /// What is to be written down when so many more leases have ended by what the entry of that number
    /// tells of; nothing when it is forgotten already.
    pub(super) fn ended_more(&self, number: u64, ended: usize) -> Option<Operated> {
        let entry = &self.audit[self.place(number).ok()?];
        let ended = entry.ended + ended as u64;
        (ended != entry.ended).then(|| Operated::Audit(AuditEntry { ended, ..entry.clone() }))
    }

    /// The number of the next entry. The latest entry is always kept, so numbers rise for ever.
    pub(super) fn next_number(&self) -> u64 {
        self.audit.back().map_or(1, |latest| latest.number + 1)
    }

    fn has_room_for(&self, change: &OverrideChange) -> Result<(), RecordError> {
        let adds = change.value.is_some() && !self.overrides.contains_key(&change.key);
        if adds && self.overrides.len() >= MAX_OVERRIDES {
            return Err(RecordError::Full { max: MAX_OVERRIDES });
        }
        Ok(())
    }
}

impl Shared {
    pub(super) fn overrides(&self) -> Arc<Overrides> {
        self.kept.lock().overrides.clone()
    }

    pub(super) fn audit(&self, before: Option<u64>, limit: usize) -> Vec<AuditEntry> {
        let kept = self.kept.lock();
        let end = before.map_or(kept.audit.len(), |before| match kept.place(before) {
            Ok(at) | Err(at) => at,
        });
        kept.audit.range(..end).rev().take(limit.min(MAX_PAGE)).cloned().collect()
    }

    pub(super) fn record(
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
    pub(super) fn note_alone(&self, entry: AuditEntry) -> Result<(u64, Wait), Unavailable> {
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
