//! Store time, made from the readings of a monotonic clock.

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

/// The longest time between two readings that still counts in full, and the furthest that store
/// time advances beyond the last moment at which all calls that had arrived were handled.
pub const LONGEST_STEP: Duration = Duration::from_millis(500);

/// Store time: it starts where the journal ended, and from then on follows a monotonic clock. It
/// ignores the wall clock: time while the server does not run does not count.
///
/// A process that was stopped for minutes finds the keep-alives of those minutes waiting in its
/// sockets, and must not expire their leases before it has read them. So a time of more than
/// [`LONGEST_STEP`] between two readings counts as [`LONGEST_STEP`], and store time waits there
/// until the server says that all calls that had arrived were handled. The owner of the clock
/// therefore reads it often, whether there are calls or not.
///
/// ```
/// use std::time::Duration;
/// use lease::{StoreClock, Timestamp};
///
/// let mut clock = StoreClock::starting_at(Timestamp::from_nanos(7), Duration::ZERO);
/// assert_eq!(clock.read(Duration::from_nanos(5)).as_nanos(), 12);
/// clock.mark_handled(Timestamp::from_nanos(12));
/// let after_a_stall = clock.read(Duration::from_secs(3600));
/// assert_eq!(after_a_stall.since(Timestamp::from_nanos(12)), Duration::from_millis(500));
/// // Store time stays there until the keep-alives of that hour are handled.
/// assert_eq!(clock.read(Duration::from_secs(3601)), after_a_stall);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct StoreClock {
    now: Timestamp,
    read_at: Duration,
    /// The latest point of time up to which all calls that arrived were handled.
    handled: Timestamp,
}

impl StoreClock {
    /// The latest point of time a clock may start at: half of store time is left then.
    pub const LATEST_START: Timestamp = Timestamp::from_nanos(u64::MAX / 2);

    /// A clock that shows `start` at the monotonic reading `monotonic`.
    pub const fn starting_at(start: Timestamp, monotonic: Duration) -> Self {
        Self { now: start, read_at: monotonic, handled: start }
    }

    /// Store time at the monotonic reading `monotonic`; one that goes back changes nothing.
    pub fn read(&mut self, monotonic: Duration) -> Timestamp {
        let step = monotonic.saturating_sub(self.read_at).min(LONGEST_STEP);
        self.read_at = self.read_at.max(monotonic);
        self.now = (self.now + step).min(self.handled + LONGEST_STEP);
        self.now
    }

    /// Says that all calls that had arrived at `at`, a point of time that was read before, were handled.
    pub fn mark_handled(&mut self, at: Timestamp) {
        self.handled = self.handled.max(at.min(self.now));
    }

    /// Store time as it was read last.
    pub const fn now(&self) -> Timestamp {
        self.now
    }
}
