//! When each lease is kept alive, borrowed again or given up.
//!
//! Time and randomness are arguments, so every rule here is tested without waiting. The schedule has
//! one entry per lease that waits, in the order of their times; the lease itself says why it waits.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use lease::BorrowId;
use rand::{Rng, RngExt};

use super::lease::{Held, Lapse, Leases, Place, State};
use crate::error::Error;

/// How long a failed call waits for its next try.
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// The shortest interval between two beats, whatever TTL a server tells.
pub(super) const SHORTEST: Duration = Duration::from_millis(10);

/// The longest pause between two borrows of leases the server forgot.
pub(super) const LONGEST_GAP: Duration = Duration::from_millis(50);

/// When a patient schedule gives a lease up: after no process has ever run so long.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// How far a beat strays from its interval, either way.
const STRAY: f64 = 0.05;

/// How many calls per second look whether a server is back.
const PROBES: u32 = 16;

/// The time in which that many calls go out.
pub(super) const WINDOW: Duration = Duration::from_secs(1);

/// How much longer than an outage has to last its last failure still counts as the present.
const FRESH: Duration = Duration::from_secs(5);

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// The lease is to be kept alive. It waits for the answer.
    KeepAlive(u64),
    /// The lease is to be borrowed again. It waits for the answer.
    Borrow(u64),
    /// The lease is to be ended: one TTL has gone by since its last success was sent.
    Lost(u64),
}

/// The order in which the leases of one pool are due.
#[derive(Debug)]
pub(super) struct Schedule {
    delay: Duration,
    /// Whether a lease is never given up for want of an answer.
    patient: bool,
    /// One entry per lease whose state has a time. What is due next lies side by side here: with
    /// many leases, memory that is not in the cache is most of what a beat costs.
    pub(super) queue: BTreeSet<(Instant, u64)>,
    /// The leases the server forgot, in the order they are borrowed again.
    sessions: VecDeque<u64>,
    workers: VecDeque<u64>,
    /// When the next of them may go.
    not_before: Option<Instant>,
}

impl Schedule {
    /// Makes an empty schedule in which no lease waits longer than `delay` for its keep-alive; a
    /// `patient` one loses none.
    pub(super) fn new(delay: Duration, patient: bool) -> Self {
        Self {
            delay,
            patient,
            queue: BTreeSet::new(),
            sessions: VecDeque::new(),
            workers: VecDeque::new(),
            not_before: None,
        }
    }

    /// Returns the longest time between two keep-alives of a lease with this TTL.
    pub(super) fn interval(&self, ttl: Duration) -> Duration {
        self.delay.min(ttl / 3).max(SHORTEST)
    }

    /// Returns when a lease is lost that was last known to live at `proven`.
    pub(super) fn lost_at(&self, proven: Instant, ttl: Duration) -> Instant {
        proven + if self.patient { FOREVER } else { ttl }
    }

    /// Returns when to ask [`Schedule::due`] again; `None` when only an answer can change that.
    pub(super) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// Returns when to ask [`Schedule::due_borrow`] again; `None` when nothing stands in line.
    pub(super) fn next_borrow(&self, now: Instant) -> Option<Instant> {
        let waiting = !self.sessions.is_empty() || !self.workers.is_empty();
        waiting.then(|| self.not_before.unwrap_or(now))
    }

    /// Has a new lease kept alive in its turn. The first beat falls anywhere in one interval, so
    /// that leases granted together drift apart.
    pub(super) fn line_up_new(
        &mut self,
        number: u64,
        held: &mut Held,
        now: Instant,
        rng: &mut impl Rng,
    ) {
        if matches!(held.state, State::New) {
            let due = now + anywhere(self.interval(held.ttl), rng);
            self.put(number, held, State::Waiting(due));
        }
    }

    /// Starts to try to borrow a lease that no server has granted yet; `borrow` names a borrow that
    /// the server may have granted without being heard.
    pub(super) fn line_up_offline(
        &mut self,
        number: u64,
        held: &mut Held,
        borrow: Option<BorrowId>,
        now: Instant,
        rng: &mut impl Rng,
    ) {
        held.state =
            State::Forgotten { due: now, place: Place::Pause, borrow: borrow.map(Box::new) };
        self.failed(number, held, None, now, rng);
    }

    /// Takes a lease out of the queue. Nothing is due for it any more.
    pub(super) fn remove(&mut self, number: u64, held: &Held) {
        if let Some(due) = held.state.due() {
            self.queue.remove(&(due, number));
        }
    }

    /// Returns the next keep-alive or loss that is due at `now`.
    ///
    /// While the link is down only a few calls per second go out; the others count as failed.
    pub(super) fn due(
        &mut self,
        leases: &mut Leases,
        now: Instant,
        link: &mut Link,
        rng: &mut impl Rng,
    ) -> Option<Due> {
        self.due_until(leases, now, now, |now| link.admits(now), rng)
    }

    /// As [`Schedule::due`], for calls that share their way: what is due until `until` goes along,
    /// and the link has no say.
    pub(super) fn due_together(
        &mut self,
        leases: &mut Leases,
        now: Instant,
        until: Instant,
        rng: &mut impl Rng,
    ) -> Option<Due> {
        self.due_until(leases, now, until, |_| true, rng)
    }

    fn due_until(
        &mut self,
        leases: &mut Leases,
        now: Instant,
        until: Instant,
        mut admits: impl FnMut(Instant) -> bool,
        rng: &mut impl Rng,
    ) -> Option<Due> {
        while let Some((at, number)) = self.queue.first().copied().filter(|(at, _)| *at <= until) {
            let held = leases.held_mut(number).expect("only held leases are in the queue");
            if at > now && !matches!(held.state, State::Waiting(_)) {
                // Only a keep-alive may come early.
                return None;
            }
            self.queue.pop_first();
            if held.lapse.is_failing() && now >= held.lost_at {
                return Some(Due::Lost(number));
            }
            match held.state {
                State::Waiting(_) if admits(now) => {
                    held.state = State::Calling;
                    return Some(Due::KeepAlive(number));
                }
                State::Waiting(_) => self.failed(number, held, None, now, rng),
                State::Forgotten { place: Place::Pause, .. } => self.line_up(number, held),
                // They are due for their loss only, which was looked at above.
                _ => self.stand(number, held, None),
            }
        }
        None
    }

    /// Returns the next lease to borrow again at `now`, sessions before workers.
    ///
    /// All leases of the pool would take one interval, so that a server that comes back with an
    /// empty table is not run over.
    pub(super) fn due_borrow(
        &mut self,
        leases: &mut Leases,
        now: Instant,
        link: &mut Link,
        rng: &mut impl Rng,
    ) -> Option<Due> {
        let count = u32::try_from(leases.held_count()).unwrap_or(u32::MAX).max(1);
        while self.next_borrow(now).is_some_and(|at| at <= now) {
            let number = self.sessions.pop_front().or_else(|| self.workers.pop_front())?;
            let Some(held) = leases.held_mut(number) else { continue };
            let State::Forgotten { place: Place::Line, borrow, .. } = &mut held.state else {
                continue;
            };
            if !link.admits(now) {
                self.failed(number, held, None, now, rng);
                continue;
            }
            // The same id through all retries, so that a lost answer costs no second slot.
            let borrow = borrow.take();
            let doubted = borrow.is_some();
            let id = borrow.unwrap_or_else(|| Box::new(BorrowId(rng.random())));
            self.put(number, held, State::Borrowing { id, doubted });
            self.not_before = Some(now + (self.interval(held.ttl) / count).min(LONGEST_GAP));
            return Some(Due::Borrow(number));
        }
        None
    }

    /// Notes that a call sent at `sent` found the lease alive, or granted it again.
    ///
    /// After a failure the next beat falls anywhere in the interval: everything that waited for
    /// the same server came back at the same moment.
    pub(super) fn succeeded(
        &mut self,
        number: u64,
        held: &mut Held,
        ttl: Option<Duration>,
        sent: Instant,
        now: Instant,
        rng: &mut impl Rng,
    ) {
        let in_turn = matches!((&held.lapse, &held.state), (Lapse::None, State::Calling));
        held.ttl = ttl.unwrap_or(held.ttl);
        held.proven = sent;
        held.lost_at = self.lost_at(sent, held.ttl);
        held.lapse = Lapse::None;
        let interval = self.interval(held.ttl);
        let pause = if in_turn { around(interval, rng) } else { anywhere(interval, rng) };
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
        rng: &mut impl Rng,
    ) {
        held.lapse.fail(fault);
        let due = (now + around(RETRY, rng)).min(held.lost_at).max(now);
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

    /// Notes that a keep-alive came to nothing by no fault of its own: it is due again at once.
    pub(super) fn interrupted(&mut self, number: u64, held: &mut Held, now: Instant) {
        self.put(number, held, State::Waiting(now));
    }

    /// Puts a lease that the server forgot in line to be borrowed again.
    pub(super) fn forgotten(&mut self, number: u64, held: &mut Held, now: Instant) {
        allow_a_try(held, now);
        self.line_up(number, held);
    }

    /// Takes a lease that the server forgot aside, until [`Schedule::forgotten`] lines it up.
    pub(super) fn aside(&mut self, number: u64, held: &mut Held, now: Instant) {
        allow_a_try(held, now);
        self.stand(number, held, Some(Place::Aside));
    }

    fn line_up(&mut self, number: u64, held: &mut Held) {
        if !matches!(held.state, State::Forgotten { place: Place::Line, .. }) {
            let line = if held.is_worker() { &mut self.workers } else { &mut self.sessions };
            line.push_back(number);
            self.stand(number, held, Some(Place::Line));
        }
    }

    /// Leaves a forgotten lease at `place`, or where it stands, until it is lost.
    fn stand(&mut self, number: u64, held: &mut Held, place: Option<Place>) {
        let (before, borrow) = match &mut held.state {
            State::Forgotten { place, borrow, .. } => (*place, borrow.take()),
            _ => (Place::Pause, None),
        };
        let (due, place) = (held.lost_at, place.unwrap_or(before));
        self.put(number, held, State::Forgotten { due, place, borrow });
    }

    /// Lines up the sessions whose next try would come later: the server is back, and workers are
    /// not to come before them.
    pub(super) fn line_up_sessions(&mut self, leases: &mut Leases) {
        let waits = |held: &Held| {
            !held.is_worker() && matches!(held.state, State::Forgotten { place: Place::Pause, .. })
        };
        let waiting = leases.all_held().filter(|(_, held)| waits(held));
        let mut waiting: Vec<u64> = waiting.map(|(number, _)| number).collect();
        waiting.sort_unstable();
        for number in waiting {
            if let Some(held) = leases.held_mut(number) {
                self.line_up(number, held);
            }
        }
    }

    /// Makes the keep-alive of a held lease due at once, unless a call is under way.
    pub(super) fn hurry(&mut self, number: u64, held: &mut Held, now: Instant) {
        if matches!(held.state, State::Waiting(due) if due > now) {
            self.put(number, held, State::Waiting(now));
        }
    }

    /// Takes the keep-alive of a held lease out of turn, and returns whether there is one to take:
    /// none is while a call is under way. The lease waits for the answer.
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
}

/// Returns how long a call for the lease may take at `now`, at most `longest`: no longer than the
/// lease has until it is lost, but never nothing.
pub(super) fn patience(held: &Held, now: Instant, longest: Duration) -> Duration {
    held.lost_at.saturating_duration_since(now).clamp(RETRY.min(longest), longest)
}

/// Leaves time for the line, which takes up to one interval, even when the server was asked so
/// late that the lease would be lost already.
fn allow_a_try(held: &mut Held, now: Instant) {
    held.lost_at = held.lost_at.max(now + held.ttl / 2);
    held.lapse.fail(None);
}

/// Anywhere in (0, `interval`].
fn anywhere(interval: Duration, rng: &mut impl Rng) -> Duration {
    interval.mul_f64(1.0 - rng.random_range(0.0..1.0))
}

/// `interval`, a little longer or shorter.
fn around(interval: Duration, rng: &mut impl Rng) -> Duration {
    interval.mul_f64(rng.random_range(1.0 - STRAY..=1.0 + STRAY))
}

/// The state of the way to the server, as the last answer showed it.
///
/// Ten thousand leases retry every second while the server is away, and each try could cost a
/// connection attempt: so a few go out, and the first answer opens the way for all.
#[derive(Debug, Default)]
pub(super) struct Link {
    down: Option<Probing>,
}

#[derive(Debug)]
struct Probing {
    /// The first and the last failure since the server answered.
    failed: (Instant, Instant),
    since: Option<Instant>,
    sent: u32,
}

impl Link {
    /// Notes that the server answered something, and returns whether that ends an outage.
    pub(super) fn answered(&mut self, now: Instant) -> bool {
        self.down.take().is_some_and(|Probing { failed: (first, _), .. }| now >= first + WINDOW)
    }

    /// Notes that a call failed on the way, or that the server could not serve it.
    pub(super) fn failed(&mut self, now: Instant) {
        let failed = (now, now);
        self.down.get_or_insert(Probing { failed, since: None, sent: 0 }).failed.1 = now;
    }

    /// Whether nothing was answered for `outage`, and failures are so fresh that the server is
    /// still away, as far as anyone can know.
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
