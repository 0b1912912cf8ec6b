//! The overrides and the audit list, as they are kept in memory.

use std::collections::VecDeque;
use std::sync::Arc;

use policy::overrides::{AuditEntry, MAX_AUDIT, MAX_OVERRIDES, OverrideChange, Overrides};

use crate::journal::Operated;
use crate::listing::RecordError;

/// The overrides, and the audit list with the earliest entry first.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) overrides: Arc<Overrides>,
    pub(crate) audit: VecDeque<AuditEntry>,
}

impl Kept {
    /// Applies what was done, or what the journal says was done.
    pub(crate) fn apply(&mut self, operated: Operated) {
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
    pub(crate) fn place(&self, number: u64) -> Result<usize, usize> {
        self.audit.binary_search_by_key(&number, |entry| entry.number)
    }

    /// What is to be written down when so many more leases have ended by what the entry of that number
    /// tells of; nothing when it is forgotten already.
    pub(crate) fn ended_more(&self, number: u64, ended: usize) -> Option<Operated> {
        let entry = &self.audit[self.place(number).ok()?];
        let ended = entry.ended + ended as u64;
        (ended != entry.ended).then(|| Operated::Audit(AuditEntry { ended, ..entry.clone() }))
    }

    /// The number of the next entry. The latest entry is always kept, so numbers rise for ever.
    pub(crate) fn next_number(&self) -> u64 {
        self.audit.back().map_or(1, |latest| latest.number + 1)
    }

    pub(crate) fn has_room_for(&self, change: &OverrideChange) -> Result<(), RecordError> {
        let adds = change.value.is_some() && !self.overrides.contains_key(&change.key);
        if adds && self.overrides.len() >= MAX_OVERRIDES {
            return Err(RecordError::Full { max: MAX_OVERRIDES });
        }
        Ok(())
    }
}
