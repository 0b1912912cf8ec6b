//! When returns are tried, retried and given up.

use super::*;
use crate::plugin::CloseReport;
use crate::tgm::core::lease::MOST_RETURNS;
use crate::tgm::core::lease::Returning;
use crate::tgm::core::returns::{FIRST_PAUSE, LONGEST_PAUSE, SESSION_PATIENCE};

/// A core for returns and a clock that only the test advances.
struct Bench {
    core: Core,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        let now = Instant::now();
        Self { core: Core::new(RULES, StdRng::seed_from_u64(1), now), now }
    }

    fn add(&mut self, number: u64, holds: usize, session: Option<u64>) {
        let target = Some(Target::Key(format!("key-{number}").into()));
        let returning = Returning { holds, session, ..Returning::new(target, self.now + TTL) };
        self.core.add_return(number, returning, self.now);
    }

    fn due(&mut self) -> Option<u64> {
        match self.core.due_return(self.now)? {
            Call::Return { number, .. } => Some(number),
            call => panic!("not a return: {call:?}"),
        }
    }

    fn answer(&mut self, number: u64, outcome: Result<Released, Error>) {
        self.answer_with(number, outcome, true);
    }

    fn answer_with(&mut self, number: u64, outcome: Result<Released, Error>, again: bool) {
        let answer = ReturnAnswer { outcome, again, answered: true };
        self.core.handle_return(number, answer, self.now);
    }

    /// How many things a return waits for.
    fn holds(&mut self, number: u64) -> usize {
        self.core.leases.returning_mut(number).unwrap().holds
    }

    fn len(&self) -> usize {
        self.core.leases.returning.len()
    }
}

fn fault() -> Result<Released, Error> {
    Err(Error::unavailable("gone"))
}

#[test]
fn a_failed_return_is_retried_with_growing_pauses_for_one_ttl() {
    let mut bench = Bench::new();
    let start = bench.now;
    bench.add(1, 0, None);
    let mut outcome = bench.core.watch(1).unwrap();
    let mut pauses = Vec::new();
    while let Some(at) = bench.core.returns.next(bench.now) {
        pauses.push(at - bench.now);
        bench.now = at;
        match bench.due() {
            Some(number) => bench.answer(number, fault()),
            None => assert_eq!(bench.now - start, TTL),
        }
    }
    assert_eq!(bench.now - start, TTL);
    assert!(pauses[1] <= FIRST_PAUSE && pauses[1] >= FIRST_PAUSE / 2);
    assert!(pauses.iter().all(|pause| *pause <= LONGEST_PAUSE));
    assert!(pauses.len() > 12, "{pauses:?}");
    std::iter::from_fn(|| bench.core.poll_notice()).for_each(Notice::deliver);
    assert_eq!(outcome.try_recv().unwrap(), fault());
    assert_eq!(bench.core.report(), CloseReport { returned: 0, not_returned: 1 });
}

#[test]
fn a_return_waits_for_everything_that_holds_it() {
    let mut bench = Bench::new();
    bench.add(10, 2, None);
    assert_eq!(bench.due(), None);
    bench.core.unhold(10, bench.now);
    assert_eq!(bench.due(), None);
    bench.core.unhold(10, bench.now);
    assert_eq!([bench.due(), bench.due()], [Some(10), None]);
    bench.core.unhold(10, bench.now);
    assert_eq!(bench.due(), None);
}

#[test]
fn the_first_answer_to_a_worker_counts_once_for_its_session() {
    let mut bench = Bench::new();
    bench.add(10, 9, None);
    bench.add(1, 0, Some(10));
    assert_eq!(bench.due(), Some(1));
    assert_eq!(bench.holds(10), 9);
    bench.answer(1, fault());
    assert_eq!(bench.holds(10), 8);
    bench.now += LONGEST_PAUSE;
    assert_eq!(bench.due(), Some(1));
    bench.answer(1, Ok(Released::Returned));
    assert_eq!(bench.holds(10), 8);
    // A return without a target needs no try.
    bench.add(2, 1, Some(10));
    bench.core.leases.returning_mut(2).unwrap().target = None;
    bench.core.unhold(2, bench.now);
    assert_eq!((bench.holds(10), bench.len()), (7, 1));
}

#[test]
fn a_session_waits_for_the_first_try_of_a_worker_for_a_bounded_time() {
    let mut bench = Bench::new();
    bench.add(10, 9, None);
    for number in 1..=3 {
        bench.add(number, 0, Some(10));
        assert_eq!(bench.due(), Some(number));
    }
    let (until, end) = (bench.now + SESSION_PATIENCE, bench.now + TTL);
    bench.answer(2, Ok(Released::Returned));
    assert_eq!((bench.holds(10), bench.core.returns.next(bench.now)), (8, Some(until)));
    bench.now = until;
    assert_eq!(bench.due(), None);
    assert_eq!((bench.holds(10), bench.core.returns.next(bench.now)), (6, Some(end)));
    // These answers are late: the session no longer waits for them, but the workers' returns use
    // them.
    bench.answer(1, fault());
    bench.answer(3, Ok(Released::Returned));
    assert_eq!((bench.holds(10), bench.len()), (6, 2));
}

#[test]
fn a_permanent_error_ends_the_return() {
    let mut bench = Bench::new();
    bench.add(1, 0, None);
    assert_eq!(bench.due(), Some(1));
    bench.answer_with(1, fault(), false);
    assert_eq!((bench.len(), bench.core.returns.next(bench.now)), (0, None));
}

#[test]
fn returns_in_flight_are_bounded_and_fewer_while_the_link_is_down() {
    let mut bench = Bench::new();
    (0..200).for_each(|number| bench.add(number, 0, None));
    let first: Vec<u64> = std::iter::from_fn(|| bench.due()).collect();
    assert_eq!(
        (first.len(), bench.core.returns.next(bench.now)),
        (MOST_RETURNS, Some(bench.now + TTL))
    );
    for number in first {
        bench.answer(number, Ok(Released::Returned));
    }
    bench.core.link.failed(bench.now);
    assert_eq!(std::iter::from_fn(|| bench.due()).count(), 16);
    assert!(bench.core.returns.next(bench.now).is_some_and(|at| at > bench.now));
}

#[test]
fn a_return_ends_with_its_ttl_whatever_it_waits_for() {
    let mut bench = Bench::new();
    let start = bench.now;
    // The returns wait for another event, an answer, a free place in flight, or the link.
    bench.add(1, 1, None);
    bench.add(2, 0, None);
    assert_eq!(bench.due(), Some(2));
    (10..10 + MOST_RETURNS as u64).for_each(|number| bench.add(number, 0, None));
    while bench.due().is_some() {}
    bench.now += TTL / 2;
    bench.add(3, 0, Some(4));
    let later = Duration::from_millis(1);
    bench.now += later;
    bench.add(4, 1, None);
    assert_eq!((bench.due(), bench.core.returns.next(bench.now)), (None, Some(start + TTL)));
    for (after, left) in [(TTL, 2), (TTL + TTL / 2, 1), (TTL + TTL / 2 + later, 0)] {
        bench.now = start + after;
        bench.core.link.failed(bench.now);
        while bench.due().is_some() {}
        assert_eq!(bench.len(), left);
        if left == 1 {
            assert_eq!(bench.holds(4), 0, "its session does not wait for it any more");
        }
    }
    assert_eq!(bench.core.returns.next(bench.now), None);
    let settled = CloseReport { returned: 0, not_returned: 3 + MOST_RETURNS as u64 + 1 };
    assert_eq!(bench.core.report(), settled);
    // A late answer changes no count. It only frees a place in flight.
    bench.answer(2, Ok(Released::Returned));
    assert_eq!(bench.core.report(), settled);
}

#[test]
fn giving_up_settles_everything_and_late_answers_change_nothing() {
    let mut bench = Bench::new();
    bench.add(1, 0, None);
    bench.add(2, 1, None);
    assert_eq!(bench.due(), Some(1));
    bench.core.give_up(bench.now);
    bench.answer(1, Ok(Released::Returned));
    assert_eq!((bench.len(), bench.due()), (0, None));
    assert_eq!(bench.core.report(), CloseReport { returned: 0, not_returned: 2 });
}
