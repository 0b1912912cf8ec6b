//! Keep-alives of held leases, alone and in batches, borrows of forgotten ones, and what their answers
//! change.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::lease::{
    Answered, BorrowAnswer, DEFAULT_TTL, Grant, KeepAliveAnswer, Place, Role, State, Target,
};
use super::schedule::{Due, RETRY};
use super::stream::{Batch, Detached, InFlight, MOST_KEYS, StreamEvent};
use super::{Call, Core, MOST_CALLS, Notice, Phase};
use crate::error::Error;

/// The longest a keep-alive or a borrow of the driver may take.
const CALL_DEADLINE: Duration = Duration::from_secs(5);

/// How much too early a keep-alive may be sent together with one that is due.
const EARLY: Duration = Duration::from_millis(100);

impl Core {
    /// Returns the next call that is due at `now`.
    pub(super) fn poll_call(&mut self, now: Instant) -> Option<Call> {
        while self.calls < MOST_CALLS {
            let Self { schedule, leases, link, stream, .. } = self;
            // While a stream is open, it carries the keep-alives.
            let beat =
                if stream.is_open() { None } else { schedule.due(leases, now, now, Some(link)) };
            match beat.or_else(|| schedule.due_borrow(leases, now, link)) {
                Some(Due::Lost(number)) => self.lose(number),
                Some(Due::KeepAlive(number) | Due::Borrow(number)) => {
                    return self.call(number, now);
                }
                None => break,
            }
        }
        self.due_return(now)
    }

    /// Makes the keep-alive or the borrow of a lease.
    fn call(&mut self, number: u64, now: Instant) -> Option<Call> {
        let held = self.leases.held.get(&number)?;
        self.calls += 1;
        // No longer than until the lease is lost, but at least a moment.
        let deadline = held.lost_at.saturating_duration_since(now).clamp(RETRY, CALL_DEADLINE);
        Some(match &held.state {
            State::Borrowing { id, .. } => Call::Borrow { asked: held.asked(), id: **id, deadline },
            _ => {
                let (key, api_key) = (held.key.clone(), held.lease.ids().api_key.clone());
                Call::KeepAlive { number, key, api_key, deadline }
            }
        })
    }

    /// Handles the answer to a keep-alive that was sent at `sent`.
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

    /// Handles the answer for one lease, of a call of its own or of a batch.
    pub(super) fn handle_one_keep_alive(
        &mut self,
        number: u64,
        answer: KeepAliveAnswer,
        sent: Instant,
        now: Instant,
    ) {
        let held = match self.leases.answered(number) {
            Answered::Held(held) => held,
            Answered::Ended(_) => return,
            Answered::Returning => return self.unhold(number, now),
        };
        match answer {
            KeepAliveAnswer::Extended(ttl) => {
                held.lease.kept_alive();
                self.stats.kept_alive += 1;
                self.schedule.succeeded(number, held, ttl, sent, now);
                // Usually no worker waits, and their records are not touched.
                if matches!(&held.role, Role::Session(workers) if workers.awaited) {
                    self.line_up_workers(number, now);
                }
            }
            KeepAliveAnswer::Forgotten => {
                tracing::debug!(lease = number, "the server forgot a lease; it is borrowed again");
                self.line_up_forgotten(number, sent, now);
            }
            KeepAliveAnswer::Revoked(reason) => {
                // Its call is not in flight any more.
                self.schedule.interrupted(number, held, now);
                self.revoke(number, &reason);
            }
            KeepAliveAnswer::Fault(error) => {
                tracing::debug!(lease = number, %error, "a keep-alive failed");
                self.stats.keep_alives_failed += 1;
                self.schedule.failed(number, held, Some(error), now);
            }
        }
    }

    /// Handles the answer to a borrow of the driver that was sent at `sent`.
    pub(crate) fn handle_borrow(
        &mut self,
        number: u64,
        mut answer: BorrowAnswer,
        sent: Instant,
        now: Instant,
    ) {
        self.calls -= 1;
        self.handle_link(!matches!(answer, BorrowAnswer::Fault { .. }), now);
        let key = answer.take_key().map(|key| Target::Key(key.into()));
        match self.leases.answered(number) {
            Answered::Held(_) => self.handle_borrow_again(number, answer, sent, now),
            Answered::Ended(left) => match answer {
                BorrowAnswer::Fault { .. } | BorrowAnswer::IdUsed(_) => {}
                BorrowAnswer::Refused { .. } | BorrowAnswer::Invalid { .. } => *left = None,
                BorrowAnswer::Granted(Grant { key, ttl, .. }) => {
                    *left = None;
                    self.stray(Target::Key(key.into()), ttl, now);
                }
            },
            Answered::Returning => {
                if let Some(returning) = self.leases.returning_mut(number) {
                    match answer {
                        // The return names the borrow already.
                        BorrowAnswer::Fault { .. } | BorrowAnswer::IdUsed(_) => {}
                        BorrowAnswer::Refused { .. } | BorrowAnswer::Invalid { .. } => {
                            returning.target = key;
                        }
                        BorrowAnswer::Granted(Grant { key, .. }) => {
                            returning.target = Some(Target::Key(key.into()));
                        }
                    }
                }
                return self.unhold(number, now);
            }
        }
        if let Some(key) = key {
            self.stray(key, DEFAULT_TTL, now);
        }
    }

    /// Handles the answer to the borrow of a lease that is still held.
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
                self.schedule.succeeded(number, held, Some(grant.ttl), sent, now);
                self.stream.name(number, now);
                self.line_up_workers(number, now);
            }
            BorrowAnswer::Refused { error, .. } => {
                // The server holds nothing for it.
                held.state = State::Forgotten { due: now, place: Place::Pause, borrow: None };
                match error {
                    Error::PermissionDenied { .. } | Error::QuotaExceeded { .. } => {
                        self.revoke(number, &error);
                    }
                    // The pool admitted it during an outage, and now there is no slot for it.
                    error if self.rules.fail_open && error.is_limit() => self.end(number, &error),
                    error => self.end(number, &error.lost()),
                }
            }
            BorrowAnswer::Invalid { error, .. } => {
                *doubted = false;
                self.schedule.failed(number, held, Some(error), now);
            }
            BorrowAnswer::IdUsed(error) => {
                // The next try has another id. What this one took, if anything, is returned by its id.
                let used = Target::Borrow(**id);
                *doubted = false;
                self.schedule.failed(number, held, Some(error), now);
                self.stray(used, DEFAULT_TTL, now);
            }
            BorrowAnswer::Fault { error, sent } => {
                *doubted |= sent;
                self.schedule.failed(number, held, Some(error), now);
            }
        }
    }

    /// Notes whether the server answered a call.
    pub(crate) fn handle_link(&mut self, answered: bool, now: Instant) {
        if !answered {
            self.link.failed(now);
        } else if self.link.answered(now) {
            self.schedule.line_up_sessions(&mut self.leases);
        }
    }

    /// Lets a forgotten lease be borrowed again: a worker not before its session is known to live.
    pub(super) fn line_up_forgotten(&mut self, number: u64, sent: Instant, now: Instant) {
        let Some(session) = self.leases.held.get(&number).map(|held| held.session()) else {
            return;
        };
        let lives = session.is_none_or(|session| {
            let session = self.leases.held.get(&session);
            session.is_some_and(|session| !session.is_forgotten() && session.proven >= sent)
        });
        let Some(held) = self.leases.held_mut(number) else { return };
        self.schedule.forgotten(number, held, !lives, now);
        if let Some(session) = session.filter(|_| !lives)
            && let Some(held) = self.leases.held_mut(session)
        {
            if let Role::Session(workers) = &mut held.role {
                workers.awaited = true;
            }
            self.schedule.hurry(session, held, now);
        }
    }

    /// Lets the workers be borrowed again that waited until their session was found alive.
    fn line_up_workers(&mut self, session: u64, now: Instant) {
        let Some(workers) = self.leases.workers_mut(session) else { return };
        if !std::mem::take(&mut workers.awaited) {
            return;
        }
        for number in workers.held.iter().copied().collect::<Vec<_>>() {
            if let Some(held) = self.leases.held_mut(number)
                && matches!(held.state, State::Forgotten { place: Place::Aside, .. })
            {
                self.schedule.forgotten(number, held, false, now);
            }
        }
    }

    /// Ends a lease of which no keep-alive succeeded for 95 % of its TTL.
    pub(super) fn lose(&mut self, number: u64) {
        let fault = self.leases.held_mut(number).and_then(|held| held.lapse.take_fault());
        let silent = || Error::unavailable("no keep-alive succeeded within the TTL");
        self.end(number, &fault.map_or_else(silent, |fault| *fault).lost());
    }

    /// Ends the session of a lease that was revoked.
    pub(super) fn revoke(&mut self, number: u64, reason: &Error) {
        let session = self.leases.held.get(&number).and_then(|held| held.session());
        self.end(session.unwrap_or(number), reason);
    }

    /// Ends a lease, and with a session its workers. It is returned when its guard is dropped.
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

    // ---- keep-alives in batches ----

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
