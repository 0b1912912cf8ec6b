//! The stream that carries keep-alives in batches: when it is opened, what is in flight on it, and
//! which leases it must name. And whether the server can be reached at all.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use rand::{Rng, RngExt as _};

use super::lease::{Answered, KeepAliveAnswer};
use super::schedule::Due;
use super::{Core, Output, Phase};
use crate::error::Error;

/// Most keys of one batch, by the contract of the wire.
const MOST_KEYS: usize = 1000;

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

/// How much too early a keep-alive may be sent together with one that is due.
const EARLY: Duration = Duration::from_millis(100);

/// How many calls per [`WINDOW`] test whether the server is back.
const PROBES: u32 = 16;
pub(super) const WINDOW: Duration = Duration::from_secs(1);

/// How old the last failure of an outage may be beyond the length of the outage.
const FRESH: Duration = Duration::from_secs(5);

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
    is_given_up: bool,
    /// The pause after the next failure.
    pause: Duration,
    /// In the order in which they were sent, which is the order of their deadlines.
    batches: BTreeMap<u64, InFlight>,
    last: u64,
    /// Leases that this stream has not named yet. Until then no revocation of them is pushed.
    unnamed: VecDeque<u64>,
    name_at: Option<Instant>,
}

impl Stream {
    /// Makes one that is not open.
    pub(super) fn new() -> Self {
        Self {
            state: State::Off(None),
            is_given_up: false,
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
            State::Off(until) => Some(until.unwrap_or(now)),
            State::Opening | State::Open => None,
        }
    }

    /// Returns what the driver must do about the stream at `now`.
    pub(super) fn poll_output(&mut self, is_wanted: bool, now: Instant) -> Option<Output> {
        if std::mem::take(&mut self.is_given_up) {
            return Some(Output::CloseStream);
        }
        if is_wanted && self.opens_at(now).is_some_and(|at| at <= now) {
            self.state = State::Opening;
            return Some(Output::OpenStream);
        }
        None
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
        // After a restart of the server not all of its clients come back at the same moment.
        let pause = pause.mul_f64(rng.random_range(0.5..=1.0));
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
        self.pause = FIRST_PAUSE;
        Some(batch)
    }
}

impl Core {
    pub(super) fn wants_stream(&self) -> bool {
        self.phase == Phase::Open && !self.leases.held.is_empty()
    }

    /// Handles an event of the stream.
    pub(crate) fn handle_stream(&mut self, event: StreamEvent, now: Instant) {
        match event {
            StreamEvent::Opened => {
                tracing::debug!("keep-alives go over one stream");
                self.handle_link(true, now);
                // It names every held lease, so that a revocation is pushed.
                self.stream.opened(self.leases.held.keys().copied(), now);
            }
            StreamEvent::Answer { batch, places } => {
                if !self.handle_batch(batch, places, now) {
                    tracing::warn!(
                        "the server answered a batch that does not exist; attaching again"
                    );
                    self.handle_stream(StreamEvent::Over(Detached::Broken), now);
                    self.stream.is_given_up = true;
                }
            }
            StreamEvent::Revoked { key, reason } => {
                if let Some(number) = self.keys.get(key.as_str()).copied() {
                    self.revoke(number, &reason);
                }
            }
            StreamEvent::Over(why) => {
                let batches = self.close_stream(why, now);
                tracing::debug!(?why, batches = batches.len(), "keep-alives are unary calls");
                // No lease ends with the stream. What was in flight is due at once.
                for number in batches.into_iter().flat_map(|batch| batch.numbers) {
                    match self.leases.answered(number) {
                        Answered::Held(held) => self.schedule.interrupted(number, held, now),
                        Answered::Ended(_) => {}
                        Answered::Returning => self.unhold(number, now),
                    }
                }
            }
        }
    }

    /// Returns the batches that will not be answered. New leases that were not named get a keep-alive.
    fn close_stream(&mut self, why: Detached, now: Instant) -> Vec<InFlight> {
        for number in std::mem::take(&mut self.stream.unnamed) {
            if let Some(held) = self.leases.held_mut(number) {
                self.schedule.add_new(number, held, now);
            }
        }
        self.stream.over(why, now, &mut self.schedule.rng)
    }

    /// Returns the next batch that is due at `now`.
    pub(super) fn poll_batch(&mut self, now: Instant) -> Option<Batch> {
        if self.stream.is_late(now) {
            self.close_late_stream(now);
        }
        let beats = self.schedule.next().is_some_and(|at| at <= now);
        if !self.stream.has_room() || !(beats || self.stream.naming_is_due(now)) {
            return None;
        }
        let mut numbers = Vec::new();
        let mut keys = Vec::new();
        let until = now + EARLY.min(self.rules.delay / 8);
        // First what is due and what will be soon, then what must be named.
        while beats && numbers.len() < MOST_KEYS {
            match self.schedule.due(&mut self.leases, now, until, None) {
                Some(Due::KeepAlive(number)) => numbers.push(number),
                Some(Due::Lost(number)) => self.lose(number),
                Some(Due::Borrow(_)) | None => break,
            }
        }
        while numbers.len() < MOST_KEYS {
            let Some(number) = self.stream.next_unnamed(now) else { break };
            if let Some(held) = self.leases.held_mut(number)
                && self.schedule.take(number, held)
            {
                numbers.push(number);
            }
        }
        if numbers.is_empty() {
            return None;
        }
        keys.reserve_exact(numbers.len());
        keys.extend(numbers.iter().filter_map(|n| Some(self.leases.held.get(n)?.key.to_string())));
        Some(Batch { number: self.stream.send(numbers, now), keys })
    }

    /// Closes the stream, because an answer is too late.
    fn close_late_stream(&mut self, now: Instant) {
        let error = Error::unavailable("keep-alives over the stream were not answered in time");
        for batch in self.close_stream(Detached::Broken, now) {
            for number in batch.numbers {
                let fault = KeepAliveAnswer::Fault(error.clone());
                self.handle_one_keep_alive(number, fault, batch.sent, now);
            }
        }
        self.stream.is_given_up = true;
    }

    /// Handles the answer to a batch, and returns whether it is valid.
    fn handle_batch(
        &mut self,
        batch: u64,
        mut places: HashMap<u32, KeepAliveAnswer>,
        now: Instant,
    ) -> bool {
        let Some(batch) = self.stream.answered(batch) else { return false };
        self.handle_link(true, now);
        for (place, number) in (0..).zip(batch.numbers) {
            let answer = places.remove(&place).unwrap_or(KeepAliveAnswer::Extended(None));
            self.handle_one_keep_alive(number, answer, batch.sent, now);
        }
        places.is_empty()
    }
}

/// Whether the server can be reached, as the last calls showed.
///
/// While the server is away ten thousand leases would retry every second, and each try could cost an
/// attempt to connect. So only a few calls are made, until one is answered.
#[derive(Debug, Default)]
pub(super) struct Link {
    down: Option<Probing>,
}

#[derive(Debug)]
struct Probing {
    /// The first and the last failure since the server answered.
    failed: (Instant, Instant),
    /// The calls of the current [`WINDOW`], and when it began.
    sent: u32,
    since: Option<Instant>,
}

impl Link {
    /// Notes that the server answered, and returns whether that ends an outage.
    pub(super) fn answered(&mut self, now: Instant) -> bool {
        self.down.take().is_some_and(|Probing { failed: (first, _), .. }| now >= first + WINDOW)
    }

    /// Notes that a call failed in the network, or that the server could not serve it.
    pub(super) fn failed(&mut self, now: Instant) {
        let failed = (now, now);
        self.down.get_or_insert(Probing { failed, since: None, sent: 0 }).failed.1 = now;
    }

    /// Whether nothing was answered for `outage`, and the last failure is so recent that the server
    /// must be taken to be away.
    pub(super) fn is_down_since(&self, outage: Duration, now: Instant) -> bool {
        self.down.as_ref().is_some_and(|Probing { failed: (first, last), .. }| {
            now >= *first + outage && now <= *last + outage + FRESH
        })
    }

    /// Returns whether one more call may go out at `now`, and counts it.
    pub(super) fn admits(&mut self, now: Instant) -> bool {
        let Some(probing) = &mut self.down else { return true };
        if probing.since.is_none_or(|since| now >= since + WINDOW) {
            *probing = Probing { since: Some(now), sent: 0, ..*probing };
        }
        let admitted = probing.sent < PROBES;
        probing.sent += u32::from(admitted);
        admitted
    }
}
