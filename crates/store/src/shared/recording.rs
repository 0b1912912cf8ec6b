//! Recording overrides and audit entries.
//!
//! They have a lock of their own, so that no call waits while a hundred thousand overrides are
//! copied. This lock is always taken before that of the ledger. So records are applied and added to
//! the gathering batch in the same order.

use std::sync::Arc;

use policy::overrides::{AuditEntry, OverrideChange, Overrides};

use super::{Shared, Wait};
use crate::records::{OperatorRecord, OperatorRecords};
use crate::{MAX_PAGE, RecordError, Unavailable};

impl Shared {
    pub(crate) fn overrides(&self) -> Arc<Overrides> {
        self.records.lock().overrides.clone()
    }

    pub(crate) fn audit(&self, before: Option<u64>, limit: usize) -> Vec<AuditEntry> {
        let records = self.records.lock();
        let end = before.map_or(records.audit.len(), |before| match records.position(before) {
            Ok(at) | Err(at) => at,
        });
        records.audit.range(..end).rev().take(limit.min(MAX_PAGE)).cloned().collect()
    }

    pub(crate) fn record(
        &self,
        change: Option<OverrideChange>,
        entry: AuditEntry,
    ) -> Result<(u64, Wait), RecordError> {
        let mut records = self.records.lock();
        if let Some(change) = &change {
            records.has_room_for(change)?;
        }
        Ok(self.append(&mut records, change, entry)?)
    }

    /// Records an audit entry without a change of an override.
    pub(crate) fn record_entry(&self, entry: AuditEntry) -> Result<(u64, Wait), Unavailable> {
        self.append(&mut self.records.lock(), None, entry)
    }

    fn append(
        &self,
        records: &mut OperatorRecords,
        change: Option<OverrideChange>,
        mut entry: AuditEntry,
    ) -> Result<(u64, Wait), Unavailable> {
        let number = records.next_number();
        entry.number = number;
        let changed = change.map(OperatorRecord::Override).into_iter();
        let new_records: Vec<_> = changed.chain(records.new_entry(entry)).collect();
        let mut state = self.state.lock();
        state.check_writable(&*self.clock)?;
        let wait = self.gather_records(&mut state, &new_records);
        drop(state);
        new_records.into_iter().for_each(|record| records.apply(record));
        Ok((number, wait))
    }
}
