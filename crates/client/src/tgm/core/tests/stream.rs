//! When a stream is opened, and which leases it names.

use super::*;
use crate::tgm::core::stream::{
    ANSWER_DEADLINE, FIRST_PAUSE, LONGEST_PAUSE, NAME_WITHIN, NOT_KNOWN_PAUSE,
};

struct Bench {
    stream: Stream,
    rng: StdRng,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        let now = Instant::now();
        Self { stream: Stream::new(), rng: StdRng::seed_from_u64(1), now }
    }

    fn open(&mut self, held: std::ops::Range<u64>) {
        assert!(self.stream.begin_opening(self.now));
        self.stream.opened(held, self.now);
    }

    /// Closes the stream and returns the pause before the next stream may be opened.
    fn close(&mut self, why: Detached) -> Duration {
        self.stream.over(why, self.now, &mut self.rng);
        assert!(!self.stream.begin_opening(self.now));
        let at = self.stream.opens_at(self.now).unwrap();
        let pause = at - self.now;
        self.now = at;
        pause
    }
}

#[test]
fn a_stream_is_opened_once() {
    let mut bench = Bench::new();
    assert!(bench.stream.begin_opening(bench.now));
    assert!(!bench.stream.begin_opening(bench.now));
    assert!(!bench.stream.is_open());
    bench.stream.opened(0..0, bench.now);
    assert!(bench.stream.is_open() && bench.stream.has_room());
    assert_eq!(bench.stream.opens_at(bench.now), None);
}

#[test]
fn a_stream_that_keeps_breaking_is_opened_with_growing_pauses_until_it_works() {
    let mut bench = Bench::new();
    let mut longest = FIRST_PAUSE;
    for _ in 0..9 {
        bench.open(0..0);
        let pause = bench.close(Detached::Broken);
        assert!(pause <= longest && pause >= longest / 2, "{pause:?} of {longest:?}");
        longest = (longest * 2).min(LONGEST_PAUSE);
    }
    bench.open(0..0);
    let batch = bench.stream.send(vec![1], bench.now);
    assert!(bench.stream.answered(batch).is_some());
    assert!(bench.close(Detached::Draining) <= FIRST_PAUSE);
}

#[test]
fn a_server_that_does_not_know_the_stream_is_not_asked_again_for_minutes() {
    let mut bench = Bench::new();
    assert!(bench.stream.begin_opening(bench.now));
    assert!(bench.close(Detached::Unknown) >= NOT_KNOWN_PAUSE / 2);
    bench.open(0..0);
    assert!(bench.close(Detached::Broken) <= FIRST_PAUSE);
}

#[test]
fn new_leases_are_named_together_and_those_held_before_at_once() {
    let mut bench = Bench::new();
    bench.stream.name(1, bench.now);
    assert_eq!(bench.stream.next_time(), None);
    bench.open(1..3);
    assert_eq!(bench.stream.next_time(), Some(bench.now));
    let named: Vec<u64> = std::iter::from_fn(|| bench.stream.next_unnamed(bench.now)).collect();
    assert_eq!(named, [1, 2]);
    bench.stream.name(3, bench.now);
    bench.stream.name(4, bench.now + NAME_WITHIN / 2);
    assert!(!bench.stream.naming_is_due(bench.now));
    assert_eq!(bench.stream.next_time(), Some(bench.now + NAME_WITHIN));
    assert!(bench.stream.naming_is_due(bench.now + NAME_WITHIN));
}

#[test]
fn batches_in_flight_are_bounded_and_the_oldest_decides_whether_the_stream_is_late() {
    let mut bench = Bench::new();
    bench.open(0..0);
    let start = bench.now;
    for number in 0..MOST_BATCHES as u64 {
        assert!(bench.stream.has_room());
        bench.stream.send(vec![number], bench.now);
        bench.now += Duration::from_millis(1);
    }
    assert!(!bench.stream.has_room());
    assert_eq!(bench.stream.next_time(), Some(start + ANSWER_DEADLINE));
    assert!(!bench.stream.is_late(bench.now));
    assert!(bench.stream.is_late(start + ANSWER_DEADLINE));
    assert_eq!(bench.stream.answered(1).unwrap().numbers, [0]);
    assert!(bench.stream.answered(1).is_none());
    assert!(bench.stream.has_room() && !bench.stream.is_late(start + ANSWER_DEADLINE));
    let left = bench.stream.over(Detached::Broken, bench.now, &mut bench.rng);
    assert_eq!((left.len(), bench.stream.has_batches()), (MOST_BATCHES - 1, false));
}
