//! Warnings that a caller or a broken disk can cause again and again.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How often a warning of one kind is told at most.
const EVERY: Duration = Duration::from_secs(10);

/// One kind of warning: the first is told at once, and then one in ten seconds with how many there
/// were. What comes after the last line that was told is counted in the next one.
#[derive(Debug)]
pub(crate) struct Repeated(Mutex<State>);

#[derive(Debug)]
struct State {
    told: Option<Instant>,
    /// What was told, where lines of one kind differ in what matters.
    text: Option<String>,
    /// Since the last line.
    count: u64,
}

impl Repeated {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(State { told: None, text: None, count: 0 }))
    }

    /// Counts one more, and answers how many a line would stand for if it is to be told now.
    pub(crate) fn count(&self) -> Option<u64> {
        self.count_at(None, Instant::now())
    }

    /// As [`Repeated::count`] for a line that says `text`: one that says something else than the
    /// line before is told at once.
    pub(crate) fn count_of(&self, text: &str) -> Option<u64> {
        self.count_at(Some(text), Instant::now())
    }

    fn count_at(&self, text: Option<&str>, now: Instant) -> Option<u64> {
        let mut state = self.0.lock();
        if text != state.text.as_deref() {
            *state = State { told: None, text: text.map(str::to_owned), count: 0 };
        }
        state.count += 1;
        if state.told.is_some_and(|told| now.saturating_duration_since(told) < EVERY) {
            return None;
        }
        state.told = Some(now);
        Some(std::mem::take(&mut state.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_says_something_else_is_told_at_once() {
        let (repeated, now) = (Repeated::new(), Instant::now());
        let told = ["one", "one", "two", "two", "one"].map(|it| repeated.count_at(Some(it), now));
        assert_eq!(told, [Some(1), None, Some(1), None, Some(1)]);
    }

    #[test]
    fn a_warning_is_told_at_once_and_then_one_in_ten_seconds_with_how_many_there_were() {
        let (repeated, start) = (Repeated::new(), Instant::now());
        let after = |millis| repeated.count_at(None, start + Duration::from_millis(millis));
        assert_eq!(after(0), Some(1));
        assert_eq!((after(1), after(5_000), after(9_999)), (None, None, None));
        assert_eq!(after(10_000), Some(4));
        assert_eq!(after(10_001), None);
        assert_eq!(after(60_000), Some(2));
        // A clock that seems to go back is no reason to tell more.
        assert_eq!(after(59_000), None);
    }
}
