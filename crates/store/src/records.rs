//! The overrides and the audit list in memory.

use std::collections::VecDeque;
use std::sync::Arc;

use policy::overrides::{AuditEntry, MAX_AUDIT, MAX_OVERRIDES, OverrideChange, Overrides};

use crate::listing::RecordError;

/// A record of an operator in a batch.
#[derive(Clone, Debug)]
pub(crate) enum OperatorRecord {
    /// The change of an override.
    Override(OverrideChange),
    /// An entry of the audit list, new or with another count.
    Audit(AuditEntry),
    /// The entry of that number makes room for a new one.
    AuditRemoved(u64),
}

/// The overrides, and the audit list with the earliest entry first.
#[derive(Debug, Default)]
pub(crate) struct OperatorRecords {
    pub(crate) overrides: Arc<Overrides>,
    pub(crate) audit: VecDeque<AuditEntry>,
    /// No new entry has a lower number.
    least_number: u64,
}

impl OperatorRecords {
    /// Applies a new record, or one that was read from the journal.
    pub(crate) fn apply(&mut self, record: OperatorRecord) {
        match record {
            OperatorRecord::Override(OverrideChange { key, value: Some(value) }) => {
                Arc::make_mut(&mut self.overrides).insert(key, value);
            }
            OperatorRecord::Override(OverrideChange { key, value: None }) => {
                Arc::make_mut(&mut self.overrides).remove(&key);
            }
            OperatorRecord::Audit(entry) => match self.position(entry.number) {
                Ok(at) => self.audit[at] = entry,
                Err(at) => {
                    self.audit.insert(at, entry);
                    if self.audit.len() > MAX_AUDIT {
                        self.audit.pop_front();
                    }
                }
            },
            // The new entry has removed it already.
            OperatorRecord::AuditRemoved(_) => {}
        }
    }

    /// The position of the entry of that number in the list, or where it would be inserted.
    pub(crate) fn position(&self, number: u64) -> Result<usize, usize> {
        self.audit.binary_search_by_key(&number, |entry| entry.number)
    }

    /// Returns the entry of that number with `ended` more leases counted, to be recorded. `None` when
    /// nothing changes, or the list no longer has the entry.
    pub(crate) fn count_ended(&self, number: u64, ended: usize) -> Option<OperatorRecord> {
        let entry = &self.audit[self.position(number).ok()?];
        let ended = entry.ended + ended as u64;
        (ended != entry.ended).then(|| OperatorRecord::Audit(AuditEntry { ended, ..entry.clone() }))
    }

    /// Returns the records of a new entry. If the list is full, its earliest entry is removed.
    pub(crate) fn new_entry(&self, entry: AuditEntry) -> impl Iterator<Item = OperatorRecord> {
        let is_full = self.audit.len() >= MAX_AUDIT;
        let earliest = self.audit.front().filter(|_| is_full).map(|earliest| earliest.number);
        let removed = earliest.map(OperatorRecord::AuditRemoved);
        [OperatorRecord::Audit(entry)].into_iter().chain(removed)
    }

    /// The number of the next entry. The latest entry is never removed, so numbers always rise.
    pub(crate) fn next_number(&self) -> u64 {
        self.audit.back().map_or(1, |latest| latest.number + 1).max(self.least_number)
    }

    /// Leaves out the next `numbers` of the audit list.
    pub(crate) fn leave_out(&mut self, numbers: u64) {
        self.least_number = self.next_number() + numbers;
    }

    pub(crate) fn has_room_for(&self, change: &OverrideChange) -> Result<(), RecordError> {
        let adds = change.value.is_some() && !self.overrides.contains_key(&change.key);
        if adds && self.overrides.len() >= MAX_OVERRIDES {
            return Err(RecordError::Full { max: MAX_OVERRIDES });
        }
        Ok(())
    }
}
