//! How leases leave the pool: by a release, by a close, workers before their session.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{Attachment, Held, Keeper, Role};
use crate::error::Error;
use crate::heartbeat::Heartbeat;
use crate::held::{Release, Released};
use crate::plugin::CloseReport;
use crate::tgm::returns::{Return, Target};

/// The minimal life of a session when neither the URL nor the server says one.
const MINIMAL_LIFE: Duration = Duration::from_secs(5);

impl Held {
    /// What the server has to take back for it; `None` when it holds nothing.
    fn target(&self) -> Option<Target> {
        match (self.forgotten, self.borrowing) {
            (false, _) => Some(Target::Key(self.key.clone())),
            (true, borrowing) => borrowing.map(Target::Borrow),
        }
    }
}

impl Keeper {
    // ---- returns ----

    /// Queues the return of a lease, its workers first. Unknown and returned leases are no error.
    pub(crate) fn release(
        &mut self,
        number: u64,
        minimal_life: Option<Duration>,
        now: Instant,
    ) -> Release {
        if self.gone {
            return Release::known(Err(Error::Closed));
        }
        self.give_back(number, minimal_life, now);
        match self.returns.watch(number) {
            Some(outcome) => Release::waiting(outcome),
            None => Release::known(Ok(Released::Missing)),
        }
    }

    /// Moves a lease and its workers from the table to the returns.
    fn give_back(&mut self, number: u64, minimal_life: Option<Duration>, now: Instant) {
        let Some(held) = self.held.remove(&number) else { return };
        self.heartbeat.remove(number);
        self.keys.remove(&held.key);
        self.stats.let_go(matches!(held.role, Role::Worker { .. }));
        let target = held.target();
        let holds = usize::from(held.calling);
        let give_up = now + held.ttl;
        match held.role {
            Role::Worker { session, .. } => {
                if let Some(Role::Session { workers, leaving, .. }) = self.role(session)
                    && workers.remove(&number)
                {
                    *leaving += 1;
                }
                let session = Some(session);
                let order = Return { target, minimal_life, give_up, holds, session };
                self.returns.add(number, order, now);
            }
            Role::Session { workers, leaving, .. } => {
                self.leave_pool(held.lease.ids());
                let told = self.rules.minimal_life.or(held.minimal_life);
                let minimal_life = minimal_life.or(told).or(Some(MINIMAL_LIFE));
                let holds = holds + leaving + workers.len();
                let order = Return { target, minimal_life, give_up, holds, session: None };
                self.returns.add(number, order, now);
                for worker in workers {
                    if let Some(held) = self.held.get(&worker) {
                        self.news.ended.push((held.lease.clone(), Error::SessionNotFound));
                    }
                    self.give_back(worker, None, now);
                }
            }
        }
        self.workers_tried(now);
    }

    /// Lets the sessions go of which the last worker was tried.
    pub(super) fn workers_tried(&mut self, now: Instant) {
        for session in self.returns.take_tried() {
            match self.role(session) {
                Some(Role::Session { leaving, .. }) => *leaving -= 1,
                _ => self.returns.unhold(session, now),
            }
        }
    }

    // ---- close ----

    /// Refuses borrows from now on, and ends and returns everything held, workers first.
    pub(crate) fn close(&mut self, now: Instant) -> oneshot::Receiver<()> {
        if !std::mem::replace(&mut self.closing, true) {
            self.returns.begin_tally();
        }
        for held in self.held.values().filter(|held| !held.ended) {
            self.news.ended.push((held.lease.clone(), Error::Closed));
        }
        let is_session = |held: &Held| matches!(held.role, Role::Session { .. });
        let sessions = self.held.iter().filter(|(_, held)| is_session(held));
        let sessions: Vec<u64> = sessions.map(|(number, _)| *number).collect();
        for session in sessions {
            self.give_back(session, Some(Duration::ZERO), now);
        }
        let (closer, drained) = oneshot::channel();
        self.closers.push(closer);
        drained
    }

    /// Whether no borrow may bring anything any more.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing
    }

    /// Stops trying to return what is left.
    pub(crate) fn give_up(&mut self) {
        let late = Error::unavailable("the pool was closed before the return was answered");
        self.returns.give_up(&late);
    }

    /// Ends everything, unless nothing is left to do: the task of the pool is gone, so nobody keeps
    /// alive or returns anything from now on.
    pub(crate) fn abandon(&mut self) {
        if self.is_drained() && self.held.is_empty() {
            return;
        }
        self.gone = true;
        if !std::mem::replace(&mut self.closing, true) {
            self.returns.begin_tally();
        }
        tracing::error!(
            leases = self.held.len(),
            returns = self.returns.len(),
            "the task of a session pool is gone: its runtime was shut down, or it panicked; what it \
             held ends here, and counts until its TTL ends"
        );
        for held in std::mem::take(&mut self.held).into_values() {
            self.returns.lose(u64::from(held.target().is_some()));
            if !held.ended {
                self.stats.ended(&Error::Closed);
                self.news.ended.push((held.lease, Error::Closed));
            }
        }
        self.returns.give_up(&Error::Closed);
        self.keys.clear();
        self.sessions.clear();
        self.heartbeat = Heartbeat::new(self.rules.delay, self.rules.fail_open);
        self.attachment = Attachment::new();
        (self.stats.sessions_held, self.stats.workers_held) = (0, 0);
    }

    /// Returns what became of all returns since the close began; what is still on its way counts as
    /// not returned.
    pub(crate) fn report(&self) -> CloseReport {
        let CloseReport { returned, not_returned } = self.returns.tally();
        CloseReport { returned, not_returned: not_returned + self.returns.len() as u64 }
    }

    /// Whether the pool is closed and nothing is left to do, or nobody is left to do it.
    pub(crate) fn is_drained(&self) -> bool {
        let calls = self.calls > 0 || self.batches_under_way();
        self.gone || self.closing && self.borrows == 0 && !calls && self.returns.len() == 0
    }
}
