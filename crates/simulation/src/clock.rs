//! The clock of one machine, which runs faster or slower than true time.

use std::time::Duration;

/// True time, in nanoseconds since the begin of a simulation.
pub(crate) type Time = u64;

pub(crate) const MILLISECOND: Time = 1_000_000;
pub(crate) const SECOND: Time = 1_000 * MILLISECOND;

/// The time since boot of one machine, as a function of true time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// What it shows at true time zero.
    pub(crate) offset: Duration,
    /// How much faster than true time it runs, in millionths.
    pub(crate) faster: i64,
}

impl Clock {
    /// What the clock shows at `time`.
    pub(crate) fn at(&self, time: Time) -> Duration {
        let time = time.cast_signed();
        let gained = time / 1_000 * self.faster / 1_000;
        self.offset + Duration::from_nanos((time + gained).cast_unsigned())
    }

    /// The first microsecond of true time at which the clock shows `shown` or more.
    pub(crate) fn when(&self, shown: Duration) -> Time {
        let since = nanos(shown.saturating_sub(self.offset));
        let mut time =
            (i128::from(since) * 1_000_000 / i128::from(1_000_000 + self.faster)) as Time;
        while self.at(time) < shown {
            time += 1_000;
        }
        time
    }
}

/// A duration in nanoseconds.
pub(crate) fn nanos(duration: Duration) -> Time {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
