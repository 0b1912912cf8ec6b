//! What the threads of one term of leadership tell each other.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::fleet::JournalRow;

/// One term of this server as leader.
#[derive(Debug, Default)]
pub(crate) struct Term {
    over: AtomicBool,
    /// A commit found another row than it expected.
    doubt: AtomicBool,
    commits: Mutex<Commits>,
    /// Nanoseconds since boot.
    valid_until: AtomicU64,
}

#[derive(Debug, Default)]
struct Commits {
    /// The last batch that was committed.
    sequence: u64,
    /// The database lacks batches that were acknowledged: nothing is committed.
    is_suspended: bool,
    /// The journal was written again, and commits have not gone on from there yet.
    rewritten: Option<Rewritten>,
}

/// The journal was written again from memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rewritten {
    /// The row from which commits go on.
    pub(crate) row: JournalRow,
    /// The number of the last batch of the term that is part of it.
    pub(crate) batches: u64,
}

/// What the journal thread does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Commit,
    /// The journal is being written again.
    Wait,
    GoOnFrom(Rewritten),
    End,
}

impl Term {
    /// Ends the term: nothing is committed for it any more.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Notes that a commit found another row than it expected.
    pub(crate) fn doubt(&self) {
        self.doubt.store(true, Ordering::Release);
    }

    /// Whether a commit found another row than it expected since the last call.
    pub(crate) fn take_doubt(&self) -> bool {
        self.doubt.swap(false, Ordering::AcqRel)
    }

    /// Notes the last batch that was committed.
    pub(crate) fn committed(&self, sequence: u64) {
        self.commits.lock().sequence = sequence;
    }

    /// The last batch that was committed; `None` while the journal thread has not heard of the last
    /// rewriting.
    pub(crate) fn sequence(&self) -> Option<u64> {
        let commits = self.commits.lock();
        let is_known = !commits.is_suspended && commits.rewritten.is_none();
        is_known.then_some(commits.sequence)
    }

    /// Suspends commits.
    pub(crate) fn suspend(&self) {
        self.commits.lock().is_suspended = true;
    }

    /// Lets commits go on as before [`Term::suspend`].
    pub(crate) fn resume(&self) {
        self.commits.lock().is_suspended = false;
    }

    /// Lets commits go on from the row that a rewriting left. It has all batches up to that number.
    pub(crate) fn rewritten(&self, row: JournalRow, batches: u64) {
        let mut commits = self.commits.lock();
        commits.is_suspended = false;
        commits.rewritten = Some(Rewritten { row, batches });
    }

    /// What the journal thread does next.
    pub(crate) fn next(&self) -> Next {
        let mut commits = self.commits.lock();
        if self.is_over() {
            Next::End
        } else if commits.is_suspended {
            Next::Wait
        } else if let Some(rewritten) = commits.rewritten.take() {
            commits.sequence = rewritten.row.sequence;
            Next::GoOnFrom(rewritten)
        } else {
            Next::Commit
        }
    }

    /// Notes until when the leader may act.
    pub(crate) fn extend(&self, until: Duration) {
        let nanos = u64::try_from(until.as_nanos()).unwrap_or(u64::MAX);
        self.valid_until.store(nanos, Ordering::Release);
    }

    /// Until when the leader may act, as the time since boot.
    pub(crate) fn valid_until(&self) -> Duration {
        Duration::from_nanos(self.valid_until.load(Ordering::Acquire))
    }
}
