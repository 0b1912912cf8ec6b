//! The stream that carries keep-alives in batches: when it is opened, what is in flight on it, and
//! which leases it must name.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use rand::RngExt;

use super::lease::KeepAliveAnswer;
use super::schedule::backoff;
use crate::error::Error;

/// Most keys of one batch, by the contract of the wire.
pub(super) const MOST_KEYS: usize = 1000;

/// Most batches that wait for their answers at once.
pub(crate) const MOST_BATCHES: usize = 32;

/// How long the answer to a batch may take before the stream counts as broken.
pub(super) const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// How long a new lease may wait to be named together with others.
pub(super) const NAME_WITHIN: Duration = Duration::from_millis(50);

/// Most new leases that wait to be named instead of for a keep-alive: ten batches, a fifth of a second.
const MOST_UNNAMED: usize = 10 * MOST_KEYS;

/// The pause between two batches of names. A new stream must name every lease that is held.
const NAME_PAUSE: Duration = Duration::from_millis(20);

/// The pauses between attempts to attach double from the first to the longest.
pub(super) const FIRST_PAUSE: Duration = Duration::from_secs(1);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The pause before the next attempt at a server that has no room for a stream and other calls.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(30);

/// The pause before the next attempt at a server that does not know the stream.
pub(super) const NOT_KNOWN_PAUSE: Duration = Duration::from_secs(300);

/// Why a stream has ended, or was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detached {
    /// The server does not know the stream.
    Unknown,
    /// The server, or a proxy in front of it, has no room for other calls beside the stream.
    NoRoom,
    /// The server is about to stop.
    Draining,
    /// It broke.
    Broken,
}

/// An event of the stream.
#[derive(Debug)]
pub(crate) enum StreamEvent {
    /// The server has accepted it.
    Opened,
    /// The answers for the keys at some places of a batch. All other keys have their full TTL again.
    Answer { batch: u64, places: HashMap<u32, KeepAliveAnswer> },
    /// The lease of this key was revoked.
    Revoked { key: String, reason: Error },
    /// It ended, or could not be opened.
    Over(Detached),
}

/// Keep-alives that share one message.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) number: u64,
    pub(crate) keys: Vec<String>,
}

/// A batch that waits for its answer.
#[derive(Debug)]
pub(super) struct InFlight {
    /// The leases in it, in the order of their keys.
    pub(super) numbers: Vec<u64>,
    /// When it was sent.
    pub(super) sent: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// There is no stream, and none is opened before this time.
    Off(Option<Instant>),
    Opening,
    Open,
}

/// The stream of one pool, without its I/O.
#[derive(Debug)]
pub(super) struct Stream {
    state: State,
    /// Whether the driver must drop its stream.
    pub(super) is_given_up: bool,
    /// How many streams broke since one worked.
    failures: u32,
    /// In the order in which they were sent, which is the order of their deadlines.
    batches: BTreeMap<u64, InFlight>,
    last: u64,
    /// Leases that this stream has not named yet. Until then no revocation of them is pushed.
    pub(super) unnamed: VecDeque<u64>,
    name_at: Option<Instant>,
}

impl Stream {
    /// Makes one that is not open.
    pub(super) fn new() -> Self {
        Self {
            state: State::Off(None),
            is_given_up: false,
            failures: 0,
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
            State::Off(until) => Some(until.unwrap_or(now)),
            State::Opening | State::Open => None,
        }
    }

    /// Returns whether the driver must drop its stream, once.
    pub(super) fn take_given_up(&mut self) -> bool {
        std::mem::take(&mut self.is_given_up)
    }

    /// Returns whether a stream may be opened at `now`, and counts on it being opened.
    pub(super) fn begin_opening(&mut self, now: Instant) -> bool {
        let is_due = self.opens_at(now).is_some_and(|at| at <= now);
        if is_due {
            self.state = State::Opening;
        }
        is_due
    }

    /// Notes that the server has accepted the stream, which must name all of `held`.
    pub(super) fn opened(&mut self, held: impl Iterator<Item = u64>, now: Instant) {
        self.state = State::Open;
        self.unnamed = held.collect();
        self.name_at = Some(now);
    }

    /// Notes that the stream has ended, and returns the batches that will not be answered.
    pub(super) fn over(
        &mut self,
        why: Detached,
        now: Instant,
        rng: &mut impl RngExt,
    ) -> Vec<InFlight> {
        let pause = match why {
            Detached::Unknown => backoff(1, NOT_KNOWN_PAUSE, NOT_KNOWN_PAUSE, rng),
            Detached::NoRoom => backoff(1, NO_ROOM_PAUSE, NO_ROOM_PAUSE, rng),
            Detached::Draining | Detached::Broken => {
                self.failures = self.failures.saturating_add(1);
                backoff(self.failures, FIRST_PAUSE, LONGEST_PAUSE, rng)
            }
        };
        self.state = State::Off(Some(now + pause));
        self.unnamed = VecDeque::new();
        std::mem::take(&mut self.batches).into_values().collect()
    }

    /// Whether one more batch may be sent.
    pub(super) fn has_room(&self) -> bool {
        self.is_open() && self.batches.len() < MOST_BATCHES
    }

    /// Whether a batch waits for its answer.
    pub(super) fn has_batches(&self) -> bool {
        !self.batches.is_empty()
    }

    /// Returns when the oldest batch is too late, or the next batch of names is due.
    pub(super) fn next_time(&self) -> Option<Instant> {
        let late = self.batches.values().next().map(|batch| batch.sent + ANSWER_DEADLINE);
        let naming = self.name_at.filter(|_| self.has_room() && !self.unnamed.is_empty());
        late.into_iter().chain(naming).min()
    }

    /// Whether an answer is too late.
    pub(super) fn is_late(&self, now: Instant) -> bool {
        self.batches.values().next().is_some_and(|batch| now >= batch.sent + ANSWER_DEADLINE)
    }

    /// Whether a batch of names is due. Any other batch takes names along, too.
    pub(super) fn naming_is_due(&self, now: Instant) -> bool {
        !self.unnamed.is_empty() && self.name_at.is_some_and(|at| at <= now)
    }

    /// Whether a lease that is granted now will be named long before `interval` has passed.
    pub(super) fn names_within(&self, interval: Duration) -> bool {
        self.is_open() && interval >= NAME_WITHIN * 10 && self.unnamed.len() < MOST_UNNAMED
    }

    /// Lets the stream name a new lease soon.
    pub(super) fn name(&mut self, number: u64, now: Instant) {
        if !self.is_open() {
            return;
        }
        if self.unnamed.is_empty() {
            self.name_at = Some(now + NAME_WITHIN);
        }
        self.unnamed.push_back(number);
    }

    /// Takes the next lease to name.
    pub(super) fn next_unnamed(&mut self, now: Instant) -> Option<u64> {
        self.name_at = Some(now + NAME_PAUSE);
        self.unnamed.pop_front()
    }

    /// Notes that a batch is sent now, and returns its number.
    pub(super) fn send(&mut self, numbers: Vec<u64>, now: Instant) -> u64 {
        self.last += 1;
        self.batches.insert(self.last, InFlight { numbers, sent: now });
        self.last
    }

    /// Takes the batch of an answer. It shows that the stream works.
    pub(super) fn answered(&mut self, batch: u64) -> Option<InFlight> {
        let batch = self.batches.remove(&batch)?;
        self.failures = 0;
        Some(batch)
    }
}
