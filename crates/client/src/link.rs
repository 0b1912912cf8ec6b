//! Whether the server seems to answer, and how hard to try while it does not.

use std::time::{Duration, Instant};

/// How many calls per second look whether a server is back.
const PROBES: u32 = 16;

const WINDOW: Duration = Duration::from_secs(1);

/// How much longer than an outage has to last its last failure still counts as the present.
const FRESH: Duration = Duration::from_secs(5);

/// The state of the way to the server, as the last answer showed it.
///
/// Ten thousand leases retry every second while the server is away, and each try could cost a
/// connection attempt: so a few go out, and the first answer opens the way for all.
#[derive(Debug, Default)]
pub(crate) struct Link {
    down: Option<Probing>,
}

#[derive(Debug)]
struct Probing {
    /// The first and the last failure since the server answered.
    failed: (Instant, Instant),
    since: Option<Instant>,
    sent: u32,
}

impl Link {
    /// Notes that the server answered something, and returns whether that ends an outage.
    pub(crate) fn answered(&mut self, now: Instant) -> bool {
        self.down.take().is_some_and(|Probing { failed: (first, _), .. }| now >= first + WINDOW)
    }

    /// Notes that a call failed on the way, or that the server could not serve it.
    pub(crate) fn failed(&mut self, now: Instant) {
        let failed = (now, now);
        self.down.get_or_insert(Probing { failed, since: None, sent: 0 }).failed.1 = now;
    }

    /// Whether nothing was answered for `outage`, and failures are so fresh that the server is
    /// still away, as far as anyone can know.
    pub(crate) fn is_down_since(&self, outage: Duration, now: Instant) -> bool {
        self.down.as_ref().is_some_and(|Probing { failed: (first, last), .. }| {
            now >= *first + outage && now <= *last + outage + FRESH
        })
    }

    /// Returns whether one more call may go out at `now`, and counts it.
    pub(crate) fn admits(&mut self, now: Instant) -> bool {
        let Some(probing) = &mut self.down else { return true };
        if probing.since.is_none_or(|since| now >= since + WINDOW) {
            *probing = Probing { since: Some(now), sent: 0, ..*probing };
        }
        let admitted = probing.sent < PROBES;
        probing.sent += u32::from(admitted);
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_is_down_admits_a_few_calls_per_second_and_all_once_one_is_answered() {
        let mut link = Link::default();
        let start = Instant::now();
        let admitted = |link: &mut Link, at| (0..1000).filter(|_| link.admits(at)).count();
        assert_eq!(admitted(&mut link, start), 1000);

        link.failed(start);
        assert_eq!(admitted(&mut link, start), 16);
        link.failed(start);
        assert_eq!(admitted(&mut link, start + WINDOW / 2), 0);
        assert_eq!(admitted(&mut link, start + WINDOW), 16);

        assert!(link.answered(start + WINDOW));
        assert!(!link.answered(start + WINDOW));
        assert_eq!(admitted(&mut link, start + WINDOW), 1000);
    }

    #[test]
    fn a_link_is_down_for_good_after_an_outage_whose_failures_go_on() {
        const OUTAGE: Duration = Duration::from_secs(5);
        let mut link = Link::default();
        let start = Instant::now();
        assert!(!link.is_down_since(OUTAGE, start));
        link.failed(start);
        assert!(!link.is_down_since(OUTAGE, start + OUTAGE - WINDOW));
        assert!(link.is_down_since(OUTAGE, start + OUTAGE));
        // Nobody tried for long: who knows?
        assert!(!link.is_down_since(OUTAGE, start + 3 * OUTAGE));
        link.failed(start + 3 * OUTAGE);
        assert!(link.is_down_since(OUTAGE, start + 3 * OUTAGE));
        link.answered(start + 3 * OUTAGE);
        assert!(!link.is_down_since(OUTAGE, start + 3 * OUTAGE));
    }
}
