//! Store time, made from a monotonic clock that somebody else reads.

use std::time::Duration;

/// A point of store time, in nanoseconds.
///
/// Store time never goes back and says nothing about the wall clock; see [`StoreClock`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The first point of store time.
    pub const ZERO: Self = Self(0);

    /// The point that lies `nanos` nanoseconds after [`Timestamp::ZERO`].
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since [`Timestamp::ZERO`].
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to `self`; zero when `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Self;

    /// The point `duration` later; the end of store time (after 584 years) when that overflows.
    fn add(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }
}

/// The longest silence between two readings that still counts in full, and the furthest that store
/// time gets beyond the last moment at which everything that had arrived was heard.
pub const LONGEST_STEP: Duration = Duration::from_millis(500);

/// Store time: it starts where the journal ended, and from then on follows a monotonic clock. It
/// looks at no wall clock: time while nothing runs does not count.
///
/// A process that was stopped for minutes finds the keep-alives of those minutes waiting in its
/// sockets, and must not expire them before it has read them. So a silence of more than
/// [`LONGEST_STEP`] between two readings counts as [`LONGEST_STEP`], and store time waits there
/// until whoever serves the sockets says that everything which arrived was heard. Whoever owns the
/// clock therefore reads it often, whether there are calls or not.
///
/// ```
/// use std::time::Duration;
/// use lease::{StoreClock, Timestamp};
///
/// let mut clock = StoreClock::starting_at(Timestamp::from_nanos(7), Duration::ZERO);
/// assert_eq!(clock.read(Duration::from_nanos(5)).as_nanos(), 12);
/// clock.heard(Timestamp::from_nanos(12));
/// let after_a_stall = clock.read(Duration::from_secs(3600));
/// assert_eq!(after_a_stall.since(Timestamp::from_nanos(12)), Duration::from_millis(500));
/// // Until the keep-alives of that hour are heard, there it stays.
/// assert_eq!(clock.read(Duration::from_secs(3601)), after_a_stall);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct StoreClock {
    now: Timestamp,
    read_at: Duration,
    /// The latest point of time up to which everything that arrived is known to have been heard.
    heard: Timestamp,
}

impl StoreClock {
    /// The latest point of time a clock may start at: half of store time is left then.
    pub const LATEST_START: Timestamp = Timestamp::from_nanos(u64::MAX / 2);

    /// A clock that shows `start` at the monotonic reading `monotonic`.
    pub const fn starting_at(start: Timestamp, monotonic: Duration) -> Self {
        Self { now: start, read_at: monotonic, heard: start }
    }

    /// Store time at the monotonic reading `monotonic`; one that goes back changes nothing.
    pub fn read(&mut self, monotonic: Duration) -> Timestamp {
        let step = monotonic.saturating_sub(self.read_at).min(LONGEST_STEP);
        self.read_at = self.read_at.max(monotonic);
        self.now = (self.now + step).min(self.heard + LONGEST_STEP);
        self.now
    }

    /// Says that whatever had arrived at `at`, a point of time that was read before, has been heard.
    pub fn heard(&mut self, at: Timestamp) {
        self.heard = self.heard.max(at.min(self.now));
    }

    /// Store time as it was read last.
    pub const fn now(&self) -> Timestamp {
        self.now
    }
}
