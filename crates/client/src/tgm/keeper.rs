//! What a remote pool holds and what it has to do next: pure, without I/O and without a clock.
//!
//! Guards and the pool's one task tell the keeper what happened; the task asks it for the next
//! call. Every decision about a lease is made here, under one lock that is never held across an
//! await, so each interleaving of calls and answers is a sequence of these methods.

mod batches;
mod calls;
mod leaving;
mod offline;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use lease::BorrowId;
use rand::rngs::StdRng;
use tokio::sync::oneshot;

pub(crate) use self::batches::BatchCall;
pub(crate) use self::calls::Call;
use super::answer::Grant;
use super::attachment::Attachment;
use super::returns::{Return, Returns, Settled, Target};
use crate::error::{Error, Scope};
use crate::heartbeat::Heartbeat;
use crate::held::Lease;
use crate::link::Link;
use crate::request::{Ids, OnError};
use crate::stats::PoolStats;

/// Most leases without a known key that may wait for their return at once.
const MOST_STRAYS: usize = 65_536;

/// What a keeper is told once and for all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// The longest time between two keep-alives of one lease.
    pub(crate) delay: Duration,
    /// The minimal life sent when a session is released, instead of the server's.
    pub(crate) minimal_life: Option<Duration>,
    /// Most sessions of one organization and service that the pool admits by itself.
    pub(crate) most_sessions: Option<u64>,
    /// Whether leases go on, and borrows are admitted, while the server is away.
    pub(crate) fail_open: bool,
}

impl Rules {
    fn counts_sessions(self) -> bool {
        self.most_sessions.is_some() || self.fail_open
    }
}

/// What a borrow asks for: the same again when the server forgot the lease.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) service: Arc<str>,
    pub(crate) organization: Arc<str>,
    pub(crate) api_key: Arc<str>,
    pub(crate) trace: Arc<str>,
    /// 0 asks for a session.
    pub(crate) max_workers: i64,
}

impl Asked {
    fn ids(&self) -> Ids {
        Ids {
            service: self.service.clone(),
            organization: self.organization.clone(),
            api_key: self.api_key.clone(),
            trace: self.trace.clone(),
        }
    }

    pub(crate) fn is_worker(&self) -> bool {
        self.max_workers > 0
    }
}

/// What others have to hear, once the lock is free.
#[derive(Debug, Default)]
pub(crate) struct News {
    ended: Vec<(Arc<Lease>, Error)>,
    settled: Vec<Settled>,
    drained: Vec<oneshot::Sender<()>>,
}

impl News {
    /// Ends leases, with their callbacks, and answers everyone who waits. Takes no lock of the pool.
    pub(crate) fn tell(self) {
        for (lease, reason) in self.ended {
            lease.end(reason);
        }
        for (waiters, outcome) in self.settled {
            for waiter in waiters {
                // Who no longer waits does not want to know.
                let _ = waiter.send(outcome.clone());
            }
        }
        for closer in self.drained {
            let _ = closer.send(());
        }
    }
}

#[derive(Debug)]
struct Held {
    lease: Arc<Lease>,
    /// The key of the lease, at hand without its lock.
    key: Arc<str>,
    /// 0 for a session.
    max_workers: i64,
    role: Role,
    ttl: Duration,
    /// What the server told when it granted the lease.
    minimal_life: Option<Duration>,
    /// Whether a keep-alive or a borrow is under way.
    calling: bool,
    /// Whether the lease ended and only waits for its guard to go.
    ended: bool,
    /// Whether the server said that it holds no such lease.
    forgotten: bool,
    /// The borrow that may have had it again, while nobody knows.
    borrowing: Option<BorrowId>,
    /// Whether that borrow was sent.
    doubt: bool,
    /// Why the last call failed.
    fault: Option<Box<Error>>,
}

impl Held {
    /// What the lease was borrowed by.
    fn asked(&self) -> Asked {
        let Ids { service, organization, api_key, trace } = self.lease.ids().clone();
        Asked { service, organization, api_key, trace, max_workers: self.max_workers }
    }
}

#[derive(Debug)]
enum Role {
    Session {
        workers: BTreeSet<u64>,
        /// How many of its workers were given back and not tried yet.
        leaving: usize,
        /// Whether some of its workers may wait for it to be found alive.
        awaited: bool,
    },
    Worker {
        session: u64,
        /// Whether it waits for its session to be found alive, to be borrowed again.
        aside: bool,
    },
}

/// The state of one remote pool.
#[derive(Debug)]
pub(crate) struct Keeper {
    rules: Rules,
    rng: StdRng,
    numbers: u64,
    held: HashMap<u64, Box<Held>, RandomState>,
    /// The numbers of the leases held, by key: a revocation is pushed by key.
    keys: HashMap<Arc<str>, u64, RandomState>,
    heartbeat: Heartbeat,
    returns: Returns,
    link: Link,
    attachment: Attachment,
    /// Calls of the task under way, returns and batches apart.
    calls: usize,
    /// Borrows of callers under way.
    borrows: usize,
    /// Sessions per organization and service, while there may be a ceiling on them.
    sessions: HashMap<(Arc<str>, Arc<str>), u64, RandomState>,
    closing: bool,
    /// Whether the task of the pool is gone, so that nobody acts on what is due.
    gone: bool,
    closers: Vec<oneshot::Sender<()>>,
    news: News,
    stats: PoolStats,
}

impl Keeper {
    /// Makes a keeper that holds nothing; `rng` spreads beats and retries.
    pub(crate) fn new(rules: Rules, rng: StdRng) -> Self {
        Self {
            rules,
            rng,
            numbers: 0,
            held: HashMap::default(),
            keys: HashMap::default(),
            heartbeat: Heartbeat::new(rules.delay, rules.fail_open),
            returns: Returns::default(),
            link: Link::default(),
            attachment: Attachment::new(),
            calls: 0,
            borrows: 0,
            sessions: HashMap::default(),
            closing: false,
            gone: false,
            closers: Vec::new(),
            news: News::default(),
            stats: PoolStats::default(),
        }
    }

    /// Returns what the pool holds and has done.
    pub(crate) fn stats(&self) -> PoolStats {
        let returns = self.returns.counts();
        PoolStats {
            attached: self.attachment.is_open(),
            returned: returns.returned,
            not_returned: returns.not_returned,
            retried: self.stats.retried + returns.retried,
            ..self.stats
        }
    }

    /// Notes that a borrow of a caller failed for good.
    pub(crate) fn denied(&mut self, error: &Error) {
        self.stats.denied.count(error);
    }

    /// Notes that a borrow of a caller is sent again.
    pub(crate) fn retries(&mut self) {
        self.stats.retried += 1;
    }

    /// Takes what others have to hear.
    pub(crate) fn take_news(&mut self) -> News {
        self.news.settled = self.returns.take_settled();
        if self.is_drained() {
            self.news.drained = std::mem::take(&mut self.closers);
        }
        std::mem::take(&mut self.news)
    }

    // ---- borrows of callers ----

    /// Lets a borrow of a session begin; [`Keeper::granted`] or [`Keeper::borrow_over`] ends it.
    pub(crate) fn begin_session(&mut self, asked: &Asked) -> Result<(), Error> {
        if self.closing {
            return Err(Error::Closed);
        }
        if self.rules.counts_sessions() {
            let pool = (asked.organization.clone(), asked.service.clone());
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

    /// Lets a borrow of a worker under `session` begin, and returns what to ask for.
    pub(crate) fn begin_worker(
        &mut self,
        session: u64,
        service: &Arc<str>,
        max_per_session: u32,
    ) -> Result<Asked, Error> {
        if self.closing {
            return Err(Error::Closed);
        }
        let held = self.held.get(&session).ok_or(Error::SessionNotFound)?;
        let Role::Session { workers, .. } = &held.role else { return Err(Error::SessionNotFound) };
        // Nothing is borrowed after a revocation: whoever asks hears the reason again.
        if let Some(reason) = held.lease.end_reason() {
            return Err(reason.clone());
        }
        if held.ended {
            return Err(Error::SessionNotFound);
        }
        if max_per_session == 0 {
            // On the wire a cap of 0 would ask for a session.
            let active = workers.len() as u64;
            return Err(Error::WorkersLimitExceeded { active, max: 0, scope: Scope::Trace });
        }
        self.borrows += 1;
        let max_workers = i64::from(max_per_session);
        Ok(Asked { service: service.clone(), max_workers, ..held.asked() })
    }

    /// Takes the grant of a caller's borrow that was sent at `sent`.
    pub(crate) fn granted(
        &mut self,
        asked: &Asked,
        session: Option<u64>,
        on_error: Option<OnError>,
        grant: Grant,
        sent: Instant,
        now: Instant,
    ) -> Result<Arc<Lease>, Error> {
        self.saw_link(true, now);
        if let Err(error) = self.may_hold(session) {
            self.stray(Target::Key(grant.key.into()), grant.ttl, now);
            self.borrow_over(asked);
            return Err(error);
        }
        let ttl = grant.ttl;
        let (number, lease) = self.hold(asked, session, on_error, grant);
        // Naming a lease keeps it alive, too: it needs no turn before that.
        if self.attachment.names_within(self.heartbeat.interval(ttl)) {
            self.heartbeat.insert_new(number, session.is_some(), ttl, sent);
        } else {
            self.heartbeat.insert(number, session.is_some(), ttl, sent, now, &mut self.rng);
        }
        self.attachment.name(number, now);
        Ok(lease)
    }

    /// Whether the pool takes what a borrow brought, under `session` if it was for a worker.
    fn may_hold(&self, session: Option<u64>) -> Result<(), Error> {
        match session.map(|session| self.held.get(&session)) {
            _ if self.closing => Err(Error::Closed),
            None => Ok(()),
            Some(Some(held)) if !held.ended => Ok(()),
            Some(held) => {
                let reason = held.and_then(|held| held.lease.end_reason().cloned());
                Err(reason.unwrap_or(Error::SessionNotFound))
            }
        }
    }

    /// Ends a caller's borrow with a lease in the table; the schedule has to learn of it.
    fn hold(
        &mut self,
        asked: &Asked,
        session: Option<u64>,
        on_error: Option<OnError>,
        grant: Grant,
    ) -> (u64, Arc<Lease>) {
        self.borrows -= 1;
        let number = self.next_number();
        let lease = Arc::new(Lease::new(number, grant.key, asked.ids(), on_error));
        let role = match session {
            None => Role::Session { workers: BTreeSet::new(), leaving: 0, awaited: false },
            Some(session) => Role::Worker { session, aside: false },
        };
        if let Some(Role::Session { workers, .. }) = session.and_then(|session| self.role(session))
        {
            workers.insert(number);
        }
        let key = lease.key();
        let held = Held {
            lease: lease.clone(),
            key: key.clone(),
            max_workers: asked.max_workers,
            role,
            ttl: grant.ttl,
            minimal_life: grant.minimal_life,
            calling: false,
            ended: false,
            forgotten: false,
            borrowing: None,
            doubt: false,
            fault: None,
        };
        self.held.insert(number, Box::new(held));
        self.keys.insert(key, number);
        self.stats.held(session.is_some());
        (number, lease)
    }

    /// Ends a caller's borrow that was not granted.
    pub(crate) fn borrow_over(&mut self, asked: &Asked) {
        self.borrows -= 1;
        if !asked.is_worker() {
            self.leave_pool(&asked.ids());
        }
    }

    /// Notes how the way to the server looked to a caller.
    pub(crate) fn saw_link(&mut self, answered: bool, now: Instant) {
        if !answered {
            self.link.failed(now);
        } else if self.link.answered(now) {
            self.heartbeat.line_up_sessions();
        }
    }

    /// Queues the return of something that no guard holds.
    pub(crate) fn stray(&mut self, target: Target, ttl: Duration, now: Instant) {
        if self.gone {
            self.returns.lose(1);
            return;
        }
        if self.returns.len() >= self.held.len() + MOST_STRAYS {
            tracing::warn!("too many unanswered borrows; one is left to end by its TTL");
            return;
        }
        let number = self.next_number();
        let minimal_life = Some(Duration::ZERO);
        let order = Return {
            target: Some(target),
            minimal_life,
            give_up: now + ttl,
            holds: 0,
            session: None,
        };
        self.returns.add(number, order, now);
    }

    fn role(&mut self, number: u64) -> Option<&mut Role> {
        self.held.get_mut(&number).map(|held| &mut held.role)
    }

    fn leave_pool(&mut self, ids: &Ids) {
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
