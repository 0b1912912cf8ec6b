//! When each lease is kept alive, borrowed again or given up: a pure schedule.
//!
//! Time and randomness are arguments, so every rule here is tested without waiting. The schedule
//! knows numbers and times only; who acts on it is the keeper's business. Each beat costs
//! O(log n), and a lease costs about 100 bytes: no timer and no task of its own.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use rand::{Rng, RngExt};

use crate::link::Link;

/// How long a failed call waits for its next try.
const RETRY: Duration = Duration::from_secs(1);

/// The shortest interval between two beats, whatever TTL a server tells.
const SHORTEST: Duration = Duration::from_millis(10);

/// The longest pause between two borrows of leases the server forgot.
const LONGEST_GAP: Duration = Duration::from_millis(50);

/// When a patient schedule gives a lease up: after no process has ever run so long.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// How far a beat strays from its interval, either way.
const STRAY: f64 = 0.05;

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// The lease is to be kept alive. The schedule waits for the answer.
    KeepAlive(u64),
    /// The lease is to be borrowed again. The schedule waits for the answer.
    Borrow(u64),
    /// One TTL has gone by since the last call that succeeded was sent. The lease is forgotten.
    Lost(u64),
}

/// The schedule of all leases of one pool.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    delay: Duration,
    /// Whether a lease is never given up for want of an answer.
    patient: bool,
    beats: HashMap<u64, Beat, RandomState>,
    /// One entry per waiting lease, at the time its beat names. What is due next lies side by side
    /// here: with many leases, memory that is not in the cache is most of what a beat costs.
    queue: BTreeSet<(Instant, u64)>,
    forgotten: Forgotten,
}

/// The leases the server forgot, in the order they are borrowed again.
#[derive(Debug, Default)]
struct Forgotten {
    sessions: VecDeque<u64>,
    workers: VecDeque<u64>,
    not_before: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Beat {
    /// When the last call that succeeded was sent: the server counts its TTL from no earlier.
    proven: Instant,
    ttl: Duration,
    /// When it counts as lost unless something succeeds before: one TTL after `proven`.
    lost_at: Instant,
    /// The time of its entry in the queue; `None` while a call is under way.
    due: Option<Instant>,
    state: State,
    is_worker: bool,
    /// Whether anything was in vain since `proven`. Without that nothing is lost: after a pause of
    /// the whole process the server is asked first.
    failing: bool,
    /// Whether its next success is to be followed by a pause of any length up to the interval: it
    /// was kept alive out of turn, together with others.
    out_of_turn: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Held; the next beat is a keep-alive.
    Held,
    /// Held, and not in the queue yet: its first keep-alive goes out of turn, and soon.
    New,
    /// The server forgot it, and a try to borrow it again failed; it queues up again when due.
    Forgotten,
    /// It stands in line to be borrowed again; due only to be lost.
    InLine,
    /// It stands aside until somebody queues it; due only to be lost.
    Aside,
}

impl Heartbeat {
    /// What one lease costs at most: hash tables are at least 7/16 full, the nodes of trees half
    /// full.
    #[cfg(test)]
    pub(crate) const BYTES_PER_LEASE: usize =
        (size_of::<(u64, Beat)>() + 1) * 16 / 7 + 3 * size_of::<(Instant, u64)>();

    /// Makes an empty schedule in which no lease waits longer than `delay` for its keep-alive; a
    /// `patient` one loses none.
    pub(crate) fn new(delay: Duration, patient: bool) -> Self {
        Self {
            delay,
            patient,
            beats: HashMap::default(),
            queue: BTreeSet::new(),
            forgotten: Forgotten::default(),
        }
    }

    /// Starts to keep a lease alive that was granted by a call sent at `sent`.
    ///
    /// The first beat falls anywhere in one interval, so that leases granted together drift apart.
    pub(crate) fn insert(
        &mut self,
        number: u64,
        is_worker: bool,
        ttl: Duration,
        sent: Instant,
        now: Instant,
        rng: &mut impl Rng,
    ) {
        self.insert_new(number, is_worker, ttl, sent);
        self.line_up_new(number, now, rng);
    }

    /// As [`Heartbeat::insert`], of a lease that [`Heartbeat::take`] takes soon, or
    /// [`Heartbeat::line_up_new`] puts where it would be otherwise: until then nothing is due.
    pub(crate) fn insert_new(
        &mut self,
        number: u64,
        is_worker: bool,
        ttl: Duration,
        sent: Instant,
    ) {
        let beat = Beat {
            proven: sent,
            ttl,
            lost_at: lost_at(self.patient, sent, ttl),
            due: None,
            state: State::New,
            is_worker,
            failing: false,
            out_of_turn: false,
        };
        self.beats.insert(number, beat);
    }

    /// Has a new lease kept alive in its turn, which falls anywhere in one interval.
    pub(crate) fn line_up_new(&mut self, number: u64, now: Instant, rng: &mut impl Rng) {
        let new = self.beats.get(&number).filter(|beat| beat.state == State::New);
        if let Some(Beat { ttl, .. }) = new.copied() {
            self.wait(number, now + anywhere(self.interval(ttl), rng));
        }
    }

    /// Starts to try to borrow a lease that no server has granted yet.
    pub(crate) fn insert_forgotten(
        &mut self,
        number: u64,
        is_worker: bool,
        ttl: Duration,
        now: Instant,
        rng: &mut impl Rng,
    ) {
        self.insert(number, is_worker, ttl, now, now, rng);
        if let Some(beat) = self.beats.get_mut(&number) {
            beat.state = State::Forgotten;
        }
        self.failed(number, now, rng);
    }

    /// Forgets a lease, and returns whether a call for it is under way.
    pub(crate) fn remove(&mut self, number: u64) -> bool {
        let Some(beat) = self.beats.remove(&number) else { return false };
        if let Some(due) = beat.due {
            self.queue.remove(&(due, number));
        }
        beat.due.is_none() && beat.state != State::New
    }

    /// Returns when to ask [`Heartbeat::due`] again; `None` when only an answer can change that.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// Returns when to ask [`Heartbeat::due_borrow`] again; `None` when nothing stands in line.
    pub(crate) fn next_borrow(&self, now: Instant) -> Option<Instant> {
        let waiting = !self.forgotten.sessions.is_empty() || !self.forgotten.workers.is_empty();
        waiting.then(|| self.forgotten.not_before.unwrap_or(now))
    }

    /// Returns the next keep-alive or loss that is due at `now`.
    ///
    /// While the link is down only a few calls per second go out; the others count as failed.
    pub(crate) fn due(&mut self, now: Instant, link: &mut Link, rng: &mut impl Rng) -> Option<Due> {
        self.due_until(now, now, |now| link.admits(now), rng)
    }

    /// As [`Heartbeat::due`], for calls that share their way: what is due until `until` goes along,
    /// and the link has no say.
    pub(crate) fn due_together(
        &mut self,
        now: Instant,
        until: Instant,
        rng: &mut impl Rng,
    ) -> Option<Due> {
        self.due_until(now, until, |_| true, rng)
    }

    fn due_until(
        &mut self,
        now: Instant,
        until: Instant,
        mut admits: impl FnMut(Instant) -> bool,
        rng: &mut impl Rng,
    ) -> Option<Due> {
        while let Some((at, number)) = self.queue.first().copied().filter(|(at, _)| *at <= until) {
            let beat = self.beats.get_mut(&number)?;
            if at > now && beat.state != State::Held {
                // Only a keep-alive may come early.
                return None;
            }
            self.queue.pop_first();
            beat.due = None;
            if beat.failing && now >= beat.lost_at {
                self.beats.remove(&number);
                return Some(Due::Lost(number));
            }
            match beat.state {
                State::Held if admits(now) => return Some(Due::KeepAlive(number)),
                State::Held => self.failed(number, now, rng),
                State::Forgotten => self.line_up(number),
                // These are due for their loss only, which was looked at above. New ones do not wait.
                State::InLine | State::Aside | State::New => self.wait_for_loss(number),
            }
        }
        None
    }

    /// Returns the next lease to borrow again at `now`, sessions before workers.
    ///
    /// All leases of the pool would take one interval, so that a server that comes back with an
    /// empty table is not run over.
    pub(crate) fn due_borrow(
        &mut self,
        now: Instant,
        link: &mut Link,
        rng: &mut impl Rng,
    ) -> Option<Due> {
        while self.next_borrow(now).is_some_and(|at| at <= now) {
            let line = &mut self.forgotten;
            let number = line.sessions.pop_front().or_else(|| line.workers.pop_front())?;
            let Some(beat) = self.beats.get_mut(&number) else { continue };
            if beat.state != State::InLine || beat.due.is_none() {
                continue;
            }
            if !link.admits(now) {
                self.failed(number, now, rng);
                continue;
            }
            if let Some(due) = beat.due.take() {
                self.queue.remove(&(due, number));
            }
            let interval = self.interval(self.beats[&number].ttl);
            let held = u32::try_from(self.beats.len()).unwrap_or(u32::MAX);
            self.forgotten.not_before = Some(now + (interval / held.max(1)).min(LONGEST_GAP));
            return Some(Due::Borrow(number));
        }
        None
    }

    /// Notes that a call sent at `sent` found the lease alive, or granted it again.
    ///
    /// After a failure the next beat falls anywhere in the interval: everything that waited for
    /// the same server came back at the same moment.
    pub(crate) fn succeeded(
        &mut self,
        number: u64,
        ttl: Option<Duration>,
        sent: Instant,
        now: Instant,
        rng: &mut impl Rng,
    ) {
        let patient = self.patient;
        let Some(beat) = self.beats.get_mut(&number) else { return };
        let ttl = ttl.unwrap_or(beat.ttl);
        let spread =
            std::mem::take(&mut beat.out_of_turn) || beat.failing || beat.state != State::Held;
        beat.proven = sent;
        beat.ttl = ttl;
        beat.lost_at = lost_at(patient, sent, ttl);
        beat.state = State::Held;
        beat.failing = false;
        let interval = self.interval(ttl);
        let pause = if spread { anywhere(interval, rng) } else { around(interval, rng) };
        self.wait(number, now + pause);
    }

    /// Notes that a call failed, or could not be made: the next one follows in a second, or the
    /// loss when that comes first.
    pub(crate) fn failed(&mut self, number: u64, now: Instant, rng: &mut impl Rng) {
        let Some(beat) = self.beats.get_mut(&number) else { return };
        beat.failing = true;
        if beat.state == State::InLine {
            beat.state = State::Forgotten;
        }
        let due = (now + around(RETRY, rng)).min(beat.lost_at).max(now);
        self.wait(number, due);
    }

    /// Puts a lease that the server forgot in line to be borrowed again.
    pub(crate) fn forgotten(&mut self, number: u64, now: Instant) {
        self.allow_a_try(number, now);
        self.line_up(number);
    }

    /// Takes a lease that the server forgot aside, until [`Heartbeat::forgotten`] lines it up.
    pub(crate) fn aside(&mut self, number: u64, now: Instant) {
        self.allow_a_try(number, now);
        if let Some(beat) = self.beats.get_mut(&number) {
            beat.state = State::Aside;
        }
        self.wait_for_loss(number);
    }

    /// Leaves time for the line, which takes up to one interval, even when the server was asked so
    /// late that the lease would be lost already.
    fn allow_a_try(&mut self, number: u64, now: Instant) {
        if let Some(beat) = self.beats.get_mut(&number) {
            beat.lost_at = beat.lost_at.max(now + beat.ttl / 2);
            beat.failing = true;
        }
    }

    fn line_up(&mut self, number: u64) {
        let Some(beat) = self.beats.get_mut(&number) else { return };
        if beat.state == State::InLine && beat.due.is_some() {
            return;
        }
        beat.state = State::InLine;
        let line = &mut self.forgotten;
        if beat.is_worker { &mut line.workers } else { &mut line.sessions }.push_back(number);
        self.wait_for_loss(number);
    }

    /// Lines up the sessions whose next try would come later: the server is back, and workers are
    /// not to come before them.
    pub(crate) fn line_up_sessions(&mut self) {
        let waits =
            |beat: &Beat| beat.state == State::Forgotten && beat.due.is_some() && !beat.is_worker;
        let waiting = self.beats.iter().filter(|(_, beat)| waits(beat));
        let mut waiting: Vec<u64> = waiting.map(|(number, _)| *number).collect();
        waiting.sort_unstable();
        waiting.into_iter().for_each(|number| self.line_up(number));
    }

    /// Makes the keep-alive of a held lease due at once, unless a call is under way.
    pub(crate) fn hurry(&mut self, number: u64, now: Instant) {
        if self
            .beats
            .get(&number)
            .is_some_and(|beat| beat.state == State::Held && beat.due.is_some_and(|due| due > now))
        {
            self.wait(number, now);
        }
    }

    /// Takes the keep-alive of a held lease out of turn, and returns whether there is one to take:
    /// none is while a call is under way. The schedule waits for the answer.
    pub(crate) fn take(&mut self, number: u64) -> bool {
        let Some(beat) = self.beats.get_mut(&number) else { return false };
        match (beat.state, beat.due) {
            (State::New, _) => beat.state = State::Held,
            (State::Held, Some(due)) => drop(self.queue.remove(&(due, number))),
            _ => return false,
        }
        beat.due = None;
        beat.out_of_turn = true;
        true
    }

    /// Notes that a keep-alive came to nothing by no fault of its own: it is due again at once.
    pub(crate) fn interrupted(&mut self, number: u64, now: Instant) {
        self.wait(number, now);
    }

    /// Returns when the last call that succeeded was sent.
    pub(crate) fn proven(&self, number: u64) -> Option<Instant> {
        self.beats.get(&number).map(|beat| beat.proven)
    }

    /// Returns how long a call for the lease may take at `now`, at most `longest`: no longer than
    /// the lease has until it is lost, but never nothing.
    pub(crate) fn patience(&self, number: u64, now: Instant, longest: Duration) -> Duration {
        let left = self.beats.get(&number).map(|beat| beat.lost_at.saturating_duration_since(now));
        left.unwrap_or(longest).clamp(RETRY.min(longest), longest)
    }

    /// Returns the longest time between two keep-alives of a lease with this TTL.
    pub(crate) fn interval(&self, ttl: Duration) -> Duration {
        self.delay.min(ttl / 3).max(SHORTEST)
    }

    fn wait_for_loss(&mut self, number: u64) {
        if let Some(beat) = self.beats.get(&number) {
            self.wait(number, beat.lost_at);
        }
    }

    fn wait(&mut self, number: u64, until: Instant) {
        if let Some(beat) = self.beats.get_mut(&number) {
            if let Some(due) = beat.due.replace(until) {
                self.queue.remove(&(due, number));
            }
            self.queue.insert((until, number));
            if beat.state == State::New {
                beat.state = State::Held;
            }
        }
    }
}

/// When a lease is lost that was last known to live at `proven`.
fn lost_at(patient: bool, proven: Instant, ttl: Duration) -> Instant {
    proven + if patient { FOREVER } else { ttl }
}

/// Anywhere in (0, `interval`].
fn anywhere(interval: Duration, rng: &mut impl Rng) -> Duration {
    interval.mul_f64(1.0 - rng.random_range(0.0..1.0))
}

/// `interval`, a little longer or shorter.
pub(crate) fn around(interval: Duration, rng: &mut impl Rng) -> Duration {
    interval.mul_f64(rng.random_range(1.0 - STRAY..=1.0 + STRAY))
}

#[cfg(test)]
mod tests;
