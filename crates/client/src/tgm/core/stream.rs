//! The one stream that carries keep-alives in batches: when to open it, what is in flight on it,
//! and what it has to name.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use rand::{Rng, RngExt};

use super::lease::KeepAliveAnswer;
use crate::error::Error;

/// Most keys of one batch, by the wire's contract.
pub(crate) const MOST_KEYS: usize = 1000;

/// Most batches that wait for their answers at once.
pub(crate) const MOST_BATCHES: usize = 32;

/// How long the answer to a batch may take before the stream counts as broken.
pub(super) const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// How long a new lease may wait for others to be named together with it.
pub(super) const NAME_WITHIN: Duration = Duration::from_millis(50);

/// Most leases that may wait to be named and for nothing else: ten batches, a fifth of a second.
const MOST_UNNAMED: usize = 10 * MOST_KEYS;

/// The pause between two batches of names, when a stream begins with many leases held.
const NAME_PAUSE: Duration = Duration::from_millis(20);

/// The pauses between attempts to attach double from the first to the longest.
pub(super) const FIRST_PAUSE: Duration = Duration::from_secs(1);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How long a server that has no room for the stream beside other calls is left alone with it.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(30);

/// How long a server that does not know the stream is left alone with it.
pub(super) const NOT_KNOWN_PAUSE: Duration = Duration::from_secs(300);

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

/// What came over the stream, or of it.
#[derive(Debug)]
pub(crate) enum StreamEvent {
    /// The server has accepted it.
    Opened,
    /// What became of the keys at some places of a batch; all others have their full TTL again.
    Answer { batch: u64, places: HashMap<u32, KeepAliveAnswer> },
    /// The lease of that key was revoked just now.
    Revoked { key: String, reason: Error },
    /// It ended by itself, or never began.
    Over(Detached),
}

/// Keep-alives that share one message.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) number: u64,
    pub(crate) keys: Vec<String>,
}

/// What the driver has to do about the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Open,
    Close,
}

/// A batch that waits for its answer.
#[derive(Debug)]
pub(super) struct InFlight {
    /// The leases in it, in the order of their keys.
    pub(super) numbers: Vec<u64>,
    /// When it was given out to be sent.
    pub(super) sent: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// There is none, and none is tried before that time.
    Off {
        until: Option<Instant>,
    },
    /// The driver has to drop it: it was given up here.
    GivenUp {
        until: Instant,
    },
    Opening,
    Open,
}

/// The stream of one pool, without its I/O.
#[derive(Debug)]
pub(super) struct Stream {
    state: State,
    pause: Duration,
    /// In the order they were sent, which is the order of their deadlines.
    batches: BTreeMap<u64, InFlight>,
    last: u64,
    /// Leases that this stream has not named yet, so that nothing is pushed about them.
    pub(super) unnamed: VecDeque<u64>,
    name_at: Option<Instant>,
}

impl Stream {
    /// Makes one that is not open.
    pub(super) fn new() -> Self {
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
    pub(super) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Returns when to open a stream; `None` while there is one.
    pub(super) fn opens_at(&self, now: Instant) -> Option<Instant> {
        match self.state {
            State::Off { until } => Some(until.unwrap_or(now)),
            State::GivenUp { until } => Some(until),
            State::Opening | State::Open => None,
        }
    }

    /// Returns what the driver has to do about the stream, and counts on it being done.
    pub(super) fn poll_wish(&mut self, wanted: bool, now: Instant) -> Option<Wish> {
        match self.state {
            State::GivenUp { until } => {
                self.state = State::Off { until: Some(until) };
                Some(Wish::Close)
            }
            State::Off { until } if wanted && until.is_none_or(|until| until <= now) => {
                self.state = State::Opening;
                Some(Wish::Open)
            }
            State::Off { .. } | State::Opening | State::Open => None,
        }
    }

    /// Notes that the server has accepted the stream. All of `held` is yet to be named on it.
    pub(super) fn opened(&mut self, held: impl Iterator<Item = u64>, now: Instant) {
        self.state = State::Open;
        self.unnamed = held.collect();
        self.name_at = Some(now);
    }

    /// Notes that the stream is over, and returns the batches that nobody will answer.
    pub(super) fn over(
        &mut self,
        why: Detached,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Vec<InFlight> {
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

    /// Has the driver drop a stream that is over for the core only.
    pub(super) fn give_up(&mut self) {
        if let State::Off { until: Some(until) } = self.state {
            self.state = State::GivenUp { until };
        }
    }

    /// Whether one more batch may be sent.
    pub(super) fn has_room(&self) -> bool {
        self.is_open() && self.batches.len() < MOST_BATCHES
    }

    /// Whether a batch waits for its answer.
    pub(super) fn has_batches(&self) -> bool {
        !self.batches.is_empty()
    }

    /// Returns when the answer that is waited for longest is too late, or names are due.
    pub(super) fn next_time(&self) -> Option<Instant> {
        let late = self.batches.values().next().map(|batch| batch.sent + ANSWER_DEADLINE);
        let naming = self.name_at.filter(|_| self.has_room() && !self.unnamed.is_empty());
        late.into_iter().chain(naming).min()
    }

    /// Whether an answer is too late.
    pub(super) fn is_late(&self, now: Instant) -> bool {
        self.batches.values().next().is_some_and(|batch| now >= batch.sent + ANSWER_DEADLINE)
    }

    /// Whether names are due for themselves. They go along with any other batch.
    pub(super) fn naming_is_due(&self, now: Instant) -> bool {
        !self.unnamed.is_empty() && self.name_at.is_some_and(|at| at <= now)
    }

    /// Whether a lease that is granted now is named long before `interval` is over.
    pub(super) fn names_within(&self, interval: Duration) -> bool {
        self.is_open() && interval >= NAME_WITHIN * 10 && self.unnamed.len() < MOST_UNNAMED
    }

    /// Has a new lease named soon.
    pub(super) fn name(&mut self, number: u64, now: Instant) {
        if !self.is_open() {
            return;
        }
        if self.unnamed.is_empty() {
            self.name_at = Some(now + NAME_WITHIN);
        }
        self.unnamed.push_back(number);
    }

    /// Takes a lease that is yet to be named.
    pub(super) fn next_unnamed(&mut self, now: Instant) -> Option<u64> {
        self.name_at = Some(now + NAME_PAUSE);
        self.unnamed.pop_front()
    }

    /// Notes that a batch is sent now, and returns its number.
    pub(super) fn sends(&mut self, numbers: Vec<u64>, now: Instant) -> u64 {
        self.last += 1;
        self.batches.insert(self.last, InFlight { numbers, sent: now });
        self.last
    }

    /// Takes the batch that an answer names. An answered batch shows that the stream works.
    pub(super) fn answered(&mut self, batch: u64) -> Option<InFlight> {
        let batch = self.batches.remove(&batch)?;
        self.pause = FIRST_PAUSE;
        Some(batch)
    }
}
