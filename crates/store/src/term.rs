//! What the threads of one term of leadership tell each other.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// One term of this server as leader.
#[derive(Debug, Default)]
pub(crate) struct Term {
    over: AtomicBool,
    /// A commit found another row than it expected.
    doubt: AtomicBool,
    sequence: AtomicU64,
    /// Nanoseconds since boot.
    valid_until: AtomicU64,
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
        self.sequence.store(sequence, Ordering::Release);
    }

    /// The last batch that was committed.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence.load(Ordering::Acquire)
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
