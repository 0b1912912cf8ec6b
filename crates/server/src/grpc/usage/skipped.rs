//! Logs skipped events of reports: one line a minute at most, with the reasons.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use lease::Uncountable;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

use store::Skipped;

/// The shortest time between two lines.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// Logs the first skipped events at once, and those of the following minute at its end.
#[derive(Debug, Default)]
pub(super) struct SkippedLog(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    unlogged: Line,
    /// The end of the minute after the last line.
    next: Option<Instant>,
    /// Whether a task waits for it.
    is_awaited: bool,
}

/// The content of one line: the number of events, and their reasons.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Line {
    events: u64,
    why: Skipped,
}

/// When a line is due.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    Now(Line),
    At(Instant),
    /// A task waits for the next line already.
    Awaited,
}

impl SkippedLog {
    /// Adds the skipped events of one report, and their reasons.
    pub(super) fn add(self: &Arc<Self>, events: u64, why: &Skipped) {
        match self.add_at(events, why, Instant::now()) {
            Due::Now(line) => line.write(),
            Due::At(next) => {
                let log = self.clone();
                tokio::spawn(async move {
                    sleep_until(next).await;
                    log.take(next).write();
                });
            }
            Due::Awaited => {}
        }
    }

    fn add_at(&self, events: u64, why: &Skipped, now: Instant) -> Due {
        let mut state = self.0.lock();
        state.unlogged.events += events;
        state.unlogged.why.iter_mut().zip(why).for_each(|(sum, more)| *sum += more);
        if state.is_awaited {
            return Due::Awaited;
        }
        match state.next.filter(|next| now < *next) {
            Some(next) => {
                state.is_awaited = true;
                Due::At(next)
            }
            None => {
                state.next = Some(now + LOG_EVERY);
                Due::Now(std::mem::take(&mut state.unlogged))
            }
        }
    }

    /// Takes the line at the end of a minute.
    fn take(&self, now: Instant) -> Line {
        let mut state = self.0.lock();
        (state.is_awaited, state.next) = (false, Some(now + LOG_EVERY));
        std::mem::take(&mut state.unlogged)
    }
}

impl Line {
    fn write(self) {
        tracing::warn!(events = self.events, why = %self, "skipped events of usage reports");
    }
}

impl fmt::Display for Line {
    /// Writes the number of each reason, such as `value 3, organization 1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reasons = Uncountable::ALL.into_iter().zip(self.why).filter(|(_, count)| *count > 0);
        for (place, (why, count)) in reasons.enumerate() {
            let comma = if place > 0 { ", " } else { "" };
            write!(f, "{comma}{} {count}", why.as_str())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(reasons: &[Uncountable]) -> Skipped {
        let mut why = Skipped::default();
        reasons.iter().for_each(|reason| why[*reason as usize] += 1);
        why
    }

    #[tokio::test(start_paused = true)]
    async fn the_log_has_one_line_a_minute_that_tells_why_and_no_event_is_left_out() {
        use Uncountable::{Organization, Unreadable, Value};

        let log = Arc::new(SkippedLog::default());
        let (text, _logging) = crate::test_log::Log::start();
        log.add(2, &why(&[Value, Organization]));
        assert_eq!(text.take().lines().count(), 1);
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(15)).await;
            log.add(1, &why(&[Value]));
            assert_eq!(text.take(), "", "a minute has not passed");
        }
        log.add(1, &why(&[Unreadable]));
        tokio::time::sleep(Duration::from_secs(16)).await;
        let line = text.take();
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(line.contains("events=4 why=value 3, unreadable 1"), "{line}");
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(text.take(), "", "there is nothing to tell");
        log.add(1, &why(&[Value]));
        assert!(text.take().contains("events=1 why=value 1"));
    }

    #[test]
    fn a_line_that_is_awaited_is_awaited_once_and_the_minute_begins_with_each_line() {
        let (log, start) = (SkippedLog::default(), Instant::now());
        let add =
            |seconds| log.add_at(1, &Skipped::default(), start + Duration::from_secs(seconds));
        let line = |events| Line { events, why: Skipped::default() };
        assert_eq!(add(0), Due::Now(line(1)));
        let next = start + LOG_EVERY;
        assert_eq!((add(1), add(2)), (Due::At(next), Due::Awaited));
        assert_eq!(log.take(next), line(2));
        assert_eq!(add(61), Due::At(next + LOG_EVERY));
        assert_eq!(log.take(next + LOG_EVERY), line(1));
        assert_eq!(add(180), Due::Now(line(1)));
    }
}
