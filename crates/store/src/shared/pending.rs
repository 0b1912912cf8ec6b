//! What waits for the disk, and for how long.

use std::time::{Duration, Instant};

use lease::Change;

use crate::attached::Push;
use crate::journal::Operated;

/// What one batch holds.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    pub(crate) changes: Vec<Change>,
    pub(crate) operated: Vec<Operated>,
    /// Revocations to tell of once the batch is durable.
    pub(crate) pushes: Vec<Push>,
    /// When the first of it came.
    pub(crate) since: Option<Instant>,
}

impl Pending {
    pub(crate) const fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.operated.is_empty()
    }

    pub(crate) const fn len(&self) -> usize {
        self.changes.len() + self.operated.len()
    }

    /// What is in it; room for as many changes stays.
    pub(crate) fn take(&mut self) -> Self {
        let changes = Vec::with_capacity(self.changes.len());
        std::mem::replace(self, Self { changes, ..Self::default() })
    }
}

/// How long the disk has been taking. The clock thread counts, so that commits and those who wait
/// for them need no timers.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// Monotonic time of the last look.
    pub(crate) looked: Duration,
    /// How many changes the commit under way holds.
    pub(crate) changes: usize,
    /// How long the commit under way has taken.
    pub(crate) commit: Duration,
    /// How long the first of those who wait for it has waited.
    pub(crate) committing: Duration,
    /// How long the first of those who wait for the gathering batch has waited.
    pub(crate) gathering: Duration,
}
