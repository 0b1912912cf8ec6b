//! The changes that wait for the disk, and how long they have waited.

use std::time::{Duration, Instant};

use lease::Change;

use crate::attached::Push;
use crate::records::OperatorRecord;

/// The content of one batch.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    pub(crate) changes: Vec<Change>,
    pub(crate) operator_records: Vec<OperatorRecord>,
    /// Revocations to push once the batch is durable.
    pub(crate) pushes: Vec<Push>,
    /// When the first change was added.
    pub(crate) since: Option<Instant>,
}

impl Pending {
    pub(crate) const fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.operator_records.is_empty()
    }

    pub(crate) const fn len(&self) -> usize {
        self.changes.len() + self.operator_records.len()
    }

    /// Takes the content. The capacity for as many changes stays.
    pub(crate) fn take(&mut self) -> Self {
        let changes = Vec::with_capacity(self.changes.len());
        std::mem::replace(self, Self { changes, ..Self::default() })
    }
}

/// How long the disk takes. The clock thread measures it, so that commits and waiting calls need no
/// timers.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// Monotonic time of the last check.
    pub(crate) checked_at: Duration,
    /// The number of changes of the current commit.
    pub(crate) changes: usize,
    /// How long the current commit has taken.
    pub(crate) commit: Duration,
    /// How long the first call that waits for the current commit has waited.
    pub(crate) committing: Duration,
    /// How long the first call that waits for the gathering batch has waited.
    pub(crate) gathering: Duration,
}
