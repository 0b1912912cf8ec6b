//! When each lease is kept alive, borrowed again or given up.
//!
//! The schedule has one entry per lease that waits, in the order of their times. The state of the
//! lease says what it waits for.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use lease::BorrowId;
use rand::RngExt;
use rand::rngs::StdRng;

use super::lease::{Held, Lapse, Leases, Place, State};
use crate::error::Error;

/// The pause after a failed call.
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// The shortest interval between two keep-alives, whatever TTL a server says.
pub(super) const SHORTEST: Duration = Duration::from_millis(10);

/// The longest pause between two borrows of leases that the server forgot.
pub(super) const LONGEST_GAP: Duration = Duration::from_millis(50);

/// When a patient schedule loses a lease: later than any process runs.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// By which part of its interval a keep-alive may be early or late.
const SPREAD: f64 = 0.05;

/// How many calls per [`WINDOW`] test whether the server is back.
const PROBES: u32 = 16;
pub(super) const WINDOW: Duration = Duration::from_secs(1);

/// How old the last failure of an outage may be beyond the length of the outage.
const FRESH: Duration = Duration::from_secs(5);

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// The keep-alive of this lease, whose state is [`State::Calling`] now.
    KeepAlive(u64),
    /// The borrow of this lease, whose state is [`State::Borrowing`] now.
    Borrow(u64),
    /// The end of this lease: 95 % of its TTL have passed since its last successful call was sent.
    Lost(u64),
}

/// The order in which the leases of one pool are due.
#[derive(Debug)]
pub(super) struct Schedule {
    delay: Duration,
    /// Whether a lease is never lost because the server does not answer.
    patient: bool,
    /// Spreads keep-alives and retries.
    pub(super) rng: StdRng,
    /// One entry per lease whose state has a time. Entries that are due next are neighbours in
    /// memory: with many leases, cache misses are most of the cost of a keep-alive.
    pub(super) queue: BTreeSet<(Instant, u64)>,
    /// The forgotten leases in line, in the order in which they are borrowed again.
    sessions: VecDeque<u64>,
    workers: VecDeque<u64>,
    /// When the next one of the lines may be borrowed.
    not_before: Option<Instant>,
}

impl Schedule {
    /// Makes an empty schedule in which no lease waits longer than `delay` for its keep-alive; a
    /// `patient` one loses none.
    pub(super) fn new(delay: Duration, patient: bool, rng: StdRng) -> Self {
        Self {
            delay,
            patient,
            rng,
            queue: BTreeSet::new(),
            sessions: VecDeque::new(),
            workers: VecDeque::new(),
            not_before: None,
        }
    }

    /// Removes every lease.
    pub(super) fn clear(&mut self) {
        self.queue.clear();
        self.sessions.clear();
        self.workers.clear();
    }

    /// Returns the longest time between two keep-alives of a lease with this TTL.
    pub(super) fn interval(&self, ttl: Duration) -> Duration {
        self.delay.min(ttl / 3).max(SHORTEST)
    }

    /// Returns when a lease is lost that last lived at `proven`: before its server, whose clock may be up to
    /// 2 % faster than this one, can have given its slot to somebody else.
    pub(super) fn lost_at(&self, proven: Instant, ttl: Duration) -> Instant {
        proven + if self.patient { FOREVER } else { ttl * 19 / 20 }
    }

    /// Returns when to ask [`Schedule::due`] again; `None` when only an answer can change that.
    pub(super) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// Returns when to ask [`Schedule::due_borrow`] again; `None` when the lines are empty.
    pub(super) fn next_borrow(&self, now: Instant) -> Option<Instant> {
        let waiting = !self.sessions.is_empty() || !self.workers.is_empty();
        waiting.then(|| self.not_before.unwrap_or(now))
    }

    /// Schedules the first keep-alive of a new lease, anywhere in one interval: so leases that were
    /// granted together are spread.
    pub(super) fn add_new(&mut self, number: u64, held: &mut Held, now: Instant) {
        if matches!(held.state, State::New) {
            let due = now + self.anywhere(self.interval(held.ttl));
            self.put(number, held, State::Waiting(due));
        }
    }

    /// Schedules the borrow of a lease that no server has granted; `borrow` is the id of a borrow
    /// whose answer did not arrive.
    pub(super) fn add_offline(
        &mut self,
        number: u64,
        held: &mut Held,
        borrow: Option<BorrowId>,
        now: Instant,
    ) {
        let borrow = borrow.map(Box::new);
        held.state = State::Forgotten { due: now, place: Place::Pause, borrow };
        self.failed(number, held, None, now);
    }

    /// Takes a lease out of the queue. Nothing is due for it any more.
    pub(super) fn remove(&mut self, number: u64, held: &Held) {
        if let Some(due) = held.state.due() {
            self.queue.remove(&(due, number));
        }
    }

    /// Returns the next keep-alive or loss that is due. Keep-alives that are due until `until` come
    /// early.
    ///
    /// While the `link` is down it admits only a few calls per second. The others count as failed.
    pub(super) fn due(
        &mut self,
        leases: &mut Leases,
        now: Instant,
        until: Instant,
        mut link: Option<&mut Link>,
    ) -> Option<Due> {
        while let Some((at, number)) = self.queue.first().copied().filter(|(at, _)| *at <= until) {
            let held = leases.held_mut(number).expect("only held leases are in the queue");
            if at > now && !matches!(held.state, State::Waiting(_)) {
                // Only keep-alives come early.
                return None;
            }
            self.queue.pop_first();
            if held.lapse.is_failing() && now >= held.lost_at {
                return Some(Due::Lost(number));
            }
            match held.state {
                State::Waiting(_) if link.as_mut().is_none_or(|link| link.admits(now)) => {
                    held.state = State::Calling;
                    return Some(Due::KeepAlive(number));
                }
                State::Waiting(_) => self.failed(number, held, None, now),
                State::Forgotten { place: Place::Pause, .. } => self.line_up(number, held),
                // They can only be lost, which was checked above.
                _ => self.wait_at(None, number, held),
            }
        }
        None
    }

    /// Returns the next lease to borrow again at `now`, sessions before workers.
    ///
    /// The borrows of all leases of the pool are spread over one interval, so that a server that was
    /// restarted with an empty table is not overloaded.
    pub(super) fn due_borrow(
        &mut self,
        leases: &mut Leases,
        now: Instant,
        link: &mut Link,
    ) -> Option<Due> {
        let count = u32::try_from(leases.held.len()).unwrap_or(u32::MAX).max(1);
        while self.next_borrow(now).is_some_and(|at| at <= now) {
            let number = self.sessions.pop_front().or_else(|| self.workers.pop_front())?;
            let Some(held) = leases.held_mut(number) else { continue };
            let State::Forgotten { place: Place::Line, borrow, .. } = &mut held.state else {
                continue;
            };
            if !link.admits(now) {
                self.failed(number, held, None, now);
                continue;
            }
            // All retries have one id, so that a lost answer costs no second slot.
            let borrow = borrow.take();
            let doubted = borrow.is_some();
            let id = borrow.unwrap_or_else(|| Box::new(BorrowId(self.rng.random())));
            self.put(number, held, State::Borrowing { id, doubted });
            self.not_before = Some(now + (self.interval(held.ttl) / count).min(LONGEST_GAP));
            return Some(Due::Borrow(number));
        }
        None
    }

    /// Notes that a call sent at `sent` found the lease alive, or granted it again.
    ///
    /// After a failure the next keep-alive comes anywhere in the interval: all leases that waited
    /// for the server succeed at the same moment, and must be spread.
    pub(super) fn succeeded(
        &mut self,
        number: u64,
        held: &mut Held,
        ttl: Option<Duration>,
        sent: Instant,
        now: Instant,
    ) {
        let in_turn = matches!((&held.lapse, &held.state), (Lapse::None, State::Calling));
        held.ttl = ttl.unwrap_or(held.ttl);
        held.proven = sent;
        held.lost_at = self.lost_at(sent, held.ttl);
        held.lapse = Lapse::None;
        let interval = self.interval(held.ttl);
        let pause = if in_turn { self.around(interval) } else { self.anywhere(interval) };
        self.put(number, held, State::Waiting(now + pause));
    }

    /// Notes that a call failed, or could not be made: the next one follows in a second, or the
    /// loss when that comes first.
    pub(super) fn failed(
        &mut self,
        number: u64,
        held: &mut Held,
        fault: Option<Error>,
        now: Instant,
    ) {
        held.lapse.fail(fault);
        let due = (now + self.around(RETRY)).min(held.lost_at).max(now);
        self.remove(number, held);
        let place = Place::Pause;
        held.state = match std::mem::replace(&mut held.state, State::New) {
            State::Forgotten { borrow, .. } => State::Forgotten { due, place, borrow },
            State::Borrowing { id, doubted } => {
                State::Forgotten { due, place, borrow: doubted.then_some(id) }
            }
            _ => State::Waiting(due),
        };
        self.queue.insert((due, number));
    }

    /// Notes that a call was cancelled with the stream. A keep-alive is due at once.
    pub(super) fn interrupted(&mut self, number: u64, held: &mut Held, now: Instant) {
        self.put(number, held, State::Waiting(now));
    }

    /// Lets a lease that the server forgot be borrowed again: in its turn, or `aside` from the line
    /// until this is called again.
    ///
    /// It has time for the wait in the line, which takes up to one interval, even when the server was
    /// asked so late that the lease would be lost already.
    pub(super) fn forgotten(&mut self, number: u64, held: &mut Held, aside: bool, now: Instant) {
        held.lost_at = held.lost_at.max(now + held.ttl / 2);
        held.lapse.fail(None);
        if aside {
            self.wait_at(Some(Place::Aside), number, held);
        } else {
            self.line_up(number, held);
        }
    }

    fn line_up(&mut self, number: u64, held: &mut Held) {
        if !matches!(held.state, State::Forgotten { place: Place::Line, .. }) {
            let line = if held.is_worker() { &mut self.workers } else { &mut self.sessions };
            line.push_back(number);
            self.wait_at(Some(Place::Line), number, held);
        }
    }

    /// Lets a forgotten lease wait at `place`, or where it waits already, until it is lost.
    fn wait_at(&mut self, place: Option<Place>, number: u64, held: &mut Held) {
        let (before, borrow) = match &mut held.state {
            State::Forgotten { place, borrow, .. } => (*place, borrow.take()),
            _ => (Place::Pause, None),
        };
        let (due, place) = (held.lost_at, place.unwrap_or(before));
        self.put(number, held, State::Forgotten { due, place, borrow });
    }

    /// Puts all forgotten sessions into the line, because the server is back. Otherwise workers could
    /// come before them.
    pub(super) fn line_up_sessions(&mut self, leases: &mut Leases) {
        let is_waiting = |held: &Held| {
            !held.is_worker() && matches!(held.state, State::Forgotten { place: Place::Pause, .. })
        };
        let waiting = leases.held.iter().filter(|(_, held)| is_waiting(held));
        let mut waiting: Vec<u64> = waiting.map(|(number, _)| *number).collect();
        waiting.sort_unstable();
        for number in waiting {
            if let Some(held) = leases.held_mut(number) {
                self.line_up(number, held);
            }
        }
    }

    /// Makes the keep-alive of a held lease due at once, unless a call is in flight.
    pub(super) fn hurry(&mut self, number: u64, held: &mut Held, now: Instant) {
        if matches!(held.state, State::Waiting(due) if due > now) {
            self.put(number, held, State::Waiting(now));
        }
    }

    /// Takes the keep-alive of a held lease out of turn. Returns false if there is none, because a
    /// call is in flight or the lease is forgotten.
    pub(super) fn take(&mut self, number: u64, held: &mut Held) -> bool {
        if !matches!(held.state, State::New | State::Waiting(_)) {
            return false;
        }
        self.put(number, held, State::Calling);
        if matches!(held.lapse, Lapse::None) {
            held.lapse = Lapse::OutOfTurn;
        }
        true
    }

    /// Changes the state of a lease, and its entry in the queue with it.
    fn put(&mut self, number: u64, held: &mut Held, state: State) {
        self.remove(number, held);
        if let Some(due) = state.due() {
            self.queue.insert((due, number));
        }
        held.state = state;
    }

    /// Anywhere in (0, `interval`].
    fn anywhere(&mut self, interval: Duration) -> Duration {
        interval.mul_f64(1.0 - self.rng.random_range(0.0..1.0))
    }

    /// `interval`, a little longer or shorter.
    fn around(&mut self, interval: Duration) -> Duration {
        interval.mul_f64(self.rng.random_range(1.0 - SPREAD..=1.0 + SPREAD))
    }
}

/// Returns the pause after `failures` in a row, of which there is one at least. The pauses double from
/// `first` to `longest`, and each is up to a half shorter, so that clients do not retry together.
pub(crate) fn backoff(
    failures: u32,
    first: Duration,
    longest: Duration,
    rng: &mut impl RngExt,
) -> Duration {
    let pause = first.saturating_mul(1 << (failures.clamp(1, 17) - 1)).min(longest);
    pause.mul_f64(rng.random_range(0.5..=1.0))
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
