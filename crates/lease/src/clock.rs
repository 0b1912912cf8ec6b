//! Store time, made from a monotonic clock that somebody else reads.

use std::time::Duration;

use crate::types::Timestamp;

/// The longest silence between two readings that still counts in full.
pub const LONGEST_STEP: Duration = Duration::from_millis(500);

/// Store time: it starts where the journal ended or at the wall clock, whichever is later, and
/// from then on follows a monotonic clock.
///
/// A process that was stopped for minutes finds the keep-alives of those minutes waiting in its
/// sockets. So a silence of more than [`LONGEST_STEP`] between two readings counts as
/// [`LONGEST_STEP`], and nobody expires for what the server slept through. Whoever owns the clock
/// therefore reads it often, whether there are calls or not.
///
/// ```
/// use std::time::Duration;
/// use lease::{StoreClock, Timestamp};
///
/// let mut clock = StoreClock::starting_at(Timestamp::from_nanos(7), Duration::ZERO);
/// assert_eq!(clock.read(Duration::from_nanos(5)).as_nanos(), 12);
/// let after_a_stall = clock.read(Duration::from_secs(3600));
/// assert_eq!(after_a_stall.since(Timestamp::from_nanos(12)), Duration::from_millis(500));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct StoreClock {
    now: Timestamp,
    read_at: Duration,
}

impl StoreClock {
    /// A clock that shows `start` at the monotonic reading `monotonic`.
    pub const fn starting_at(start: Timestamp, monotonic: Duration) -> Self {
        Self { now: start, read_at: monotonic }
    }

    /// Store time at the monotonic reading `monotonic`; one that goes back changes nothing.
    pub fn read(&mut self, monotonic: Duration) -> Timestamp {
        let step = monotonic.saturating_sub(self.read_at).min(LONGEST_STEP);
        self.read_at = self.read_at.max(monotonic);
        self.now = self.now + step;
        self.now
    }
}
