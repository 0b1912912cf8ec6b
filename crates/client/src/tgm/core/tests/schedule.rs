//! When keep-alives, borrows and losses of leases are due.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::tgm::core::schedule::{Due, LONGEST_GAP, RETRY, SHORTEST};

/// A schedule with a fixed seed, its leases, its link, and a clock that only the test advances.
struct Bench {
    schedule: Schedule,
    leases: Leases,
    link: Link,
    start: Instant,
    now: Instant,
}

impl Bench {
    fn new(seed: u64) -> Self {
        let now = Instant::now();
        Self {
            schedule: Schedule::new(DELAY, false, StdRng::seed_from_u64(seed)),
            leases: Leases::new(&FixedState::default()),
            link: Link::default(),
            start: now,
            now,
        }
    }

    fn insert_new(&mut self, number: u64, is_worker: bool, ttl: Duration) {
        let key: Arc<str> = "key".into();
        let role = if is_worker {
            Role::Worker(OfWorker { session: u64::MAX, most: 1 })
        } else {
            Role::Session(Workers::default())
        };
        let held = Held {
            lease: Arc::new(Lease::new(number, key.clone(), Ids::default(), None)),
            key,
            role,
            ttl,
            minimal_life: None,
            proven: self.now,
            lost_at: self.schedule.lost_at(self.now, ttl),
            lapse: Lapse::None,
            state: State::New,
        };
        self.leases.held.insert(number, Box::new(held));
    }

    fn insert(&mut self, number: u64, ttl: Duration) {
        self.insert_new(number, false, ttl);
        self.add_new(number);
    }

    fn insert_worker(&mut self, number: u64) {
        self.insert_new(number, true, TTL);
        self.add_new(number);
    }

    /// Calls `what` with the lease of that number, if there is one.
    fn with<R>(
        &mut self,
        number: u64,
        what: impl FnOnce(&mut Schedule, &mut Held, Instant) -> R,
    ) -> Option<R> {
        let held = self.leases.held_mut(number)?;
        Some(what(&mut self.schedule, held, self.now))
    }

    fn add_new(&mut self, number: u64) {
        self.with(number, |schedule, held, now| schedule.add_new(number, held, now));
    }

    fn forget(&mut self, number: u64) {
        self.with(number, |schedule, held, now| schedule.forgotten(number, held, false, now));
    }

    fn aside(&mut self, number: u64) {
        self.with(number, |schedule, held, now| schedule.forgotten(number, held, true, now));
    }

    fn hurry(&mut self, number: u64) {
        self.with(number, |schedule, held, now| schedule.hurry(number, held, now));
    }

    fn take(&mut self, number: u64) -> bool {
        self.with(number, |schedule, held, _| schedule.take(number, held)).unwrap_or(false)
    }

    /// Removes a lease, and returns whether a call for it is in flight.
    fn remove(&mut self, number: u64) -> bool {
        let Some(held) = self.leases.held.remove(&number) else { return false };
        self.schedule.remove(number, &held);
        held.is_in_flight()
    }

    /// Moves the time to the next keep-alive or loss and returns it.
    fn step(&mut self) -> Due {
        loop {
            self.now = self.now.max(self.schedule.next().expect("something is scheduled"));
            if let Some(due) = self.due() {
                return due;
            }
        }
    }

    fn due(&mut self) -> Option<Due> {
        let Self { schedule, leases, now, link, .. } = self;
        let due = schedule.due(leases, *now, *now, Some(link));
        if let Some(Due::Lost(number)) = due {
            self.remove(number);
        }
        due
    }

    fn due_borrow(&mut self) -> Option<Due> {
        self.schedule.due_borrow(&mut self.leases, self.now, &mut self.link)
    }

    fn succeed(&mut self, number: u64) {
        self.succeed_with(number, None, self.now);
    }

    fn succeed_with(&mut self, number: u64, ttl: Option<Duration>, sent: Instant) {
        self.with(number, |schedule, held, now| {
            schedule.succeeded(number, held, ttl, sent, now);
        });
    }

    fn fail(&mut self, number: u64) {
        self.with(number, |schedule, held, now| schedule.failed(number, held, None, now));
    }

    fn passed(&self) -> Duration {
        self.now - self.start
    }
}

#[test]
fn the_first_beats_of_leases_granted_together_are_spread_over_one_interval() {
    let mut bench = Bench::new(1);
    (0..10_000).for_each(|number| bench.insert(number, TTL));
    let mut per_second = [0u32; 20];
    for _ in 0..10_000 {
        let due = bench.step();
        assert!(matches!(due, Due::KeepAlive(_)));
        let second = bench.passed().as_nanos().saturating_sub(1) / 1_000_000_000;
        per_second[usize::try_from(second).unwrap()] += 1;
    }
    // 500 on average; six standard deviations are 131.
    assert!(per_second.iter().all(|beats| (369..631).contains(beats)), "{per_second:?}");
}

#[test]
fn a_lease_beats_every_interval_give_or_take_a_twentieth() {
    let mut bench = Bench::new(2);
    bench.insert(7, TTL);
    bench.step();
    for _ in 0..1000 {
        let before = bench.now;
        bench.succeed(7);
        assert_eq!(bench.step(), Due::KeepAlive(7));
        let gap = bench.now - before;
        assert!((DELAY.mul_f64(0.949)..=DELAY.mul_f64(1.051)).contains(&gap), "{gap:?}");
    }
}

#[test]
fn a_short_ttl_makes_a_lease_beat_three_times_within_it() {
    let mut bench = Bench::new(3);
    bench.insert(1, Duration::from_secs(6));
    bench.step();
    assert!(bench.passed() <= Duration::from_secs(2));
    // From now on, the TTL of the extension determines the interval.
    bench.succeed_with(1, Some(TTL), bench.now);
    let before = bench.now;
    bench.step();
    assert!(bench.now - before >= DELAY.mul_f64(0.94));
}

#[test]
fn a_tiny_ttl_does_not_make_the_schedule_spin() {
    let mut bench = Bench::new(4);
    bench.insert(1, Duration::from_nanos(1));
    for _ in 0..100 {
        assert_eq!(bench.step(), Due::KeepAlive(1));
        bench.succeed(1);
    }
    assert!(bench.passed() >= SHORTEST.mul_f64(0.95 * 99.0));
}

#[test]
fn after_a_failure_a_keep_alive_is_tried_every_second_until_one_succeeds() {
    let mut bench = Bench::new(5);
    bench.insert(1, TTL);
    bench.step();
    for _ in 0..30 {
        let before = bench.now;
        bench.fail(1);
        assert_eq!(bench.step(), Due::KeepAlive(1));
        assert!((RETRY.mul_f64(0.949)..=RETRY.mul_f64(1.051)).contains(&(bench.now - before)));
    }
    bench.succeed(1);
    let before = bench.now;
    bench.step();
    assert!(bench.now - before <= DELAY);
}

#[test]
fn a_lease_is_lost_95_percent_of_its_ttl_after_the_last_success_was_sent() {
    let mut bench = Bench::new(6);
    bench.insert(1, TTL);
    bench.step();
    let sent = bench.now;
    // The answer takes three seconds. The server's TTL may have begun as soon as the call was sent.
    bench.now += Duration::from_secs(3);
    bench.succeed_with(1, None, sent);
    let lost = loop {
        match bench.step() {
            Due::KeepAlive(number) => bench.fail(number),
            due => break due,
        }
    };
    assert_eq!(lost, Due::Lost(1));
    assert_eq!(bench.now - sent, BELIEF);
    assert_eq!(bench.schedule.next(), None);
}

#[test]
fn a_process_that_slept_through_a_ttl_asks_before_it_gives_up() {
    let mut bench = Bench::new(7);
    bench.insert(1, TTL);
    bench.now += 3 * TTL;
    assert_eq!(bench.step(), Due::KeepAlive(1));
    // The server forgot the lease, so the lease is borrowed again and not lost.
    bench.forget(1);
    assert_eq!(bench.due(), None);
    assert_eq!(bench.due_borrow(), Some(Due::Borrow(1)));
}

#[test]
fn forgotten_leases_are_borrowed_again_sessions_first_and_paced_over_one_interval() {
    let mut bench = Bench::new(8);
    for number in 0..2000 {
        if number < 1500 { bench.insert_worker(number) } else { bench.insert(number, TTL) }
    }
    (0..2000).for_each(|number| bench.forget(number));
    let mut order = Vec::new();
    while let Some(at) = bench.schedule.next_borrow(bench.now) {
        bench.now = bench.now.max(at);
        if let Some(Due::Borrow(number)) = bench.due_borrow() {
            bench.succeed(number);
            order.push(number);
        }
    }
    let expected: Vec<u64> = (1500..2000).chain(0..1500).collect();
    assert_eq!(order, expected);
    let passed = bench.passed();
    assert!((DELAY.mul_f64(0.99)..=DELAY).contains(&passed), "{passed:?}");
}

#[test]
fn a_few_forgotten_leases_do_not_wait_for_a_whole_interval() {
    let mut bench = Bench::new(9);
    (0..3).for_each(|number| bench.insert(number, TTL));
    (0..3).for_each(|number| bench.forget(number));
    for number in 0..3 {
        bench.now = bench.now.max(bench.schedule.next_borrow(bench.now).unwrap());
        assert_eq!(bench.due_borrow(), Some(Due::Borrow(number)));
    }
    assert!(bench.passed() <= 3 * LONGEST_GAP);
}

#[test]
fn a_forgotten_lease_that_cannot_be_borrowed_again_is_tried_every_second_and_then_lost() {
    let mut bench = Bench::new(10);
    bench.insert(1, TTL);
    bench.forget(1);
    let mut tries = 0;
    let lost = loop {
        if let Some(due) = bench.due_borrow() {
            assert_eq!(due, Due::Borrow(1));
            tries += 1;
            bench.fail(1);
        }
        let next = [bench.schedule.next(), bench.schedule.next_borrow(bench.now)];
        bench.now = bench.now.max(next.into_iter().flatten().min().unwrap());
        if let Some(due) = bench.due() {
            break due;
        }
    };
    assert_eq!((lost, bench.passed()), (Due::Lost(1), BELIEF));
    assert!((54..=61).contains(&tries), "{tries}");
}

#[test]
fn a_lease_set_aside_waits_until_it_is_queued_or_lost() {
    let mut bench = Bench::new(11);
    bench.insert_worker(1);
    bench.insert_worker(2);
    bench.aside(1);
    bench.aside(2);
    assert_eq!((bench.due(), bench.due_borrow()), (None, None));
    bench.forget(1);
    assert_eq!(bench.due_borrow(), Some(Due::Borrow(1)));
    assert_eq!(bench.step(), Due::Lost(2));
    assert_eq!(bench.passed(), BELIEF);
}

#[test]
fn while_the_link_is_down_few_calls_go_out_and_every_lease_is_still_lost_in_time() {
    let mut bench = Bench::new(12);
    (0..5000).for_each(|number| bench.insert(number, TTL));
    bench.link.failed(bench.now);
    let (mut calls, mut lost) = (0, 0);
    while bench.schedule.next().is_some() {
        match bench.step() {
            Due::KeepAlive(number) => {
                calls += 1;
                bench.fail(number);
            }
            Due::Lost(_) => {
                assert_eq!(bench.passed(), BELIEF);
                lost += 1;
            }
            due => panic!("{due:?} without anything forgotten"),
        }
    }
    assert_eq!(lost, 5000);
    assert!(calls <= 16 * 61, "{calls}");
}

#[test]
fn a_removed_lease_is_never_due_again() {
    let mut bench = Bench::new(13);
    (0..3).for_each(|number| bench.insert(number, TTL));
    assert!(!bench.remove(0));
    let Due::KeepAlive(calling) = bench.step() else { panic!("a keep-alive comes first") };
    assert!(bench.remove(calling));
    bench.succeed(calling);
    bench.fail(calling);
    let other = 3 - calling;
    assert_eq!(bench.step(), Due::KeepAlive(other));
    assert_eq!(bench.schedule.next(), None);
}

#[test]
fn a_hurried_lease_is_due_at_once_unless_a_call_is_in_flight() {
    let mut bench = Bench::new(14);
    bench.insert(1, TTL);
    bench.hurry(1);
    assert_eq!(bench.due(), Some(Due::KeepAlive(1)));
    bench.hurry(1);
    assert_eq!(bench.due(), None);
}

#[test]
fn a_new_lease_is_due_when_it_is_queued_and_not_after_it_was_taken() {
    let mut bench = Bench::new(15);
    for number in 0..100 {
        bench.insert_new(number, false, TTL);
        assert_eq!(bench.schedule.next(), None);
        bench.add_new(number);
        assert!(bench.schedule.next().unwrap() <= bench.now + DELAY);
        // The lease is in the queue now, so the second call adds no entry.
        bench.add_new(number);
        assert!(!bench.remove(number));
        assert_eq!(bench.schedule.next(), None);
    }
    bench.insert_new(7, false, TTL);
    assert!(bench.take(7) && !bench.take(7));
    bench.add_new(7);
    assert_eq!(bench.schedule.next(), None);
    bench.succeed(7);
    assert!(bench.schedule.next().unwrap() <= bench.now + DELAY);
    bench.insert_new(8, false, TTL);
    assert!(!bench.remove(8), "no call is under way");
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    Extended,
    Failed,
    Forgotten,
}

proptest! {
    /// For any answers and any delays of the server: a lease that is not lost and has no call in
    /// flight is scheduled, and it is lost only 95 % of its TTL after its last success.
    #[test]
    fn every_lease_is_scheduled_until_it_is_lost(
        seed: u64,
        answers in prop::collection::vec(
            (prop_oneof![Just(Answer::Extended), Just(Answer::Failed), Just(Answer::Forgotten)], 0u64..5000),
            1..200,
        ),
    ) {
        let mut bench = Bench::new(seed);
        (0..4).for_each(|number| bench.insert(number, TTL));
        let mut proven = [bench.now; 4];
        let mut held = 4;
        for (answer, took) in answers {
            if held == 0 {
                prop_assert_eq!(bench.schedule.next(), None);
                break;
            }
            let next = [bench.schedule.next(), bench.schedule.next_borrow(bench.now)];
            bench.now = bench.now.max(next.into_iter().flatten().min().expect("nothing is forgotten by accident"));
            let sent = bench.now;
            let Some(due) = bench.due_borrow().or_else(|| bench.due()) else { continue };
            bench.now += Duration::from_millis(took);
            match (due, answer) {
                (Due::Lost(number), _) => {
                    prop_assert!(sent - proven[usize::try_from(number).unwrap()] >= BELIEF);
                    held -= 1;
                }
                (Due::Borrow(number) | Due::KeepAlive(number), Answer::Extended) => {
                    bench.succeed_with(number, None, sent);
                    proven[usize::try_from(number).unwrap()] = sent;
                }
                (Due::KeepAlive(number), Answer::Forgotten) => bench.forget(number),
                (Due::Borrow(number) | Due::KeepAlive(number), _) => bench.fail(number),
            }
        }
    }

    /// After any operations in any order, each waiting lease has one entry in the queue, and the
    /// queue has no other entry.
    #[test]
    fn the_queue_holds_exactly_the_leases_that_wait(
        seed: u64,
        steps in prop::collection::vec((0u8..12, 0u64..6, 0u64..30_000), 1..100),
    ) {
        let mut bench = Bench::new(seed);
        for (what, number, pause) in steps {
            bench.now += Duration::from_millis(pause);
            match what {
                // The core gives the number of a held lease to no other lease.
                0 | 1 if !bench.leases.held.contains_key(&number) => bench.insert(number, TTL),
                10 if !bench.leases.held.contains_key(&number) => {
                    bench.insert_new(number, false, TTL);
                }
                0 | 1 | 10 => {}
                11 => bench.add_new(number),
                2 => drop(bench.remove(number)),
                3 => bench.succeed(number),
                4 => bench.fail(number),
                5 => bench.forget(number),
                6 => bench.aside(number),
                7 => bench.hurry(number),
                8 => drop(bench.take(number)),
                _ => drop(bench.due_borrow().or_else(|| bench.due())),
            }
            let held = bench.leases.held.iter();
            let waiting = held.filter_map(|(number, held)| Some((held.state.due()?, *number)));
            prop_assert_eq!(waiting.collect::<BTreeSet<_>>(), bench.schedule.queue.clone());
        }
    }
}
