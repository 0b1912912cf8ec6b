//! What is in a store, in numbers.

use lease::Change;

use crate::fleet;
use crate::journal::Restored;

/// The number of records of a store, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordCounts {
    /// Leases, lingering ones included.
    pub leases: u64,
    /// Leases that linger.
    pub lingering: u64,
    /// Facts that are remembered for a time: borrows that have ended, revocations, and reports.
    pub remembered: u64,
    /// Usage, by organization and metric.
    pub usage: u64,
    /// Overrides.
    pub overrides: u64,
    /// Entries of the audit list.
    pub audit: u64,
}

impl RecordCounts {
    /// The sum of all of them.
    pub const fn total(self) -> u64 {
        let Self { leases, lingering: _, remembered, usage, overrides, audit } = self;
        leases + remembered + usage + overrides + audit
    }

    pub(crate) fn of(restored: &Restored) -> Self {
        let records = &restored.records;
        let mut counts = Self {
            overrides: records.overrides.len() as u64,
            audit: records.audit.len() as u64,
            ..Self::default()
        };
        for change in restored.ledger.snapshot() {
            match change {
                Change::Granted(lease) => {
                    counts.leases += 1;
                    counts.lingering += u64::from(lease.lingers_until.is_some());
                }
                Change::Used { .. } => counts.usage += 1,
                _ => counts.remembered += 1,
            }
        }
        counts
    }
}

/// What is in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// The version of its format.
    pub version: u64,
    /// The number of its records.
    pub records: RecordCounts,
    /// The number of the last batch of changes.
    pub sequence: u64,
    /// The least serial number of the next grant.
    pub next_serial: u64,
    /// Who leads the fleet; `None` for a store of one server.
    pub fleet: Option<fleet::Rows>,
    /// The servers of the fleet.
    pub members: Vec<fleet::Member>,
}
