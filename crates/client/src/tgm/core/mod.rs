//! The core of a remote pool: one state machine without I/O and without a clock.
//!
//! Callers, guards and the driver tell it what happened; the driver asks it what to do
//! ([`Core::poll_output`]) and when to ask again ([`Core::poll_timeout`]), and answers with one of
//! `handle_…`. Every decision about a lease is made here, under one lock that is never held across
//! an await, so each interleaving of calls and answers is a sequence of these methods.

mod calls;
mod lease;
mod returns;
mod schedule;
mod state;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

use ::lease::BorrowId;

pub(crate) use self::lease::{
    Asked, BorrowAnswer, Grant, KeepAliveAnswer, ReturnAnswer, Target, UNTOLD_TTL,
};
use self::lease::{Held, Lapse, Role, State, Workers};
pub(crate) use self::state::{Call, Core, Notice, Output, Rules};
use self::state::{MOST_CALLS, Phase};
use self::stream::Wish;
pub(crate) use self::stream::{Batch, Detached, MOST_BATCHES, StreamEvent};
use crate::error::{Error, Scope};
use crate::held::Lease;
use crate::request::{Ids, OnError};
use crate::stats::PoolStats;

/// Most sessions of one organization and service that are admitted when the URL says nothing.
const MOST_SESSIONS: u64 = 10;

impl Core {
    // ---- what to do, and when ----

    /// Returns the next thing to do at `now`; `None` until [`Core::poll_timeout`] or until something
    /// is told.
    pub(crate) fn poll_output(&mut self, now: Instant) -> Option<Output> {
        if let Some(notice) = self.poll_notice() {
            return Some(Output::Notice(notice));
        }
        if let Some(batch) = self.poll_batch(now) {
            return Some(Output::Batch(batch));
        }
        if let Some(call) = self.poll_call(now) {
            return Some(Output::Call(call));
        }
        let wanted = self.wants_stream();
        match self.stream.poll_wish(wanted, now) {
            Some(Wish::Open) => return Some(Output::OpenStream),
            Some(Wish::Close) => return Some(Output::CloseStream),
            // Leases may have been lost just now.
            None => {}
        }
        self.poll_notice().map(Output::Notice)
    }

    /// Returns the next thing that somebody has to hear: whoever told the core something delivers
    /// what follows from it.
    pub(crate) fn poll_notice(&mut self) -> Option<Notice> {
        if let Some(notice) = self.notices.pop_front() {
            return Some(notice);
        }
        if self.closers.is_empty() || !self.is_drained() {
            return None;
        }
        self.closers.pop().map(Notice::Drained)
    }

    /// Returns when to ask [`Core::poll_output`] again if nothing is told before.
    pub(crate) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let room = self.calls < MOST_CALLS;
        let beats = if self.stream.is_open() { self.stream.has_room() } else { room };
        let beat = beats.then(|| self.schedule.next()).flatten();
        let borrow = room.then(|| self.schedule.next_borrow(now)).flatten();
        let attach = self.wants_stream().then(|| self.stream.opens_at(now)).flatten();
        let times = [beat, borrow, attach, self.stream.next_time(), self.returns.next()];
        times.into_iter().flatten().min()
    }

    /// Returns what the pool holds and has done.
    pub(crate) fn stats(&self) -> PoolStats {
        PoolStats {
            attached: self.stream.is_open(),
            returned: self.returns.returned,
            not_returned: self.returns.not_returned,
            retried: self.stats.retried + self.returns.retried,
            ..self.stats
        }
    }

    // ---- borrows of callers ----

    /// Lets a borrow of a session begin; [`Core::handle_grant`], [`Core::admit`] or
    /// [`Core::end_borrow`] ends it.
    pub(crate) fn begin_session(&mut self, asked: &Asked) -> Result<(), Error> {
        if self.is_closing() {
            return Err(Error::Closed);
        }
        if self.rules.counts_sessions() {
            let pool = (asked.ids.organization.clone(), asked.ids.service.clone());
            let active = self.sessions.get(&pool).copied().unwrap_or(0);
            if let Some(max) = self.rules.most_sessions.filter(|max| active >= *max) {
                let scope = Scope::Pool;
                return Err(Error::ConcurrentStreamLimitExceeded { active, max, scope });
            }
            self.sessions.insert(pool, active + 1);
        }
        self.borrows += 1;
        Ok(())
    }

    /// Lets a borrow of a worker under `session` begin, and returns what to ask for. It ends as that
    /// of a session.
    pub(crate) fn begin_worker(
        &mut self,
        session: u64,
        service: &Arc<str>,
        max_per_session: u32,
    ) -> Result<Asked, Error> {
        if self.is_closing() {
            return Err(Error::Closed);
        }
        let held = self.leases.held(session).ok_or(Error::SessionNotFound)?;
        let Role::Session(workers) = &held.role else { return Err(Error::SessionNotFound) };
        // Nothing is borrowed after a revocation: whoever asks hears the reason again.
        if let Some(reason) = held.lease.end_reason() {
            return Err(reason.clone());
        }
        if held.has_ended() {
            return Err(Error::SessionNotFound);
        }
        if max_per_session == 0 {
            // On the wire a cap of 0 would ask for a session.
            let active = workers.held.len() as u64;
            return Err(Error::WorkersLimitExceeded { active, max: 0, scope: Scope::Trace });
        }
        self.borrows += 1;
        let ids = held.lease.ids().with_service(service.clone());
        Ok(Asked { ids, max_workers: i64::from(max_per_session) })
    }

    /// Takes the grant of a caller's borrow that was sent at `sent`.
    pub(crate) fn handle_grant(
        &mut self,
        asked: &Asked,
        session: Option<u64>,
        on_error: Option<OnError>,
        grant: Grant,
        sent: Instant,
        now: Instant,
    ) -> Result<Arc<Lease>, Error> {
        self.handle_link(true, now);
        if let Err(error) = self.may_hold(session) {
            self.stray(Target::Key(grant.key.into()), grant.ttl, now);
            self.end_borrow(asked);
            return Err(error);
        }
        let (number, lease) = self.hold(asked, session, on_error, grant, sent);
        if let Some(held) = self.leases.held_mut(number)
            // Naming a lease keeps it alive, too: it needs no turn before that.
            && !self.stream.names_within(self.schedule.interval(held.ttl))
        {
            self.schedule.line_up_new(number, held, now, &mut self.rng);
        }
        self.stream.name(number, now);
        Ok(lease)
    }

    /// Admits a caller's borrow without the server, which is asked for it when it is back.
    ///
    /// `borrow` names the borrow if the server may have granted it without being heard: it is asked
    /// under that name then, so that one lease costs one slot.
    pub(crate) fn admit(
        &mut self,
        asked: &Asked,
        session: Option<u64>,
        on_error: Option<OnError>,
        borrow: Option<BorrowId>,
        now: Instant,
    ) -> Result<Arc<Lease>, Error> {
        self.may_hold(session)?;
        self.check_own_ceiling(asked, session)?;
        let key = format!("offline-{}", self.numbers + 1);
        let grant = Grant { key, ttl: UNTOLD_TTL, minimal_life: None };
        let (number, lease) = self.hold(asked, session, on_error, grant, now);
        if let Some(held) = self.leases.held_mut(number) {
            self.schedule.line_up_offline(number, held, borrow, now, &mut self.rng);
        }
        if session.is_some() {
            // After its session, whose turn comes with the first answer.
            self.line_up_forgotten(number, now, now);
        }
        self.stats.failed_open += 1;
        tracing::warn!(
            service = &*asked.ids.service,
            organization = &*asked.ids.organization,
            trace = &*asked.ids.trace,
            "the session server is away; admitted without it"
        );
        Ok(lease)
    }

    /// Whether the pool takes what a borrow brought, under `session` if it was for a worker.
    fn may_hold(&self, session: Option<u64>) -> Result<(), Error> {
        match session.map(|session| self.leases.held(session)) {
            _ if self.is_closing() => Err(Error::Closed),
            None => Ok(()),
            Some(Some(held)) if !held.has_ended() => Ok(()),
            Some(held) => {
                let reason = held.and_then(|held| held.lease.end_reason().cloned());
                Err(reason.unwrap_or(Error::SessionNotFound))
            }
        }
    }

    /// Ends a caller's borrow with a lease that is held; the schedule has to learn of it.
    fn hold(
        &mut self,
        asked: &Asked,
        session: Option<u64>,
        on_error: Option<OnError>,
        grant: Grant,
        proven: Instant,
    ) -> (u64, Arc<Lease>) {
        self.borrows -= 1;
        let number = self.next_number();
        let Grant { key, ttl, minimal_life } = grant;
        let key: Arc<str> = key.into();
        let lease = Arc::new(Lease::new(number, key.clone(), asked.ids.clone(), on_error));
        let role = match session {
            None => Role::Session(Workers::default()),
            Some(session) => Role::Worker { session, max_workers: asked.max_workers },
        };
        if let Some(workers) = session.and_then(|session| self.leases.workers_mut(session)) {
            workers.held.insert(number);
        }
        self.keys.insert(key.clone(), number);
        let lost_at = self.schedule.lost_at(proven, ttl);
        let (lapse, state) = (Lapse::None, State::New);
        let held = Held {
            lease: lease.clone(),
            key,
            role,
            ttl,
            minimal_life,
            proven,
            lost_at,
            lapse,
            state,
        };
        self.leases.hold(number, held);
        self.stats.held(session.is_some());
        (number, lease)
    }

    /// Ends a caller's borrow that brought nothing.
    pub(crate) fn end_borrow(&mut self, asked: &Asked) {
        self.borrows -= 1;
        if !asked.is_worker() {
            self.leave_ceiling(&asked.ids);
        }
    }

    /// Notes that a borrow of a caller failed for good.
    pub(crate) fn count_denied(&mut self, error: &Error) {
        self.stats.denied.count(error);
    }

    /// Notes that a borrow of a caller is sent again.
    pub(crate) fn count_retry(&mut self) {
        self.stats.retried += 1;
    }

    /// Whether no borrow may bring anything any more.
    pub(crate) fn is_closing(&self) -> bool {
        self.phase != Phase::Open
    }

    fn check_own_ceiling(&self, asked: &Asked, session: Option<u64>) -> Result<(), Error> {
        let Some(session) = session else {
            let pool = (asked.ids.organization.clone(), asked.ids.service.clone());
            let max = self.rules.most_sessions.unwrap_or(MOST_SESSIONS);
            // The borrow itself is among them.
            let active = self.sessions.get(&pool).map_or(0, |active| active - 1);
            let scope = Scope::Pool;
            let full = Error::ConcurrentStreamLimitExceeded { active, max, scope };
            return if active < max { Ok(()) } else { Err(full) };
        };
        let Some(Held { role: Role::Session(workers), .. }) = self.leases.held(session) else {
            return Err(Error::SessionNotFound);
        };
        let is_same = |worker: &&u64| {
            let held = self.leases.held(**worker);
            held.is_some_and(|held| held.lease.ids().service == asked.ids.service)
        };
        let active = workers.held.iter().filter(is_same).count() as u64;
        let max = u64::try_from(asked.max_workers).unwrap_or(0);
        let full = Error::WorkersLimitExceeded { active, max, scope: Scope::Trace };
        if active < max { Ok(()) } else { Err(full) }
    }

    fn leave_ceiling(&mut self, ids: &Ids) {
        if !self.rules.counts_sessions() {
            return;
        }
        let pool = (ids.organization.clone(), ids.service.clone());
        if let Some(active) = self.sessions.get_mut(&pool) {
            *active -= 1;
            if *active == 0 {
                self.sessions.remove(&pool);
            }
        }
    }

    fn next_number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }
}
