//! Where the server reads the time.

use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use lease::WallTime;

/// The two clocks of a machine.
///
/// The rules never read a clock: the store reads one and hands them the time. Another clock than
/// [`SystemClock`] is for tests, which turn it by hand.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// Time since some fixed point. It never goes back and ignores changes of the wall clock.
    fn monotonic(&self) -> Duration;

    /// Time since the start of 1970, UTC, as the wall clock shows it. It may go back.
    fn unix(&self) -> Duration;

    /// The wall clock as budget windows need it.
    fn wall(&self) -> WallTime {
        WallTime::from_unix(i64::try_from(self.unix().as_secs()).unwrap_or(i64::MAX))
    }
}

/// The clocks of the operating system.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time starts now.
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn unix(&self) -> Duration {
        // A wall clock before 1970 is a machine without one.
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    }
}
