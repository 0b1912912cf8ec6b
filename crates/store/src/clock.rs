//! The clocks that the store reads.

use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use lease::WallTime;

/// The two clocks of a machine.
///
/// The rules never read a clock: the store reads one and passes the time on. Tests use a clock of
/// their own, which they set by hand.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// Time since a fixed point. It never goes back and ignores changes of the wall clock.
    fn monotonic(&self) -> Duration;

    /// Time since the start of 1970, UTC, as the wall clock shows it. It may go back.
    fn unix(&self) -> Duration;

    /// Time since a fixed point that also goes on while the machine sleeps. A fleet measures the validity
    /// of its leader with it.
    fn boot(&self) -> Duration {
        self.monotonic()
    }

    /// The wall clock in the form that budget windows need.
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

    #[cfg(target_os = "linux")]
    fn boot(&self) -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::try_from(time).unwrap_or_default()
    }

    fn unix(&self) -> Duration {
        // A time before 1970 means that the machine has no wall clock.
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    }
}
