//! Turns the changes of one batch into the rows that a journal writes.

use std::collections::BTreeMap;

use lease::Change;

use super::encoding::{LeaseRow, RememberedRow, UsedRow};
use crate::records::OperatorRecord;

/// The rows of one batch. A lease that was granted and ended within the batch has no row.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    pub(crate) granted: BTreeMap<u64, LeaseRow>,
    pub(crate) lingering: BTreeMap<u64, u64>,
    pub(crate) ended: Vec<u64>,
    /// `None` removes the row.
    pub(crate) remembered: BTreeMap<Vec<u8>, Option<RememberedRow>>,
    /// `None` removes the row.
    pub(crate) used: BTreeMap<(Box<str>, Box<str>), Option<UsedRow>>,
    pub(crate) operator_records: Vec<OperatorRecord>,
}

impl Rows {
    pub(crate) fn collect(changes: Vec<Change>, operator_records: Vec<OperatorRecord>) -> Self {
        let mut rows = Self { operator_records, ..Self::default() };
        for change in changes {
            rows.add(change);
        }
        // In the order of the tables, so that neighbours are written together.
        rows.ended.sort_unstable();
        rows
    }

    fn add(&mut self, change: Change) {
        match change {
            Change::Granted(lease) => {
                if let Some(until) = lease.lingers_until {
                    self.lingering.insert(lease.id.serial(), until.as_nanos());
                }
                self.granted.insert(lease.id.serial(), LeaseRow::from(*lease));
            }
            Change::Lingers { id, until } => {
                self.lingering.insert(id.serial(), until.as_nanos());
            }
            Change::Ended { id, .. } => {
                self.lingering.remove(&id.serial());
                if self.granted.remove(&id.serial()).is_none() {
                    self.ended.push(id.serial());
                }
            }
            Change::TraceEnded(end) => self.remember(RememberedRow::trace_ended(*end)),
            Change::TraceGone(end) => {
                let (key, _) = RememberedRow::trace_ended(*end);
                self.remembered.insert(key, None);
            }
            Change::Revoked(revocation) => self.remember(RememberedRow::revoked(*revocation)),
            Change::Used { organization, metric, used } => {
                self.used.insert((organization, metric), Some(used.into()));
            }
            Change::Unused { organization, metric } => {
                self.used.insert((organization, metric), None);
            }
            Change::Reported { indexer, key, until, fingerprint, applied } => {
                self.remember(RememberedRow::reported(indexer, key, until, fingerprint, applied));
            }
            Change::BorrowEnded { indexer, id, fingerprint, until } => {
                self.remember(RememberedRow::borrow_ended(indexer, id, fingerprint, until));
            }
        }
    }

    fn remember(&mut self, (key, row): (Vec<u8>, RememberedRow)) {
        self.remembered.insert(key, Some(row));
    }
}
