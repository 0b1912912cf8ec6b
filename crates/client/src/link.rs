//! Whether the server seems to answer, and how hard to try while it does not.

use std::time::{Duration, Instant};

/// How many calls per second look whether a server is back.
const PROBES: u32 = 16;

const WINDOW: Duration = Duration::from_secs(1);

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
    since: Option<Instant>,
    sent: u32,
}

impl Link {
    /// Notes that the server answered something.
    pub(crate) fn answered(&mut self) {
        self.down = None;
    }

    /// Notes that a call failed on the way, or that the server could not serve it.
    pub(crate) fn failed(&mut self) {
        self.down.get_or_insert(Probing { since: None, sent: 0 });
    }

    /// Returns whether one more call may go out at `now`, and counts it.
    pub(crate) fn admits(&mut self, now: Instant) -> bool {
        let Some(probing) = &mut self.down else { return true };
        if probing.since.is_none_or(|since| now >= since + WINDOW) {
            *probing = Probing { since: Some(now), sent: 0 };
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

        link.failed();
        assert_eq!(admitted(&mut link, start), 16);
        link.failed();
        assert_eq!(admitted(&mut link, start + WINDOW / 2), 0);
        assert_eq!(admitted(&mut link, start + WINDOW), 16);

        link.answered();
        assert_eq!(admitted(&mut link, start + WINDOW), 1000);
    }
}
