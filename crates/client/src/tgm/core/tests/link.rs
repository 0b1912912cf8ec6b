//! How many calls look whether a server is back.

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
