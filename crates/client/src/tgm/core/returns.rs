//! How leases leave the pool: by a release, by a close, workers before their session.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::lease::{OfWorker, ReturnAnswer, Returning, Role, Target};
use super::schedule::backoff;
use super::stream::Stream;
use super::{Call, Core, Notice, Phase};
use crate::error::Error;
use crate::held::{Release, Released};
use crate::plugin::CloseReport;
use crate::stats::PoolStats;

/// Most leases without a known key that may wait for their return at once.
pub(super) const MOST_STRAYS: usize = 65_536;

/// The pauses between tries double from the first to the longest.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(100);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How long a session waits until the first try of each of its workers is answered. Nothing is lost
/// when the answer is late: the server ends workers with their session.
pub(super) const SESSION_PATIENCE: Duration = Duration::from_secs(1);

/// How long a return waits when the link admits no more calls.
const LINK_PAUSE: Duration = Duration::from_secs(1);

/// The minimal life of a session when neither the URL nor the server says one.
const MINIMAL_LIFE: Duration = Duration::from_secs(5);

impl Core {
    /// Queues the return of a lease, its workers first. Unknown and returned leases are no error.
    pub(crate) fn release(
        &mut self,
        number: u64,
        minimal_life: Option<Duration>,
        now: Instant,
    ) -> Release {
        if self.phase == Phase::Gone {
            return Release::known(Err(Error::Closed));
        }
        self.give_back(number, minimal_life, now);
        match self.watch(number) {
            Some(outcome) => Release::waiting(outcome),
            None => Release::known(Ok(Released::Missing)),
        }
    }

    /// Returns a receiver of the outcome; `None` when no such lease is being returned.
    pub(super) fn watch(
        &mut self,
        number: u64,
    ) -> Option<oneshot::Receiver<Result<Released, Error>>> {
        let returning = self.leases.returning_mut(number)?;
        let (sender, receiver) = oneshot::channel();
        returning.waiters.push(sender);
        Some(receiver)
    }

    /// Begins the return of a held lease and of its workers.
    fn give_back(&mut self, number: u64, minimal_life: Option<Duration>, now: Instant) {
        let Some(held) = self.leases.held.remove(&number) else { return };
        self.schedule.remove(number, &held);
        self.keys.remove(&held.key);
        self.stats.let_go(held.is_worker());
        let mut returning = Returning::new(held.target(), now + held.ttl);
        returning.holds = usize::from(held.is_in_flight());
        match held.role {
            Role::Worker(OfWorker { session, .. }) => {
                if let Some(workers) = self.leases.workers_mut(session)
                    && workers.held.remove(&number)
                {
                    workers.leaving += 1;
                }
                returning.minimal_life = minimal_life;
                returning.session = Some(session);
                self.add_return(number, returning, now);
            }
            Role::Session(workers) => {
                self.uncount(number, now);
                let by_default = self.rules.minimal_life.or(held.minimal_life);
                returning.minimal_life = minimal_life.or(by_default).or(Some(MINIMAL_LIFE));
                returning.holds += workers.leaving + workers.held.len();
                self.add_return(number, returning, now);
                for worker in workers.held {
                    if let Some(held) = self.leases.held.get(&worker) {
                        let ended = Notice::Ended(held.lease.clone(), Error::SessionNotFound);
                        self.notices.push_back(ended);
                    }
                    self.give_back(worker, None, now);
                }
            }
        }
    }

    /// Queues the return of something that no guard holds.
    pub(crate) fn stray(&mut self, target: Target, ttl: Duration, now: Instant) {
        if self.phase == Phase::Gone {
            self.stats.not_returned += 1;
            return;
        }
        if self.leases.returning.len() >= self.leases.held.len() + MOST_STRAYS {
            tracing::warn!("too many unanswered borrows; one is left to end by its TTL");
            return;
        }
        let mut returning = Returning::new(Some(target), now + ttl);
        returning.minimal_life = Some(Duration::ZERO);
        let number = self.next_number();
        self.add_return(number, returning, now);
    }

    pub(super) fn add_return(&mut self, number: u64, returning: Returning, now: Instant) {
        let is_ready = returning.holds == 0;
        self.returns.queue.insert((returning.due, number));
        self.leases.returning.insert(number, Box::new(returning));
        if is_ready {
            self.begin_tries(number, now);
        }
    }

    /// Notes that one of the things that a return waits for has happened.
    pub(super) fn unhold(&mut self, number: u64, now: Instant) {
        let Some(returning) = self.leases.returning_mut(number) else { return };
        if returning.holds > 0 {
            returning.holds -= 1;
            if returning.holds == 0 {
                self.begin_tries(number, now);
            }
        }
    }

    fn begin_tries(&mut self, number: u64, now: Instant) {
        match self.leases.returning_mut(number) {
            Some(Returning { target: Some(_), .. }) => self.returns.ready.push_back(number),
            _ => self.settle(number, Ok(Released::Missing), now),
        }
    }

    /// Returns the next try that is due at `now`, and gives up what must be given up by then.
    pub(super) fn due_return(&mut self, now: Instant) -> Option<Call> {
        while let Some((_, number)) =
            self.returns.queue.first().copied().filter(|(at, _)| *at <= now)
        {
            let returning = self.leases.returning.get_mut(&number);
            let returning = returning.expect("only leases that are returned are in the queue");
            if now >= returning.give_up {
                let fault = returning.fault.take();
                let late = || Error::unavailable("the return was not answered within one TTL");
                self.settle(number, Err(fault.map_or_else(late, |fault| *fault)), now);
                continue;
            }
            self.returns.set_due(number, returning, returning.give_up);
            if returning.in_flight {
                // A worker that cannot be returned yet does not keep the slot of its session taken.
                self.mark_tried(number, now);
            } else {
                self.returns.ready.push_back(number);
            }
        }
        while self.returns.has_room() {
            let number = self.returns.ready.pop_front()?;
            // It may have been given up meanwhile.
            let Some(returning) = self.leases.returning.get_mut(&number) else { continue };
            let Some(target) = returning.target.clone() else { continue };
            if !self.link.admits(now) {
                self.returns.set_due(number, returning, now + LINK_PAUSE);
                continue;
            }
            self.returns.calls += 1;
            returning.in_flight = true;
            if returning.session.is_some() {
                self.returns.set_due(number, returning, now + SESSION_PATIENCE);
            }
            return Some(Call::Return { number, target, minimal_life: returning.minimal_life });
        }
        None
    }

    /// Handles the answer to one try of a return.
    pub(crate) fn handle_return(&mut self, number: u64, answer: ReturnAnswer, now: Instant) {
        let ReturnAnswer { outcome, again, answered } = answer;
        self.handle_link(answered, now);
        self.returns.calls -= 1;
        self.mark_tried(number, now);
        let Some(returning) = self.leases.returning.get_mut(&number) else { return };
        returning.tries += 1;
        returning.in_flight = false;
        match outcome {
            Err(error) if again => {
                let (tries, rng) = (returning.tries, &mut self.schedule.rng);
                let next = now + backoff(tries, FIRST_PAUSE, LONGEST_PAUSE, rng);
                returning.fault = Some(Box::new(error));
                self.stats.retried += u64::from(next < returning.give_up);
                self.returns.set_due(number, returning, next);
            }
            outcome => self.settle(number, outcome, now),
        }
    }

    /// Notes that the return of a worker was tried: its session, held or being returned, does not wait
    /// for it any more.
    fn mark_tried(&mut self, number: u64, now: Instant) {
        let returning = self.leases.returning_mut(number);
        let Some(session) = returning.and_then(|returning| returning.session.take()) else {
            return;
        };
        match self.leases.workers_mut(session) {
            Some(workers) => workers.leaving -= 1,
            None => self.unhold(session, now),
        }
    }

    /// Ends a return, and tells the outcome to all who wait for it.
    fn settle(&mut self, number: u64, outcome: Result<Released, Error>, now: Instant) {
        self.mark_tried(number, now);
        let Some(returning) = self.leases.returning.remove(&number) else { return };
        self.returns.queue.remove(&(returning.due, number));
        match &outcome {
            Ok(_) if matches!(returning.target, Some(Target::Key(_))) => self.stats.returned += 1,
            // Nothing was held, or it is not known whether anything was.
            Ok(_) => {}
            Err(error) => {
                self.stats.not_returned += 1;
                let tries = returning.tries;
                tracing::warn!(lease = number, tries, %error, "a return was given up");
            }
        }
        if !returning.waiters.is_empty() {
            self.notices.push_back(Notice::Settled(returning.waiters, outcome));
        }
    }

    // ---- close ----

    /// Refuses borrows from now on, and ends and returns everything held, workers first.
    pub(crate) fn close(&mut self, now: Instant) -> oneshot::Receiver<()> {
        self.begin_close();
        let alive = self.leases.held.values().filter(|held| !held.has_ended());
        let ended = alive.map(|held| Notice::Ended(held.lease.clone(), Error::Closed));
        self.notices.extend(ended);
        let sessions = self.leases.held.iter().filter(|(_, held)| !held.is_worker());
        for session in sessions.map(|(number, _)| *number).collect::<Vec<u64>>() {
            self.give_back(session, Some(Duration::ZERO), now);
        }
        let (closer, drained) = oneshot::channel();
        self.closers.push(closer);
        drained
    }

    fn begin_close(&mut self) {
        if self.phase == Phase::Open {
            self.phase = Phase::Closing;
            let PoolStats { returned, not_returned, .. } = self.stats;
            self.before_close = CloseReport { returned, not_returned };
        }
    }

    /// Stops trying to return what is left.
    pub(crate) fn give_up(&mut self, now: Instant) {
        let late = Error::unavailable("the pool was closed before the return was answered");
        self.settle_all(&late, now);
    }

    fn settle_all(&mut self, why: &Error, now: Instant) {
        for number in self.leases.returning.keys().copied().collect::<Vec<u64>>() {
            self.settle(number, Err(why.clone()), now);
        }
        self.returns.ready.clear();
    }

    /// Ends everything, unless nothing is left to do: the task of the pool has ended, so no lease is
    /// kept alive or returned from now on.
    pub(crate) fn abandon(&mut self, now: Instant) {
        if self.is_drained() && self.leases.held.is_empty() {
            return;
        }
        self.begin_close();
        self.phase = Phase::Gone;
        tracing::error!(
            leases = self.leases.held.len(),
            returns = self.leases.returning.len(),
            "the task of a session pool is gone: its runtime was shut down, or it panicked; what it \
             held ends here, and counts until its TTL ends"
        );
        self.settle_all(&Error::Closed, now);
        for held in std::mem::take(&mut self.leases.held).into_values() {
            self.stats.not_returned += u64::from(held.target().is_some());
            if !held.has_ended() {
                self.stats.ended(&Error::Closed);
                self.notices.push_back(Notice::Ended(held.lease, Error::Closed));
            }
        }
        self.keys.clear();
        self.counts = None;
        self.schedule.clear();
        self.stream = Stream::new();
        (self.stats.sessions_held, self.stats.workers_held) = (0, 0);
    }

    /// Returns the results of all returns since the close began. Those that are not settled count as
    /// not returned.
    pub(crate) fn report(&self) -> CloseReport {
        let left = self.leases.returning.len() as u64;
        CloseReport {
            returned: self.stats.returned - self.before_close.returned,
            not_returned: self.stats.not_returned - self.before_close.not_returned + left,
        }
    }

    /// Whether the pool is closed and nothing is left to do, or its task has ended.
    pub(crate) fn is_drained(&self) -> bool {
        let in_flight = self.calls > 0 || self.stream.has_batches();
        let left = self.borrows > 0 || in_flight || !self.leases.returning.is_empty();
        self.phase == Phase::Gone || self.phase == Phase::Closing && !left
    }
}
