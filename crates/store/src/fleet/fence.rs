//! What a leader compares with each commit, and how it finds out whether a commit happened.

use super::rows::JournalRow;

/// The fence of a leader's commits.
///
/// Each batch compares the journal row with [`Fence::seen`] and replaces it by [`Fence::next`] in one
/// transaction. When the outcome is unknown, or the comparison failed, an update that takes the lock of
/// the row and raises the attempt returns the row; [`Fence::resolve`] tells what it means.
#[derive(Clone, Copy, Debug)]
pub struct Fence {
    row: JournalRow,
}

/// What became of a commit whose outcome was unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// The batch was committed.
    Committed,
    /// The batch was not committed, and cannot be any more. It is sent again unchanged.
    NotCommitted,
    /// The database has lost batches that were acknowledged.
    Lost,
    /// The row is of another leader. [`Leadership`](super::Leadership) tells whether that one has taken
    /// over, or the database has lost this leader's takeover.
    OtherLeader,
}

impl Fence {
    /// The fence of a leader that has taken over, or has rewritten the journal, with this row.
    pub fn new(row: JournalRow) -> Self {
        Self { row }
    }

    /// The row that the next commit compares.
    pub fn seen(&self) -> JournalRow {
        self.row
    }

    /// The row that the next commit leaves.
    pub fn next(&self) -> JournalRow {
        JournalRow { sequence: self.row.sequence + 1, ..self.row }
    }

    /// The number of the last batch that is known to be committed.
    pub fn sequence(&self) -> u64 {
        self.row.sequence
    }

    /// The database acknowledged the commit.
    pub fn committed(&mut self) {
        self.row = self.next();
    }

    /// Tells what became of the last commit, by the row that the raised attempt returned.
    pub fn resolve(&mut self, row: JournalRow) -> Resolved {
        let expected = self.row.sequence;
        if row.leader != self.row.leader {
            return Resolved::OtherLeader;
        }
        if row.sequence < expected {
            return Resolved::Lost;
        }
        self.row = row;
        if row.sequence > expected { Resolved::Committed } else { Resolved::NotCommitted }
    }
}
