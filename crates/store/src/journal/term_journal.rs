//! The journal of one term, on any engine: what each commit compares, and what became of it.

use std::time::Duration;

use super::engine::{Attempt, FleetJournal, Unanswered};
use super::rows::Rows;
use super::{Restored, Stamp};
use crate::fleet::{Fence, JournalRow, Resolved};

/// The connection of a leader for its journal, with the fence of its commits.
#[derive(Debug)]
pub(crate) struct TermJournal {
    connection: Box<dyn FleetJournal>,
    pub(super) fence: Fence,
}

impl TermJournal {
    /// A journal whose fence starts at `row`.
    pub(crate) fn new(connection: Box<dyn FleetJournal>, row: JournalRow) -> Self {
        Self { connection, fence: Fence::new(row) }
    }

    pub(crate) fn sequence(&self) -> u64 {
        self.fence.sequence()
    }

    /// Restores all rows, and returns the stamp of the last batch.
    pub(crate) fn load(
        &mut self,
        restored: &mut Restored,
        within: Duration,
    ) -> Result<Stamp, Unanswered> {
        self.connection.load(restored, within)
    }

    /// Tries once to commit a batch.
    ///
    /// # Errors
    ///
    /// Whether it happened is unknown. [`TermJournal::resolve`] finds it out.
    pub(crate) fn commit(
        &mut self,
        batch: &Rows,
        stamp: Stamp,
        within: Duration,
    ) -> Result<Attempt, Unanswered> {
        let (seen, new) = (self.fence.seen(), self.fence.next());
        let attempt = self.connection.commit(batch, stamp, seen, new, within)?;
        if attempt == Attempt::Committed {
            self.fence.committed();
        }
        Ok(attempt)
    }

    /// Finds out what became of the last commit. An earlier attempt cannot commit afterwards.
    pub(crate) fn resolve(&mut self, within: Duration) -> Result<Resolved, Unanswered> {
        let row = self.connection.raise(self.fence.seen().leader, within)?;
        Ok(self.fence.resolve(row))
    }

    /// Goes on from `row`: the journal was written again.
    pub(crate) fn set_fence(&mut self, row: JournalRow) {
        self.fence = Fence::new(row);
    }
}
