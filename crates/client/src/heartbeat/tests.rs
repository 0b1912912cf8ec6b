use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;

const DELAY: Duration = Duration::from_secs(20);
const TTL: Duration = Duration::from_secs(60);

/// A schedule, its link, its dice and the time, which only the test moves.
struct Bench {
    heartbeat: Heartbeat,
    link: Link,
    rng: StdRng,
    start: Instant,
    now: Instant,
}

impl Bench {
    fn new(seed: u64) -> Self {
        let now = Instant::now();
        let (heartbeat, link) = (Heartbeat::new(DELAY, false), Link::default());
        Self { heartbeat, link, rng: StdRng::seed_from_u64(seed), start: now, now }
    }

    fn insert(&mut self, number: u64, ttl: Duration) {
        self.heartbeat.insert(number, false, ttl, self.now, self.now, &mut self.rng);
    }

    fn insert_worker(&mut self, number: u64) {
        self.heartbeat.insert(number, true, TTL, self.now, self.now, &mut self.rng);
    }

    /// Moves the time to the next beat or loss and returns it.
    fn step(&mut self) -> Due {
        loop {
            self.now = self.now.max(self.heartbeat.next().expect("something is scheduled"));
            if let Some(due) = self.heartbeat.due(self.now, &mut self.link, &mut self.rng) {
                return due;
            }
        }
    }

    fn due(&mut self) -> Option<Due> {
        self.heartbeat.due(self.now, &mut self.link, &mut self.rng)
    }

    fn due_borrow(&mut self) -> Option<Due> {
        self.heartbeat.due_borrow(self.now, &mut self.link, &mut self.rng)
    }

    fn succeed(&mut self, number: u64) {
        self.heartbeat.succeeded(number, None, self.now, self.now, &mut self.rng);
    }

    fn fail(&mut self, number: u64) {
        self.heartbeat.failed(number, self.now, &mut self.rng);
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
    // The TTL of an extension counts from then on.
    bench.heartbeat.succeeded(1, Some(TTL), bench.now, bench.now, &mut bench.rng);
    let before = bench.now;
    bench.step();
    assert!(bench.now - before >= DELAY.mul_f64(0.94));
}

#[test]
fn a_ttl_of_nothing_does_not_make_the_schedule_spin() {
    let mut bench = Bench::new(4);
    bench.insert(1, Duration::from_nanos(1));
    for _ in 0..100 {
        assert_eq!(bench.step(), Due::KeepAlive(1));
        bench.succeed(1);
    }
    assert!(bench.passed() >= SHORTEST.mul_f64(0.95 * 99.0));
}

#[test]
fn after_a_failure_the_next_try_follows_every_second_until_it_works_again() {
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
fn a_lease_is_lost_exactly_one_ttl_after_the_last_success_was_sent() {
    let mut bench = Bench::new(6);
    bench.insert(1, TTL);
    bench.step();
    let sent = bench.now;
    // The answer took a while; the TTL of the server began no later than when it was sent.
    bench.now += Duration::from_secs(3);
    bench.heartbeat.succeeded(1, None, sent, bench.now, &mut bench.rng);
    let lost = loop {
        match bench.step() {
            Due::KeepAlive(number) => bench.fail(number),
            due => break due,
        }
    };
    assert_eq!(lost, Due::Lost(1));
    assert_eq!(bench.now - sent, TTL);
    assert_eq!(bench.heartbeat.next(), None);
}

#[test]
fn a_process_that_slept_through_a_ttl_asks_before_it_gives_up() {
    let mut bench = Bench::new(7);
    bench.insert(1, TTL);
    bench.now += 3 * TTL;
    assert_eq!(bench.step(), Due::KeepAlive(1));
    // The server forgot it: it is borrowed again, not lost.
    bench.heartbeat.forgotten(1, bench.now);
    assert_eq!(bench.due(), None);
    assert_eq!(bench.due_borrow(), Some(Due::Borrow(1)));
}

#[test]
fn forgotten_leases_are_borrowed_again_sessions_first_and_paced_over_one_interval() {
    let mut bench = Bench::new(8);
    for number in 0..2000 {
        if number < 1500 { bench.insert_worker(number) } else { bench.insert(number, TTL) }
    }
    (0..2000).for_each(|number| bench.heartbeat.forgotten(number, bench.now));
    let mut order = Vec::new();
    while let Some(at) = bench.heartbeat.next_borrow(bench.now) {
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
    (0..3).for_each(|number| bench.heartbeat.forgotten(number, bench.now));
    for number in 0..3 {
        bench.now = bench.now.max(bench.heartbeat.next_borrow(bench.now).unwrap());
        assert_eq!(bench.due_borrow(), Some(Due::Borrow(number)));
    }
    assert!(bench.passed() <= 3 * LONGEST_GAP);
}

#[test]
fn a_forgotten_lease_that_cannot_be_had_again_is_tried_every_second_and_then_lost() {
    let mut bench = Bench::new(10);
    bench.insert(1, TTL);
    bench.heartbeat.forgotten(1, bench.now);
    let mut tries = 0;
    let lost = loop {
        if let Some(due) = bench.due_borrow() {
            assert_eq!(due, Due::Borrow(1));
            tries += 1;
            bench.fail(1);
        }
        let next = [bench.heartbeat.next(), bench.heartbeat.next_borrow(bench.now)];
        bench.now = bench.now.max(next.into_iter().flatten().min().unwrap());
        if let Some(due) = bench.due() {
            break due;
        }
    };
    assert_eq!((lost, bench.passed()), (Due::Lost(1), TTL));
    assert!((57..=64).contains(&tries), "{tries}");
}

#[test]
fn a_lease_taken_aside_waits_until_it_is_lined_up_or_lost() {
    let mut bench = Bench::new(11);
    bench.insert_worker(1);
    bench.insert_worker(2);
    bench.heartbeat.aside(1, bench.now);
    bench.heartbeat.aside(2, bench.now);
    assert_eq!((bench.due(), bench.due_borrow()), (None, None));
    bench.heartbeat.forgotten(1, bench.now);
    assert_eq!(bench.due_borrow(), Some(Due::Borrow(1)));
    assert_eq!(bench.step(), Due::Lost(2));
    assert_eq!(bench.passed(), TTL);
}

#[test]
fn while_the_link_is_down_few_calls_go_out_and_every_lease_is_still_lost_in_time() {
    let mut bench = Bench::new(12);
    (0..5000).for_each(|number| bench.insert(number, TTL));
    bench.link.failed(bench.now);
    let (mut calls, mut lost) = (0, 0);
    while bench.heartbeat.next().is_some() {
        match bench.step() {
            Due::KeepAlive(number) => {
                calls += 1;
                bench.fail(number);
            }
            Due::Lost(_) => {
                assert_eq!(bench.passed(), TTL);
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
    assert!(!bench.heartbeat.remove(0));
    let Due::KeepAlive(calling) = bench.step() else { panic!("a keep-alive comes first") };
    assert!(bench.heartbeat.remove(calling));
    bench.succeed(calling);
    bench.fail(calling);
    let other = 3 - calling;
    assert_eq!(bench.step(), Due::KeepAlive(other));
    assert_eq!(bench.heartbeat.next(), None);
}

#[test]
fn a_hurried_lease_is_due_at_once_unless_a_call_is_under_way() {
    let mut bench = Bench::new(14);
    bench.insert(1, TTL);
    bench.heartbeat.hurry(1, bench.now);
    assert_eq!(bench.due(), Some(Due::KeepAlive(1)));
    bench.heartbeat.hurry(1, bench.now);
    assert_eq!(bench.due(), None);
}

#[test]
fn a_new_lease_is_due_when_it_is_lined_up_and_not_once_it_was_taken() {
    let mut bench = Bench::new(15);
    for number in 0..100 {
        bench.heartbeat.insert_new(number, false, TTL, bench.now);
        assert_eq!(bench.heartbeat.next(), None);
        bench.heartbeat.line_up_new(number, bench.now, &mut bench.rng);
        assert!(bench.heartbeat.next().unwrap() <= bench.now + DELAY);
        // It has a place of its own now.
        bench.heartbeat.line_up_new(number, bench.now, &mut bench.rng);
        assert!(!bench.heartbeat.remove(number));
        assert_eq!(bench.heartbeat.next(), None);
    }
    bench.heartbeat.insert_new(7, false, TTL, bench.now);
    assert!(bench.heartbeat.take(7) && !bench.heartbeat.take(7));
    bench.heartbeat.line_up_new(7, bench.now, &mut bench.rng);
    assert_eq!(bench.heartbeat.next(), None);
    bench.succeed(7);
    assert!(bench.heartbeat.next().unwrap() <= bench.now + DELAY);
    bench.heartbeat.insert_new(8, false, TTL, bench.now);
    assert!(!bench.heartbeat.remove(8), "no call is under way");
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    Extended,
    Failed,
    Forgotten,
}

proptest! {
    /// Whatever the server answers and however long it takes, a lease that is neither lost nor
    /// under way is always scheduled, and is lost only a full TTL after its last success.
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
                prop_assert_eq!(bench.heartbeat.next(), None);
                break;
            }
            let next = [bench.heartbeat.next(), bench.heartbeat.next_borrow(bench.now)];
            bench.now = bench.now.max(next.into_iter().flatten().min().expect("nothing is forgotten by accident"));
            let sent = bench.now;
            let Some(due) = bench.due_borrow().or_else(|| bench.due()) else { continue };
            bench.now += Duration::from_millis(took);
            match (due, answer) {
                (Due::Lost(number), _) => {
                    prop_assert!(sent - proven[usize::try_from(number).unwrap()] >= TTL);
                    held -= 1;
                }
                (Due::Borrow(number) | Due::KeepAlive(number), Answer::Extended) => {
                    bench.heartbeat.succeeded(number, None, sent, bench.now, &mut bench.rng);
                    proven[usize::try_from(number).unwrap()] = sent;
                }
                (Due::KeepAlive(number), Answer::Forgotten) => bench.heartbeat.forgotten(number, bench.now),
                (Due::Borrow(number) | Due::KeepAlive(number), _) => bench.fail(number),
            }
        }
    }

    /// Whatever happens to leases, in whatever order, each that waits has one place in the queue,
    /// and nothing else has one.
    #[test]
    fn the_queue_holds_exactly_the_leases_that_wait(
        seed: u64,
        steps in prop::collection::vec((0u8..12, 0u64..6, 0u64..30_000), 1..100),
    ) {
        let mut bench = Bench::new(seed);
        for (what, number, pause) in steps {
            bench.now += Duration::from_millis(pause);
            match what {
                // A number is never used again while its lease is there.
                0 | 1 if !bench.heartbeat.beats.contains_key(&number) => bench.insert(number, TTL),
                10 if !bench.heartbeat.beats.contains_key(&number) => {
                    bench.heartbeat.insert_new(number, false, TTL, bench.now);
                }
                0 | 1 | 10 => {}
                11 => bench.heartbeat.line_up_new(number, bench.now, &mut bench.rng),
                2 => drop(bench.heartbeat.remove(number)),
                3 => bench.succeed(number),
                4 => bench.fail(number),
                5 => bench.heartbeat.forgotten(number, bench.now),
                6 => bench.heartbeat.aside(number, bench.now),
                7 => bench.heartbeat.hurry(number, bench.now),
                8 => drop(bench.heartbeat.take(number)),
                _ => drop(bench.due_borrow().or_else(|| bench.due())),
            }
            let heartbeat = &bench.heartbeat;
            let waiting = heartbeat.beats.iter().filter_map(|(n, beat)| beat.due.map(|due| (due, *n)));
            prop_assert_eq!(waiting.collect::<BTreeSet<_>>(), heartbeat.queue.clone());
        }
    }
}
