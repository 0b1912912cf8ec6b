//! Keep-alives of held leases, alone and in batches, borrows of forgotten ones, and what their
//! answers change.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::lease::{
    Answered, BorrowAnswer, Grant, KeepAliveAnswer, Left, Place, Role, State, Target, UNTOLD_TTL,
};
use super::schedule::{Due, patience};
use super::state::{Call, Core, MOST_CALLS, Notice, Phase};
use super::stream::{Batch, Detached, InFlight, MOST_KEYS, StreamEvent};
use crate::error::Error;

/// The longest a keep-alive or a borrow of the driver may take.
const CALL_DEADLINE: Duration = Duration::from_secs(5);

/// How much too early a keep-alive may go along with one that is due.
const EARLY: Duration = Duration::from_millis(100);

impl Core {
    /// Returns the next call that is due at `now`.
    pub(super) fn poll_call(&mut self, now: Instant) -> Option<Call> {
        while self.calls < MOST_CALLS {
            let Self { schedule, leases, link, rng, stream, .. } = self;
            // While a stream is open, keep-alives go in batches.
            let beat = if stream.is_open() { None } else { schedule.due(leases, now, link, rng) };
            match beat.or_else(|| schedule.due_borrow(leases, now, link, rng)) {
                Some(Due::Lost(number)) => self.lose(number),
                Some(Due::KeepAlive(number)) => return self.keep_alive(number, now),
                Some(Due::Borrow(number)) => return self.borrow_again(number, now),
                None => break,
            }
        }
        self.due_return(now)
    }

    fn keep_alive(&mut self, number: u64, now: Instant) -> Option<Call> {
        let held = self.leases.held(number)?;
        self.calls += 1;
        let deadline = patience(held, now, CALL_DEADLINE);
        let (key, api_key) = (held.key.clone(), held.lease.ids().api_key.clone());
        Some(Call::KeepAlive { number, key, api_key, deadline })
    }

    fn borrow_again(&mut self, number: u64, now: Instant) -> Option<Call> {
        let held = self.leases.held(number)?;
        let State::Borrowing { id, .. } = &held.state else { return None };
        self.calls += 1;
        let deadline = patience(held, now, CALL_DEADLINE);
        Some(Call::Borrow { number, asked: held.asked(), id: **id, deadline })
    }

    /// Takes the answer to a keep-alive that was sent at `sent`.
    pub(crate) fn handle_keep_alive(
        &mut self,
        number: u64,
        answer: KeepAliveAnswer,
        sent: Instant,
        now: Instant,
    ) {
        self.calls -= 1;
        self.handle_link(!matches!(answer, KeepAliveAnswer::Fault(_)), now);
        self.handle_one_keep_alive(number, answer, sent, now);
    }

    /// Takes what became of the keep-alive of one lease, alone or in a batch.
    pub(super) fn handle_one_keep_alive(
        &mut self,
        number: u64,
        answer: KeepAliveAnswer,
        sent: Instant,
        now: Instant,
    ) {
        let held = match self.leases.call_over(number) {
            Answered::Held(held) => held,
            Answered::Ended(_) => return,
            Answered::Returning => return self.unhold(number, now),
        };
        match answer {
            KeepAliveAnswer::Extended(ttl) => {
                held.lease.kept_alive();
                self.stats.kept_alive += 1;
                self.schedule.succeeded(number, held, ttl, sent, now, &mut self.rng);
                // Most sessions live on with nobody waiting: no need to look at their workers.
                if matches!(&held.role, Role::Session(workers) if workers.awaited) {
                    self.line_up_workers(number, now);
                }
            }
            KeepAliveAnswer::Forgotten => {
                tracing::debug!(lease = number, "the server forgot a lease; it is borrowed again");
                self.line_up_forgotten(number, sent, now);
            }
            KeepAliveAnswer::Revoked(reason) => {
                // No call is in flight any more when it ends.
                self.schedule.interrupted(number, held, now);
                self.revoke(number, &reason);
            }
            KeepAliveAnswer::Fault(error) => {
                tracing::debug!(lease = number, %error, "a keep-alive failed");
                self.stats.keep_alives_failed += 1;
                self.schedule.failed(number, held, Some(error), now, &mut self.rng);
            }
        }
    }

    /// Takes the answer to a borrow of the driver that was sent at `sent`.
    pub(crate) fn handle_borrow(
        &mut self,
        number: u64,
        mut answer: BorrowAnswer,
        sent: Instant,
        now: Instant,
    ) {
        self.calls -= 1;
        self.handle_link(!matches!(answer, BorrowAnswer::Fault { .. }), now);
        if self.leases.held(number).is_some()
            && let Some(key) = answer.take_key()
        {
            self.stray(Target::Key(key.into()), UNTOLD_TTL, now);
        }
        match self.leases.call_over(number) {
            Answered::Held(_) => self.handle_borrow_again(number, answer, sent, now),
            Answered::Ended(left) => match answer {
                BorrowAnswer::Fault { .. } | BorrowAnswer::Spent(_) => {}
                BorrowAnswer::Refused { .. } | BorrowAnswer::Nonsense { .. } => {
                    *left = Left::Nothing;
                }
                // What it brought goes back.
                BorrowAnswer::Granted(Grant { key, ttl, .. }) => {
                    *left = Left::Nothing;
                    self.stray(Target::Key(key.into()), ttl, now);
                }
            },
            Answered::Returning => {
                match answer {
                    BorrowAnswer::Granted(Grant { key, .. })
                    | BorrowAnswer::Refused { key: Some(key), .. }
                    | BorrowAnswer::Nonsense { key: Some(key), .. } => {
                        self.retarget(number, Some(Target::Key(key.into())));
                    }
                    BorrowAnswer::Refused { .. } | BorrowAnswer::Nonsense { .. } => {
                        self.retarget(number, None);
                    }
                    // The return names the borrow already.
                    BorrowAnswer::Fault { .. } | BorrowAnswer::Spent(_) => {}
                }
                self.unhold(number, now);
            }
        }
    }

    /// Takes the answer to the borrow of a lease that is still held.
    fn handle_borrow_again(
        &mut self,
        number: u64,
        answer: BorrowAnswer,
        sent: Instant,
        now: Instant,
    ) {
        let Some(held) = self.leases.held_mut(number) else { return };
        let State::Borrowing { id, doubted } = &mut held.state else { return };
        match answer {
            BorrowAnswer::Granted(grant) => {
                self.keys.remove(&held.key);
                held.key = grant.key.into();
                held.lease.set_key(held.key.clone());
                self.keys.insert(held.key.clone(), number);
                held.minimal_life = grant.minimal_life;
                self.stats.borrowed_again += 1;
                let ttl = Some(grant.ttl);
                self.schedule.succeeded(number, held, ttl, sent, now, &mut self.rng);
                self.stream.name(number, now);
                self.line_up_workers(number, now);
            }
            BorrowAnswer::Refused { error, .. } => {
                // Nothing is left of it to give back.
                held.state = State::Forgotten { due: now, place: Place::Pause, borrow: None };
                match error {
                    Error::PermissionDenied { .. } | Error::QuotaExceeded { .. } => {
                        self.revoke(number, &error);
                    }
                    // The pool let it go on by itself, and now there is no place for it.
                    error if self.rules.fail_open && error.is_ceiling() => self.end(number, &error),
                    error => self.end(number, &error.lost()),
                }
            }
            BorrowAnswer::Nonsense { error, .. } => {
                *doubted = false;
                self.schedule.failed(number, held, Some(error), now, &mut self.rng);
            }
            BorrowAnswer::Spent(error) => {
                // The next try needs another name; whatever this one took is given back by it.
                let spent = Target::Borrow(**id);
                *doubted = false;
                self.schedule.failed(number, held, Some(error), now, &mut self.rng);
                self.stray(spent, UNTOLD_TTL, now);
            }
            BorrowAnswer::Fault { error, sent } => {
                *doubted |= sent;
                self.schedule.failed(number, held, Some(error), now, &mut self.rng);
            }
        }
    }

    /// Notes whether a call found the server.
    pub(crate) fn handle_link(&mut self, answered: bool, now: Instant) {
        if !answered {
            self.link.failed(now);
        } else if self.link.answered(now) {
            self.schedule.line_up_sessions(&mut self.leases);
        }
    }

    /// Whether the server is known to be away, and has been for `outage`: then nobody waits to see
    /// it once more.
    pub(crate) fn fails_open(&self, outage: Duration, now: Instant) -> bool {
        self.link.is_down_since(outage, now)
    }

    /// Has a forgotten lease borrowed again: a worker not before its session is known to live.
    pub(super) fn line_up_forgotten(&mut self, number: u64, sent: Instant, now: Instant) {
        let Some(held) = self.leases.held(number) else { return };
        let session = match held.role {
            Role::Worker { session, .. } => Some(session),
            Role::Session(_) => None,
        };
        let proven = session.map(|session| {
            let session = self.leases.held(session);
            session.is_some_and(|session| !session.is_forgotten() && session.proven >= sent)
        });
        let Some(held) = self.leases.held_mut(number) else { return };
        if proven.unwrap_or(true) {
            return self.schedule.forgotten(number, held, now);
        }
        self.schedule.aside(number, held, now);
        if let Some(session) = session
            && let Some(held) = self.leases.held_mut(session)
        {
            if let Role::Session(workers) = &mut held.role {
                workers.awaited = true;
            }
            self.schedule.hurry(session, held, now);
        }
    }

    /// Lines up the workers that stood aside until their session was found alive.
    fn line_up_workers(&mut self, session: u64, now: Instant) {
        let Some(workers) = self.leases.workers_mut(session) else { return };
        if !std::mem::take(&mut workers.awaited) {
            return;
        }
        for number in workers.held.iter().copied().collect::<Vec<_>>() {
            if let Some(held) = self.leases.held_mut(number)
                && matches!(held.state, State::Forgotten { place: Place::Aside, .. })
            {
                self.schedule.forgotten(number, held, now);
            }
        }
    }

    /// Ends a lease that nothing was heard of for one TTL.
    pub(super) fn lose(&mut self, number: u64) {
        let fault = self.leases.held_mut(number).and_then(|held| held.lapse.take_fault());
        let silent = || Error::unavailable("no keep-alive succeeded within the TTL");
        self.end(number, &fault.map_or_else(silent, |fault| *fault).lost());
    }

    /// Ends the session of a lease that was revoked.
    pub(super) fn revoke(&mut self, number: u64, reason: &Error) {
        let session = match self.leases.held(number).map(|held| &held.role) {
            Some(Role::Worker { session, .. }) => *session,
            _ => number,
        };
        self.end(session, reason);
    }

    /// Ends a lease, and with a session its workers. It is returned when its guard goes.
    fn end(&mut self, number: u64, reason: &Error) {
        let Some(held) = self.leases.held_mut(number).filter(|held| !held.has_ended()) else {
            return;
        };
        self.schedule.remove(number, held);
        held.end();
        self.stats.ended(reason);
        let ids = held.lease.ids();
        tracing::info!(
            service = &*ids.service, organization = &*ids.organization,
            trace = &*ids.trace, %reason, "a lease ended"
        );
        self.notices.push_back(Notice::Ended(held.lease.clone(), reason.clone()));
        if let Role::Session(workers) = &held.role {
            for worker in workers.held.clone() {
                self.end(worker, reason);
            }
        }
    }

    // ---- keep-alives that share one stream ----

    pub(super) fn wants_stream(&self) -> bool {
        self.phase == Phase::Open && self.leases.held_count() > 0
    }

    /// Takes what came over the stream, or of it.
    pub(crate) fn handle_stream(&mut self, event: StreamEvent, now: Instant) {
        match event {
            StreamEvent::Opened => {
                tracing::debug!("keep-alives go over one stream");
                self.handle_link(true, now);
                // Everything held is named on it, so that a revocation is pushed.
                self.stream.opened(self.leases.all_held().map(|(number, _)| number), now);
            }
            StreamEvent::Answer { batch, places } => {
                if !self.handle_batch(batch, places, now) {
                    tracing::warn!(
                        "the server answered a batch that does not exist; attaching again"
                    );
                    self.stream_over(Detached::Broken, now);
                    self.stream.give_up();
                }
            }
            StreamEvent::Revoked { key, reason } => {
                if let Some(number) = self.keys.get(key.as_str()).copied() {
                    self.revoke(number, &reason);
                }
            }
            StreamEvent::Over(why) => self.stream_over(why, now),
        }
    }

    /// Notes that the stream is over. No lease ends with it: what was in flight is due at once, by
    /// calls of its own.
    fn stream_over(&mut self, why: Detached, now: Instant) {
        let batches = self.close_stream(why, now);
        tracing::debug!(?why, batches = batches.len(), "keep-alives go by calls of their own");
        for number in batches.into_iter().flat_map(|batch| batch.numbers) {
            match self.leases.call_over(number) {
                Answered::Held(held) => self.schedule.interrupted(number, held, now),
                Answered::Ended(_) => {}
                Answered::Returning => self.unhold(number, now),
            }
        }
    }

    /// Returns the batches that nobody will answer. What was to be named is kept alive in its turn.
    fn close_stream(&mut self, why: Detached, now: Instant) -> Vec<InFlight> {
        for number in std::mem::take(&mut self.stream.unnamed) {
            if let Some(held) = self.leases.held_mut(number) {
                self.schedule.line_up_new(number, held, now, &mut self.rng);
            }
        }
        self.stream.over(why, now, &mut self.rng)
    }

    /// Returns the next batch that is due at `now`, over the stream that is open.
    pub(super) fn poll_batch(&mut self, now: Instant) -> Option<Batch> {
        if self.stream.is_late(now) {
            self.give_late_stream_up(now);
        }
        let beats = self.schedule.next().is_some_and(|at| at <= now);
        if !self.stream.has_room() || !(beats || self.stream.naming_is_due(now)) {
            return None;
        }
        let mut numbers = Vec::new();
        let mut keys = Vec::new();
        let until = now + EARLY.min(self.rules.delay / 8);
        // What is due, what soon will be, and then what is yet to be named.
        while beats && numbers.len() < MOST_KEYS {
            match self.schedule.due_together(&mut self.leases, now, until, &mut self.rng) {
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
        keys.extend(numbers.iter().filter_map(|n| Some(self.leases.held(*n)?.key.to_string())));
        Some(Batch { number: self.stream.sends(numbers, now), keys })
    }

    /// Gives the stream up: it owes an answer for too long.
    fn give_late_stream_up(&mut self, now: Instant) {
        let error = Error::unavailable("keep-alives over the stream were not answered in time");
        for batch in self.close_stream(Detached::Broken, now) {
            for number in batch.numbers {
                let fault = KeepAliveAnswer::Fault(error.clone());
                self.handle_one_keep_alive(number, fault, batch.sent, now);
            }
        }
        self.stream.give_up();
    }

    /// Takes the answer to a batch, and returns whether it makes sense.
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
