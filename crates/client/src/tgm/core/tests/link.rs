//! How many calls are sent while the server is down.

use super::*;
use crate::tgm::core::schedule::WINDOW;

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
fn a_link_counts_as_down_after_an_outage_while_its_failures_are_recent() {
    const OUTAGE: Duration = Duration::from_secs(5);
    let mut link = Link::default();
    let start = Instant::now();
    assert!(!link.is_down_since(OUTAGE, start));
    link.failed(start);
    assert!(!link.is_down_since(OUTAGE, start + OUTAGE - WINDOW));
    assert!(link.is_down_since(OUTAGE, start + OUTAGE));
    // The last failure is too old to show that the server is still down.
    assert!(!link.is_down_since(OUTAGE, start + 3 * OUTAGE));
    link.failed(start + 3 * OUTAGE);
    assert!(link.is_down_since(OUTAGE, start + 3 * OUTAGE));
    link.answered(start + 3 * OUTAGE);
    assert!(!link.is_down_since(OUTAGE, start + 3 * OUTAGE));
}
