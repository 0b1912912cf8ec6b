//! What the pool's task has to do, and what it heard: keep-alives, borrows of leases the server
//! forgot, and tries of returns.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lease::BorrowId;
use rand::RngExt;

use super::{Asked, Held, Keeper, Role};
use crate::error::Error;
use crate::heartbeat::Due;
use crate::tgm::answer::{BorrowAnswer, Grant, KeepAliveAnswer, ReturnAnswer, UNTOLD_TTL};
use crate::tgm::returns::Target;

/// Most keep-alives and borrows of the task under way at once.
const MOST_CALLS: usize = 256;

/// The longest a keep-alive or a borrow of the task may take.
const CALL_DEADLINE: Duration = Duration::from_secs(5);

/// A call the task has to make.
#[derive(Debug)]
pub(crate) enum Call {
    KeepAlive { number: u64, key: Arc<str>, api_key: Arc<str>, deadline: Duration },
    Borrow { number: u64, asked: Asked, id: BorrowId, deadline: Duration },
    Return { number: u64, target: Target, minimal_life: Option<Duration> },
}

impl Keeper {
    /// Returns when to ask [`Keeper::next_call`] again if nothing happens before.
    pub(crate) fn next_time(&mut self, now: Instant) -> Option<Instant> {
        let room = self.calls < MOST_CALLS;
        let beats = if self.attachment.is_open() { self.attachment.has_room() } else { room };
        let beat = beats.then(|| self.heartbeat.next()).flatten();
        let borrow = room.then(|| self.heartbeat.next_borrow(now)).flatten();
        let batch = self.attachment.next_time();
        [beat, borrow, batch, self.returns.next()].into_iter().flatten().min()
    }

    /// Returns the next call that is due at `now`.
    pub(crate) fn next_call(&mut self, now: Instant) -> Option<Call> {
        while self.calls < MOST_CALLS {
            let due = if self.attachment.is_open() {
                None // These go in batches.
            } else {
                self.heartbeat.due(now, &mut self.link, &mut self.rng)
            };
            let due = due.or_else(|| self.heartbeat.due_borrow(now, &mut self.link, &mut self.rng));
            match due {
                Some(Due::Lost(number)) => self.lost(number),
                Some(Due::KeepAlive(number)) => return self.keep_alive(number, now),
                Some(Due::Borrow(number)) => return self.borrow_again(number, now),
                None => break,
            }
        }
        let attempt = self.returns.due(now, &mut self.link).or_else(|| {
            // Sessions may have waited long enough for the tries of their workers.
            self.workers_tried(now);
            self.returns.due(now, &mut self.link)
        })?;
        let (number, target) = (attempt.number, attempt.target);
        Some(Call::Return { number, target, minimal_life: attempt.minimal_life })
    }

    fn keep_alive(&mut self, number: u64, now: Instant) -> Option<Call> {
        let deadline = self.heartbeat.patience(number, now, CALL_DEADLINE);
        let held = self.held.get_mut(&number)?;
        held.calling = true;
        self.calls += 1;
        let (key, api_key) = (held.key.clone(), held.lease.ids().api_key.clone());
        Some(Call::KeepAlive { number, key, api_key, deadline })
    }

    fn borrow_again(&mut self, number: u64, now: Instant) -> Option<Call> {
        let deadline = self.heartbeat.patience(number, now, CALL_DEADLINE);
        let held = self.held.get_mut(&number)?;
        held.calling = true;
        self.calls += 1;
        // The same id through all retries, so that a lost answer costs no second slot.
        let id = *held.borrowing.get_or_insert_with(|| BorrowId(self.rng.random()));
        Some(Call::Borrow { number, asked: held.asked(), id, deadline })
    }

    // ---- answers to the task ----

    /// Takes the answer to a keep-alive that was sent at `sent`.
    pub(crate) fn kept_alive(
        &mut self,
        number: u64,
        answer: KeepAliveAnswer,
        sent: Instant,
        now: Instant,
    ) {
        self.calls -= 1;
        self.saw_link(!matches!(answer, KeepAliveAnswer::Fault(_)), now);
        self.heard(number, answer, sent, now);
    }

    /// Takes what became of the keep-alive of one lease.
    pub(super) fn heard(
        &mut self,
        number: u64,
        answer: KeepAliveAnswer,
        sent: Instant,
        now: Instant,
    ) {
        let Some(held) = self.answered(number, now) else { return };
        match answer {
            KeepAliveAnswer::Extended(ttl) => {
                held.ttl = ttl.unwrap_or(held.ttl);
                held.fault = None;
                held.lease.kept_alive();
                self.stats.kept_alive += 1;
                self.heartbeat.succeeded(number, ttl, sent, now, &mut self.rng);
                self.line_up_workers(number, now);
            }
            KeepAliveAnswer::Forgotten => {
                held.forgotten = true;
                held.borrowing = None;
                held.doubt = false;
                tracing::debug!(lease = number, "the server forgot a lease; it is borrowed again");
                self.forgotten(number, sent, now);
            }
            KeepAliveAnswer::Revoked(reason) => self.revoked(number, &reason),
            KeepAliveAnswer::Fault(error) => {
                tracing::debug!(lease = number, %error, "a keep-alive failed");
                held.fault = Some(Box::new(error));
                self.stats.keep_alives_failed += 1;
                self.heartbeat.failed(number, now, &mut self.rng);
            }
        }
    }

    /// Takes the answer to a borrow of the task that was sent at `sent`.
    pub(crate) fn borrowed_again(
        &mut self,
        number: u64,
        mut answer: BorrowAnswer,
        sent: Instant,
        now: Instant,
    ) {
        self.calls -= 1;
        self.saw_link(!matches!(answer, BorrowAnswer::Fault { .. }), now);
        match self.held.get(&number) {
            None => self.retarget(number, &answer),
            Some(_) => {
                if let Some(key) = answer.take_key() {
                    self.stray(Target::Key(key.into()), UNTOLD_TTL, now);
                }
            }
        }
        let Some(held) = self.answered(number, now) else {
            return self.borrowed_too_late(number, answer, now);
        };
        match answer {
            BorrowAnswer::Granted(grant) => {
                held.forgotten = false;
                held.borrowing = None;
                held.doubt = false;
                held.fault = None;
                held.ttl = grant.ttl;
                held.minimal_life = grant.minimal_life;
                self.rekey(number, &grant.key);
                self.stats.borrowed_again += 1;
                self.heartbeat.succeeded(number, Some(grant.ttl), sent, now, &mut self.rng);
                self.attachment.name(number, now);
                self.line_up_workers(number, now);
            }
            BorrowAnswer::Refused { error, .. } => {
                held.borrowing = None;
                held.doubt = false;
                match error {
                    Error::PermissionDenied { .. } | Error::QuotaExceeded { .. } => {
                        self.revoked(number, &error);
                    }
                    // The pool let it go on by itself, and now there is no place for it.
                    error if self.rules.fail_open && error.is_ceiling() => self.end(number, &error),
                    error => self.end(number, &error.lost()),
                }
            }
            BorrowAnswer::Nonsense { error, .. } => {
                held.borrowing = None;
                held.doubt = false;
                self.fault(number, error, now);
            }
            BorrowAnswer::Spent(error) => {
                // The next try needs another name; whatever this one took is given back by it.
                held.doubt = false;
                if let Some(id) = held.borrowing.take() {
                    self.stray(Target::Borrow(id), UNTOLD_TTL, now);
                }
                self.fault(number, error, now);
            }
            BorrowAnswer::Fault { error, sent } => {
                held.doubt |= sent;
                if !held.doubt {
                    held.borrowing = None;
                }
                self.fault(number, error, now);
            }
        }
    }

    /// Takes the answer to a borrow of a lease that has ended meanwhile: what it brought goes back.
    fn borrowed_too_late(&mut self, number: u64, answer: BorrowAnswer, now: Instant) {
        let Some(ended) = self.held.get_mut(&number) else { return };
        match answer {
            BorrowAnswer::Fault { .. } | BorrowAnswer::Spent(_) => {}
            BorrowAnswer::Refused { .. } | BorrowAnswer::Nonsense { .. } => ended.borrowing = None,
            BorrowAnswer::Granted(Grant { key, ttl, .. }) => {
                ended.borrowing = None;
                self.stray(Target::Key(key.into()), ttl, now);
            }
        }
    }

    /// Takes the answer to one try of a return.
    pub(crate) fn returned(&mut self, number: u64, answer: ReturnAnswer, now: Instant) {
        self.saw_link(answer.answered, now);
        self.returns.answered(number, answer.outcome, answer.again, now, &mut self.rng);
        self.workers_tried(now);
    }

    /// Notes that a call for a lease is over; the lease, unless it is gone or has ended.
    pub(super) fn answered(&mut self, number: u64, now: Instant) -> Option<&mut Held> {
        if !self.held.contains_key(&number) {
            // It was released meanwhile; its return waited for this answer.
            self.returns.unhold(number, now);
            self.workers_tried(now);
        }
        let held = self.held.get_mut(&number)?;
        held.calling = false;
        (!held.ended).then_some(held)
    }

    /// Gives back what a borrow brought for a lease that was released meanwhile.
    fn retarget(&mut self, number: u64, answer: &BorrowAnswer) {
        let target = match answer {
            BorrowAnswer::Granted(Grant { key, .. })
            | BorrowAnswer::Refused { key: Some(key), .. }
            | BorrowAnswer::Nonsense { key: Some(key), .. } => Target::Key(key.as_str().into()),
            // The order of the release names the borrow already.
            BorrowAnswer::Fault { .. } | BorrowAnswer::Spent(_) => return,
            BorrowAnswer::Refused { key: None, .. } | BorrowAnswer::Nonsense { key: None, .. } => {
                return self.returns.retarget(number, None);
            }
        };
        self.returns.retarget(number, Some(target));
    }

    fn fault(&mut self, number: u64, error: Error, now: Instant) {
        if let Some(held) = self.held.get_mut(&number) {
            held.fault = Some(Box::new(error));
        }
        self.heartbeat.failed(number, now, &mut self.rng);
    }

    /// Has a forgotten lease borrowed again: a worker not before its session is known to live.
    pub(super) fn forgotten(&mut self, number: u64, sent: Instant, now: Instant) {
        let session = match self.held.get(&number).map(|held| &held.role) {
            Some(Role::Worker { session, .. }) => *session,
            _ => return self.heartbeat.forgotten(number, now),
        };
        let alive = self.held.get(&session).is_some_and(|session| !session.forgotten)
            && self.heartbeat.proven(session).is_some_and(|proven| proven >= sent);
        if alive {
            return self.heartbeat.forgotten(number, now);
        }
        if let Some(Role::Worker { aside, .. }) = self.role(number) {
            *aside = true;
        }
        if let Some(Role::Session { awaited, .. }) = self.role(session) {
            *awaited = true;
        }
        self.heartbeat.aside(number, now);
        self.heartbeat.hurry(session, now);
    }

    /// Lines up the workers that waited for their session to be found alive.
    fn line_up_workers(&mut self, session: u64, now: Instant) {
        let Some(Role::Session { workers, awaited, .. }) = self.role(session) else { return };
        // Most sessions live on with nobody waiting: no need to look at their workers.
        if !std::mem::take(awaited) {
            return;
        }
        for number in workers.iter().copied().collect::<Vec<_>>() {
            if let Some(Role::Worker { aside, .. }) = self.role(number)
                && std::mem::take(aside)
            {
                self.heartbeat.forgotten(number, now);
            }
        }
    }

    pub(super) fn lost(&mut self, number: u64) {
        let fault = self.held.get_mut(&number).and_then(|held| held.fault.take());
        let silent = || Error::unavailable("no keep-alive succeeded within the TTL");
        self.end(number, &fault.map_or_else(silent, |fault| *fault).lost());
    }

    /// Ends the session that was told through any of its leases that it has to stop.
    pub(super) fn revoked(&mut self, number: u64, reason: &Error) {
        let session = match self.held.get(&number).map(|held| &held.role) {
            Some(Role::Worker { session, .. }) => *session,
            _ => number,
        };
        self.end(session, reason);
    }

    /// Ends a lease, and with a session its workers. It is returned when its guard goes.
    fn end(&mut self, number: u64, reason: &Error) {
        let Some(held) = self.held.get_mut(&number).filter(|held| !held.ended) else { return };
        held.ended = true;
        self.stats.ended(reason);
        self.heartbeat.remove(number);
        let ids = held.lease.ids();
        tracing::info!(
            service = &*ids.service, organization = &*ids.organization,
            trace = &*ids.trace, %reason, "a lease ended"
        );
        self.news.ended.push((held.lease.clone(), reason.clone()));
        if let Role::Session { workers, .. } = &held.role {
            for worker in workers.clone() {
                self.end(worker, reason);
            }
        }
    }
}
