//! Rate limits for warnings that a caller or a broken disk can cause again and again.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The least time between two log lines of one kind of warning.
const EVERY: Duration = Duration::from_secs(10);

/// One kind of warning. The first one is logged at once, and then one line in ten seconds, with the
/// number of warnings since the line before.
#[derive(Debug)]
pub(crate) struct Repeated(Mutex<State>);

#[derive(Debug)]
struct State {
    logged_at: Option<Instant>,
    /// The text of the last line, for warnings whose text varies.
    text: Option<String>,
    /// The number of warnings since the last line.
    count: u64,
}

impl Repeated {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(State { logged_at: None, text: None, count: 0 }))
    }

    /// Counts a warning. If it has to be logged now, returns how many warnings the line stands for.
    pub(crate) fn count(&self) -> Option<u64> {
        self.count_at(None, Instant::now())
    }

    /// Like [`Repeated::count`], for a line with this `text`. A line with another text than the one
    /// before is logged at once.
    pub(crate) fn count_of(&self, text: &str) -> Option<u64> {
        self.count_at(Some(text), Instant::now())
    }

    fn count_at(&self, text: Option<&str>, now: Instant) -> Option<u64> {
        let mut state = self.0.lock();
        if text != state.text.as_deref() {
            *state = State { logged_at: None, text: text.map(str::to_owned), count: 0 };
        }
        state.count += 1;
        if state.logged_at.is_some_and(|before| now.saturating_duration_since(before) < EVERY) {
            return None;
        }
        state.logged_at = Some(now);
        Some(std::mem::take(&mut state.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_another_text_is_logged_at_once() {
        let (repeated, now) = (Repeated::new(), Instant::now());
        let lines = ["one", "one", "two", "two", "one"].map(|it| repeated.count_at(Some(it), now));
        assert_eq!(lines, [Some(1), None, Some(1), None, Some(1)]);
    }

    #[test]
    fn a_warning_is_logged_at_once_and_then_one_in_ten_seconds_with_their_number() {
        let (repeated, start) = (Repeated::new(), Instant::now());
        let after = |millis| repeated.count_at(None, start + Duration::from_millis(millis));
        assert_eq!(after(0), Some(1));
        assert_eq!((after(1), after(5_000), after(9_999)), (None, None, None));
        assert_eq!(after(10_000), Some(4));
        assert_eq!(after(10_001), None);
        assert_eq!(after(60_000), Some(2));
        // A clock that goes back does not lead to more lines.
        assert_eq!(after(59_000), None);
    }
}
