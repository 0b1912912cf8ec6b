//! How leases leave the pool: by a release, by a close, workers before their session.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use rand::RngExt;
use tokio::sync::oneshot;

use super::lease::{ReturnAnswer, Returning, Role, Target};
use super::schedule::Schedule;
use super::state::{Call, Core, Notice, Phase};
use super::stream::Stream;
use crate::error::Error;
use crate::held::{Release, Released};
use crate::plugin::CloseReport;

/// Most leases without a known key that may wait for their return at once.
pub(super) const MOST_STRAYS: usize = 65_536;

/// The pauses between tries double from the first to the longest.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(100);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How long a session waits for the first try of each of its workers to be answered. They end with
/// it, so nothing is lost when they turn out to be late.
pub(super) const SESSION_PATIENCE: Duration = Duration::from_secs(1);

/// How long a return waits while the link admits no more calls.
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

    /// Returns a receiver of the outcome; `None` when nothing of that number is on its way.
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
        let Some(held) = self.leases.take_held(number) else { return };
        self.schedule.remove(number, &held);
        self.keys.remove(&held.key);
        self.stats.let_go(held.is_worker());
        let target = held.target();
        let holds = usize::from(held.is_in_flight());
        let give_up = now + held.ttl;
        match held.role {
            Role::Worker { session, .. } => {
                if let Some(workers) = self.leases.workers_mut(session)
                    && workers.held.remove(&number)
                {
                    workers.leaving += 1;
                }
                let returning = Returning::new(target, minimal_life, give_up).held_by(holds);
                self.add_return(number, returning.before(session), now);
            }
            Role::Session(workers) => {
                self.leave_ceiling(held.lease.ids());
                let by_default = self.rules.minimal_life.or(held.minimal_life);
                let minimal_life = minimal_life.or(by_default).or(Some(MINIMAL_LIFE));
                let holds = holds + workers.leaving + workers.held.len();
                let returning = Returning::new(target, minimal_life, give_up).held_by(holds);
                self.add_return(number, returning, now);
                for worker in workers.held {
                    if let Some(held) = self.leases.held(worker) {
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
            self.returns.lose(1);
            return;
        }
        if self.leases.returning_count() >= self.leases.held_count() + MOST_STRAYS {
            tracing::warn!("too many unanswered borrows; one is left to end by its TTL");
            return;
        }
        let number = self.next_number();
        self.add_return(number, Returning::new(Some(target), Some(Duration::ZERO), now + ttl), now);
    }

    pub(super) fn add_return(&mut self, number: u64, returning: Returning, now: Instant) {
        let is_ready = returning.holds == 0;
        self.returns.ends.insert((returning.give_up, number));
        self.leases.give_back(number, returning);
        if is_ready {
            self.begin_tries(number, now);
        }
    }

    /// Notes that one of the things the return waited for has happened.
    pub(super) fn unhold(&mut self, number: u64, now: Instant) {
        let Some(returning) = self.leases.returning_mut(number) else { return };
        if returning.holds > 0 {
            returning.holds -= 1;
            if returning.holds == 0 {
                self.begin_tries(number, now);
            }
        }
    }

    /// Changes what is given back, before the first try.
    pub(super) fn retarget(&mut self, number: u64, target: Option<Target>) {
        if let Some(returning) = self.leases.returning_mut(number) {
            returning.target = target;
        }
    }

    fn begin_tries(&mut self, number: u64, now: Instant) {
        match self.leases.returning_mut(number) {
            Some(Returning { target: Some(_), .. }) => {
                self.returns.queue.push(Reverse((now, number)));
            }
            _ => self.settle(number, Ok(Released::Missing), now),
        }
    }

    /// Returns the next try that is due at `now`, and gives up what is to be given up by then.
    pub(super) fn due_return(&mut self, now: Instant) -> Option<Call> {
        while let Some((_, number)) =
            self.returns.ends.first().copied().filter(|(at, _)| *at <= now)
        {
            let fault = self.leases.returning_mut(number).and_then(|item| item.fault.take());
            let late = || Error::unavailable("the return was not answered within one TTL");
            self.settle(number, Err(fault.map_or_else(late, |fault| *fault)), now);
        }
        while let Some((_, number)) = self.returns.awaited.pop_front_if(|(until, _)| *until <= now)
        {
            // A worker that cannot be returned yet does not keep the slot of its session taken.
            self.mark_tried(number, now);
        }
        while self.returns.next_try().is_some_and(|at| at <= now) {
            let Reverse((_, number)) = self.returns.queue.pop()?;
            let Some(returning) = self.leases.returning_mut(number) else { continue };
            let Some(target) = returning.target.clone() else { continue };
            if !self.link.admits(now) {
                self.returns.queue.push(Reverse((now + LINK_PAUSE, number)));
                continue;
            }
            self.returns.calls += 1;
            if returning.session.is_some() {
                self.returns.awaited.push_back((now + SESSION_PATIENCE, number));
            }
            return Some(Call::Return { number, target, minimal_life: returning.minimal_life });
        }
        None
    }

    /// Takes the answer to one try of a return.
    pub(crate) fn handle_return(&mut self, number: u64, answer: ReturnAnswer, now: Instant) {
        let ReturnAnswer { outcome, again, answered } = answer;
        self.handle_link(answered, now);
        self.returns.calls -= 1;
        self.mark_tried(number, now);
        // Most are answered in their order, so that nobody wakes for those that are.
        self.returns.awaited.pop_front_if(|(_, awaited)| *awaited == number);
        let Some(returning) = self.leases.returning_mut(number) else { return };
        returning.tries += 1;
        match outcome {
            Err(error) if again => {
                let doublings = returning.tries.min(16).saturating_sub(1);
                let pause = FIRST_PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE);
                let next = now + pause.mul_f64(self.rng.random_range(0.5..=1.0));
                returning.fault = Some(Box::new(error));
                if next < returning.give_up {
                    self.returns.retried += 1;
                    self.returns.queue.push(Reverse((next, number)));
                }
            }
            outcome => self.settle(number, outcome, now),
        }
    }

    /// Notes that a worker on its way back was tried: its session waits for it no longer.
    fn mark_tried(&mut self, number: u64, now: Instant) {
        let returning = self.leases.returning_mut(number);
        if let Some(session) = returning.and_then(|returning| returning.session.take()) {
            self.release_session_from(session, now);
        }
    }

    /// Notes that a session, held or on its way back, waits for one worker less.
    fn release_session_from(&mut self, session: u64, now: Instant) {
        match self.leases.workers_mut(session) {
            Some(workers) => workers.leaving -= 1,
            None => self.unhold(session, now),
        }
    }

    /// Ends a return, and has everyone who waits for it told how.
    fn settle(&mut self, number: u64, outcome: Result<Released, Error>, now: Instant) {
        let Some(returning) = self.leases.take_returning(number) else { return };
        self.returns.ends.remove(&(returning.give_up, number));
        if let Some(session) = returning.session {
            self.release_session_from(session, now);
        }
        match &outcome {
            Ok(_) if matches!(returning.target, Some(Target::Key(_))) => {
                self.returns.tally.returned += 1;
                self.returns.returned += 1;
            }
            // Nothing was held, or nobody knows whether anything was.
            Ok(_) => {}
            Err(error) => {
                self.returns.lose(1);
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
        let alive = self.leases.all_held().filter(|(_, held)| !held.has_ended());
        let ended = alive.map(|(_, held)| Notice::Ended(held.lease.clone(), Error::Closed));
        self.notices.extend(ended);
        let sessions = self.leases.all_held().filter(|(_, held)| !held.is_worker());
        for session in sessions.map(|(number, _)| number).collect::<Vec<u64>>() {
            self.give_back(session, Some(Duration::ZERO), now);
        }
        let (closer, drained) = oneshot::channel();
        self.closers.push(closer);
        drained
    }

    fn begin_close(&mut self) {
        if self.phase == Phase::Open {
            self.phase = Phase::Closing;
            // A close reports what it did itself.
            self.returns.tally = CloseReport::default();
        }
    }

    /// Stops trying to return what is left.
    pub(crate) fn give_up(&mut self, now: Instant) {
        let late = Error::unavailable("the pool was closed before the return was answered");
        self.settle_all(&late, now);
    }

    fn settle_all(&mut self, why: &Error, now: Instant) {
        self.returns.queue.clear();
        for number in self.leases.all_returning().collect::<Vec<u64>>() {
            self.settle(number, Err(why.clone()), now);
        }
    }

    /// Ends everything, unless nothing is left to do: the task of the pool is gone, so nobody keeps
    /// alive or returns anything from now on.
    pub(crate) fn abandon(&mut self, now: Instant) {
        if self.is_drained() && self.leases.held_count() == 0 {
            return;
        }
        self.begin_close();
        self.phase = Phase::Gone;
        tracing::error!(
            leases = self.leases.held_count(),
            returns = self.leases.returning_count(),
            "the task of a session pool is gone: its runtime was shut down, or it panicked; what it \
             held ends here, and counts until its TTL ends"
        );
        self.settle_all(&Error::Closed, now);
        for (_, held) in std::mem::take(&mut self.leases).all_held() {
            self.returns.lose(u64::from(held.target().is_some()));
            if !held.has_ended() {
                self.stats.ended(&Error::Closed);
                self.notices.push_back(Notice::Ended(held.lease.clone(), Error::Closed));
            }
        }
        self.keys.clear();
        self.sessions.clear();
        self.schedule = Schedule::new(self.rules.delay, self.rules.fail_open);
        self.stream = Stream::new();
        (self.stats.sessions_held, self.stats.workers_held) = (0, 0);
    }

    /// Returns what became of all returns since the close began; what is still on its way counts as
    /// not returned.
    pub(crate) fn report(&self) -> CloseReport {
        let CloseReport { returned, not_returned } = self.returns.tally;
        let left = self.leases.returning_count() as u64;
        CloseReport { returned, not_returned: not_returned + left }
    }

    /// Whether the pool is closed and nothing is left to do, or nobody is left to do it.
    pub(crate) fn is_drained(&self) -> bool {
        let in_flight = self.calls > 0 || self.stream.has_batches();
        let left = self.borrows > 0 || in_flight || self.leases.returning_count() > 0;
        self.phase == Phase::Gone || self.phase == Phase::Closing && !left
    }
}
