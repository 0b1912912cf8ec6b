//! One stream to the server that carries keep-alives in batches: when to open it, what is under
//! way on it, and what it has to name. Pure: the I/O is the driver's.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use rand::{Rng, RngExt};

/// Most keys of one batch, by the wire's contract.
pub(crate) const MOST_KEYS: usize = 1000;

/// Most batches that wait for their answers at once.
pub(crate) const MOST_BATCHES: usize = 32;

/// How long the answer to a batch may take before the stream counts as broken.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// How long a new lease may wait for others to be named together with it.
const NAME_WITHIN: Duration = Duration::from_millis(50);

/// Most leases that may wait to be named and for nothing else: ten batches, a fifth of a second.
const MOST_UNNAMED: usize = 10 * MOST_KEYS;

/// The pause between two batches of names, when a stream begins with many leases held.
const NAME_PAUSE: Duration = Duration::from_millis(20);

/// The pauses between attempts to attach double from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How long a server that has no room for the stream beside other calls is left alone with it.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(30);

/// How long a server that does not know the stream is left alone with it.
const NOT_KNOWN_PAUSE: Duration = Duration::from_secs(300);

/// Why a stream is over, or never began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detached {
    /// The server does not know the stream.
    Unknown,
    /// The server, or what is in front of it, has no room for other calls beside it.
    NoRoom,
    /// The server is about to stop.
    Draining,
    /// It broke.
    Broken,
}

/// What the driver has to do about the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Open one.
    Open,
    /// Leave it as it is.
    Keep,
    /// Have none.
    Drop,
}

/// A batch that waits for its answer.
#[derive(Debug)]
pub(crate) struct Batch {
    /// The leases in it, in the order of their keys.
    pub(crate) numbers: Vec<u64>,
    /// When it was given out to be sent.
    pub(crate) sent: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// There is none, and none is tried before that time.
    Off {
        until: Option<Instant>,
    },
    Opening,
    Open,
}

/// The stream of one pool, as the keeper sees it.
#[derive(Debug)]
pub(crate) struct Attachment {
    state: State,
    pause: Duration,
    /// In the order they were sent, which is the order of their deadlines.
    batches: BTreeMap<u64, Batch>,
    last: u64,
    /// Leases that this stream has not named yet, so that nothing is pushed about them.
    unnamed: VecDeque<u64>,
    name_at: Option<Instant>,
}

impl Attachment {
    /// Makes one that is not open.
    pub(crate) fn new() -> Self {
        Self {
            state: State::Off { until: None },
            pause: FIRST_PAUSE,
            batches: BTreeMap::new(),
            last: 0,
            unnamed: VecDeque::new(),
            name_at: None,
        }
    }

    /// Whether keep-alives go over the stream.
    pub(crate) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Returns when to open a stream; `None` while there is one.
    pub(crate) fn opens_at(&self, now: Instant) -> Option<Instant> {
        match self.state {
            State::Off { until } => Some(until.unwrap_or(now)),
            State::Opening | State::Open => None,
        }
    }

    /// Returns what is to be done about the stream, and counts on it being done.
    pub(crate) fn wish(&mut self, wanted: bool, now: Instant) -> Wish {
        match self.state {
            State::Off { until } if wanted && until.is_none_or(|until| until <= now) => {
                self.state = State::Opening;
                Wish::Open
            }
            State::Off { .. } => Wish::Drop,
            State::Opening | State::Open => Wish::Keep,
        }
    }

    /// Notes that the server has accepted the stream. All of `held` is yet to be named on it.
    pub(crate) fn opened(&mut self, held: impl Iterator<Item = u64>, now: Instant) {
        self.state = State::Open;
        self.unnamed = held.collect();
        self.name_at = Some(now);
    }

    /// Notes that the stream is over, and returns the batches that nobody will answer.
    pub(crate) fn closed(&mut self, why: Detached, now: Instant, rng: &mut impl Rng) -> Vec<Batch> {
        let pause = match why {
            Detached::Unknown => NOT_KNOWN_PAUSE,
            Detached::NoRoom => NO_ROOM_PAUSE,
            Detached::Draining | Detached::Broken => {
                let pause = self.pause;
                self.pause = (pause * 2).min(LONGEST_PAUSE);
                pause
            }
        };
        // Every client of the server that went away comes back at a moment of its own.
        let pause = pause.mul_f64(rng.random_range(0.5..=1.0));
        self.state = State::Off { until: Some(now + pause) };
        self.unnamed = VecDeque::new();
        std::mem::take(&mut self.batches).into_values().collect()
    }

    /// Whether one more batch may be sent.
    pub(crate) fn has_room(&self) -> bool {
        self.is_open() && self.batches.len() < MOST_BATCHES
    }

    /// Returns how many batches wait for their answers.
    pub(crate) fn under_way(&self) -> usize {
        self.batches.len()
    }

    /// Returns when the answer that is waited for longest is too late, or names are due.
    pub(crate) fn next_time(&self) -> Option<Instant> {
        let late = self.batches.values().next().map(|batch| batch.sent + ANSWER_DEADLINE);
        let naming = self.name_at.filter(|_| self.has_room() && !self.unnamed.is_empty());
        late.into_iter().chain(naming).min()
    }

    /// Whether an answer is too late.
    pub(crate) fn is_late(&self, now: Instant) -> bool {
        self.batches.values().next().is_some_and(|batch| now >= batch.sent + ANSWER_DEADLINE)
    }

    /// Whether names are due for themselves. They go along with any other batch.
    pub(crate) fn naming_is_due(&self, now: Instant) -> bool {
        !self.unnamed.is_empty() && self.name_at.is_some_and(|at| at <= now)
    }

    /// Whether a lease that is granted now is named long before `interval` is over.
    pub(crate) fn names_within(&self, interval: Duration) -> bool {
        self.is_open() && interval >= NAME_WITHIN * 10 && self.unnamed.len() < MOST_UNNAMED
    }

    /// Takes what this stream has not named yet, before it is closed.
    pub(crate) fn take_unnamed(&mut self) -> VecDeque<u64> {
        std::mem::take(&mut self.unnamed)
    }

    /// Has a new lease named soon.
    pub(crate) fn name(&mut self, number: u64, now: Instant) {
        if !self.is_open() {
            return;
        }
        if self.unnamed.is_empty() {
            self.name_at = Some(now + NAME_WITHIN);
        }
        self.unnamed.push_back(number);
    }

    /// Takes a lease that is yet to be named.
    pub(crate) fn next_unnamed(&mut self, now: Instant) -> Option<u64> {
        self.name_at = Some(now + NAME_PAUSE);
        self.unnamed.pop_front()
    }

    /// Notes that a batch is sent now, and returns its number.
    pub(crate) fn sends(&mut self, numbers: Vec<u64>, now: Instant) -> u64 {
        self.last += 1;
        self.batches.insert(self.last, Batch { numbers, sent: now });
        self.last
    }

    /// Takes the batch that an answer names. An answered batch shows that the stream works.
    pub(crate) fn answered(&mut self, batch: u64) -> Option<Batch> {
        let batch = self.batches.remove(&batch)?;
        self.pause = FIRST_PAUSE;
        Some(batch)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    struct Bench {
        attachment: Attachment,
        rng: StdRng,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let now = Instant::now();
            Self { attachment: Attachment::new(), rng: StdRng::seed_from_u64(1), now }
        }

        fn open(&mut self, held: std::ops::Range<u64>) {
            assert_eq!(self.attachment.wish(true, self.now), Wish::Open);
            self.attachment.opened(held, self.now);
        }

        /// Closes the stream and returns how long none is opened.
        fn close(&mut self, why: Detached) -> Duration {
            self.attachment.closed(why, self.now, &mut self.rng);
            assert_eq!(self.attachment.wish(true, self.now), Wish::Drop);
            let at = self.attachment.opens_at(self.now).unwrap();
            let pause = at - self.now;
            self.now = at;
            pause
        }
    }

    #[test]
    fn a_stream_is_opened_once_and_only_when_it_is_wanted() {
        let mut bench = Bench::new();
        assert_eq!(bench.attachment.wish(false, bench.now), Wish::Drop);
        assert_eq!(bench.attachment.wish(true, bench.now), Wish::Open);
        assert_eq!(bench.attachment.wish(true, bench.now), Wish::Keep);
        assert!(!bench.attachment.is_open());
        bench.attachment.opened(0..0, bench.now);
        assert!(bench.attachment.is_open() && bench.attachment.has_room());
        assert_eq!(bench.attachment.opens_at(bench.now), None);
    }

    #[test]
    fn a_stream_that_keeps_breaking_is_tried_ever_more_rarely_until_it_works() {
        let mut bench = Bench::new();
        let mut longest = FIRST_PAUSE;
        for _ in 0..9 {
            bench.open(0..0);
            let pause = bench.close(Detached::Broken);
            assert!(pause <= longest && pause >= longest / 2, "{pause:?} of {longest:?}");
            longest = (longest * 2).min(LONGEST_PAUSE);
        }
        bench.open(0..0);
        let batch = bench.attachment.sends(vec![1], bench.now);
        assert!(bench.attachment.answered(batch).is_some());
        assert!(bench.close(Detached::Draining) <= FIRST_PAUSE);
    }

    #[test]
    fn a_server_that_does_not_know_the_stream_is_not_asked_again_for_minutes() {
        let mut bench = Bench::new();
        assert_eq!(bench.attachment.wish(true, bench.now), Wish::Open);
        assert!(bench.close(Detached::Unknown) >= NOT_KNOWN_PAUSE / 2);
        bench.open(0..0);
        assert!(bench.close(Detached::Broken) <= FIRST_PAUSE);
    }

    #[test]
    fn new_leases_are_named_together_and_those_held_before_at_once() {
        let mut bench = Bench::new();
        bench.attachment.name(1, bench.now);
        assert_eq!(bench.attachment.next_time(), None);
        bench.open(1..3);
        assert_eq!(bench.attachment.next_time(), Some(bench.now));
        let named: Vec<u64> =
            std::iter::from_fn(|| bench.attachment.next_unnamed(bench.now)).collect();
        assert_eq!(named, [1, 2]);
        bench.attachment.name(3, bench.now);
        bench.attachment.name(4, bench.now + NAME_WITHIN / 2);
        assert!(!bench.attachment.naming_is_due(bench.now));
        assert_eq!(bench.attachment.next_time(), Some(bench.now + NAME_WITHIN));
        assert!(bench.attachment.naming_is_due(bench.now + NAME_WITHIN));
    }

    #[test]
    fn few_batches_wait_at_once_and_the_oldest_says_when_the_stream_is_late() {
        let mut bench = Bench::new();
        bench.open(0..0);
        let start = bench.now;
        for number in 0..MOST_BATCHES as u64 {
            assert!(bench.attachment.has_room());
            bench.attachment.sends(vec![number], bench.now);
            bench.now += Duration::from_millis(1);
        }
        assert!(!bench.attachment.has_room());
        assert_eq!(bench.attachment.next_time(), Some(start + ANSWER_DEADLINE));
        assert!(!bench.attachment.is_late(bench.now));
        assert!(bench.attachment.is_late(start + ANSWER_DEADLINE));
        assert_eq!(bench.attachment.answered(1).unwrap().numbers, [0]);
        assert!(bench.attachment.answered(1).is_none());
        assert!(bench.attachment.has_room() && !bench.attachment.is_late(start + ANSWER_DEADLINE));
        let left = bench.attachment.closed(Detached::Broken, bench.now, &mut bench.rng);
        assert_eq!((left.len(), bench.attachment.under_way()), (MOST_BATCHES - 1, 0));
    }
}
