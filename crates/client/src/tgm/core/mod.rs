//! The core of a remote pool: one state machine without I/O and without a clock.
//!
//! Callers, guards and the driver tell it what happened. The driver asks it what to do
//! ([`Core::poll_output`]) and when to ask again ([`Core::poll_timeout`]), and gives the results to one
//! of `handle_…`. Every decision about a lease is made here, under one lock that is never held across
//! an await, so each interleaving of calls and answers is a sequence of these methods.

mod calls;
mod lease;
mod returns;
mod schedule;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::lease::{ANONYMOUS, BorrowId, Limits, Request};
use foldhash::fast::FixedState;
use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::sync::oneshot;

pub(crate) use self::lease::{
    Asked, BorrowAnswer, DEFAULT_TTL, Grant, KeepAliveAnswer, OfWorker, ReturnAnswer, Target,
};
use self::lease::{Held, Lapse, Leases, Returns, Role, State, Workers};
pub(crate) use self::schedule::backoff;
use self::schedule::{Link, Schedule};
use self::stream::Stream;
pub(crate) use self::stream::{Batch, Detached, MOST_BATCHES, StreamEvent};
use crate::counts::Counts;
use crate::error::{Error, Scope};
use crate::held::{Lease, Released};
use crate::plugin::CloseReport;
use crate::request::{Ids, OnError};
use crate::stats::PoolStats;

/// Most sessions of one organization and service that are admitted when the URL does not say it.
const MOST_SESSIONS: u64 = 10;

/// Most keep-alives and borrows of the driver in flight at once.
const MOST_CALLS: usize = 256;

/// What never changes in the life of a pool.
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

/// What the driver must do.
#[derive(Debug)]
pub(crate) enum Output {
    /// Deliver a notice, without the lock of the core.
    Notice(Notice),
    /// Open a stream, and give its events to [`Core::handle_stream`].
    OpenStream,
    /// Drop the stream.
    CloseStream,
    /// Send a batch over the stream.
    Batch(Batch),
    /// Make a call, and give its result to [`Core::handle_keep_alive`], [`Core::handle_borrow`] or
    /// [`Core::handle_return`].
    Call(Call),
}

/// A call that the driver must make.
#[derive(Debug)]
pub(crate) enum Call {
    KeepAlive { number: u64, key: Arc<str>, api_key: Arc<str>, deadline: Duration },
    Borrow { asked: Asked, id: BorrowId, deadline: Duration },
    Return { number: u64, target: Target, minimal_life: Option<Duration> },
}

/// What others learn once the lock of the core is free.
#[derive(Debug)]
pub(crate) enum Notice {
    /// A lease ended.
    Ended(Arc<Lease>, Error),
    /// A return ended, for all who wait for it.
    Settled(Vec<oneshot::Sender<Result<Released, Error>>>, Result<Released, Error>),
    /// The pool is closed and nothing is left to do.
    Drained(oneshot::Sender<()>),
}

impl Notice {
    /// Ends the lease, with its callback, or answers all who wait. Takes no lock of the pool.
    pub(crate) fn deliver(self) {
        match self {
            Self::Ended(lease, reason) => drop(lease.end(reason)),
            Self::Settled(waiters, outcome) => {
                for waiter in waiters {
                    // It is no error when the receiver is gone.
                    let _ = waiter.send(outcome.clone());
                }
            }
            Self::Drained(closer) => drop(closer.send(())),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// Borrows are refused, and what they bring is returned.
    Closing,
    /// The task of the pool has ended, so that nothing is done any more.
    Gone,
}

/// The state of one remote pool.
#[derive(Debug)]
pub(crate) struct Core {
    rules: Rules,
    numbers: u64,
    leases: Leases,
    /// The numbers of the leases held, by key: a revocation is pushed by key.
    keys: HashMap<Arc<str>, u64, FixedState>,
    schedule: Schedule,
    returns: Returns,
    link: Link,
    stream: Stream,
    /// Keep-alives and borrows of the driver in flight, without batches.
    calls: usize,
    /// Borrows of callers in flight.
    borrows: usize,
    /// The sessions held and being borrowed, if the rules limit them.
    counts: Option<Counts>,
    phase: Phase,
    closers: Vec<oneshot::Sender<()>>,
    notices: VecDeque<Notice>,
    /// What the pool holds and has done, without what [`Core::stats`] adds.
    pub(crate) stats: PoolStats,
    /// What was returned when the close began.
    before_close: CloseReport,
}

impl Core {
    /// Makes a core that holds nothing; `rng` spreads keep-alives and retries, and is the only source of
    /// randomness.
    pub(crate) fn new(rules: Rules, mut rng: StdRng, now: Instant) -> Self {
        let is_limited = rules.most_sessions.is_some() || rules.fail_open;
        let hasher = FixedState::with_seed(rng.random());
        Self {
            rules,
            numbers: 0,
            leases: Leases::new(&hasher),
            keys: HashMap::with_hasher(hasher),
            counts: is_limited.then(|| Counts::new(rng.random(), now)),
            schedule: Schedule::new(rules.delay, rules.fail_open, rng),
            returns: Returns::default(),
            link: Link::default(),
            stream: Stream::new(),
            calls: 0,
            borrows: 0,
            phase: Phase::Open,
            closers: Vec::new(),
            notices: VecDeque::new(),
            stats: PoolStats::default(),
            before_close: CloseReport::default(),
        }
    }

    // ---- what to do, and when ----

    /// Returns the next thing to do at `now`; `None` until [`Core::poll_timeout`] or until another
    /// method is called.
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
        if self.stream.take_given_up() {
            return Some(Output::CloseStream);
        }
        if self.wants_stream() && self.stream.begin_opening(now) {
            return Some(Output::OpenStream);
        }
        // Leases may have been lost above.
        self.poll_notice().map(Output::Notice)
    }

    /// Returns the next notice. Whoever calls a method of the core delivers the notices that follow.
    pub(crate) fn poll_notice(&mut self) -> Option<Notice> {
        if let Some(notice) = self.notices.pop_front() {
            return Some(notice);
        }
        if self.closers.is_empty() || !self.is_drained() {
            return None;
        }
        self.closers.pop().map(Notice::Drained)
    }

    /// Returns when to ask [`Core::poll_output`] again if no other method is called before.
    pub(crate) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let room = self.calls < MOST_CALLS;
        let beats = if self.stream.is_open() { self.stream.has_room() } else { room };
        let beat = beats.then(|| self.schedule.next()).flatten();
        let borrow = room.then(|| self.schedule.next_borrow(now)).flatten();
        let attach = self.wants_stream().then(|| self.stream.opens_at(now)).flatten();
        let times = [beat, borrow, attach, self.stream.next_time(), self.returns.next(now)];
        times.into_iter().flatten().min()
    }

    /// Returns what the pool holds and has done.
    pub(crate) fn stats(&self) -> PoolStats {
        PoolStats { attached: self.stream.is_open(), ..self.stats }
    }

    /// The leases that the pool takes to live, with their keys, and until when if no further keep-alive
    /// succeeds. A worker lives no longer than its session.
    #[cfg(feature = "simulation")]
    pub(crate) fn believed(&self) -> impl Iterator<Item = (u64, &Arc<str>, Instant)> {
        let lives = |held: &Held| !held.has_ended() && !held.is_forgotten();
        self.leases.held.iter().filter(move |(_, held)| lives(held)).filter_map(
            move |(number, held)| {
                let until = match held.session() {
                    None => held.lost_at,
                    Some(session) => {
                        let session = self.leases.held.get(&session).filter(|it| lives(it))?;
                        session.lost_at.min(held.lost_at)
                    }
                };
                Some((*number, &held.key, until))
            },
        )
    }

    // ---- borrows of callers ----

    /// Begins a borrow of a session, and returns what to ask for. [`Core::handle_grant`],
    /// [`Core::admit`] or [`Core::end_borrow`] ends it.
    pub(crate) fn begin_session(&mut self, ids: &Ids, now: Instant) -> Result<Asked, Error> {
        if self.is_closing() {
            return Err(Error::Closed);
        }
        let asked = Asked { number: self.next_number(), ids: ids.clone(), worker: None };
        self.count(&asked, self.rules.most_sessions, now)?;
        self.borrows += 1;
        Ok(asked)
    }

    /// Begins a borrow of a worker under `session`, and returns what to ask for. It ends as that of a
    /// session.
    pub(crate) fn begin_worker(
        &mut self,
        session: u64,
        service: &Arc<str>,
        max_per_session: u32,
    ) -> Result<Asked, Error> {
        if self.is_closing() {
            return Err(Error::Closed);
        }
        let held = self.leases.held.get(&session).ok_or(Error::SessionNotFound)?;
        let Role::Session(workers) = &held.role else { return Err(Error::SessionNotFound) };
        // Nothing is borrowed after a revocation. The caller gets its reason again.
        if let Some(reason) = held.lease.end_reason() {
            return Err(reason.clone());
        }
        if held.has_ended() {
            return Err(Error::SessionNotFound);
        }
        if max_per_session == 0 {
            // On the wire a limit of 0 would ask for a session.
            let active = workers.held.len() as u64;
            return Err(Error::WorkersLimitExceeded { active, max: 0, scope: Scope::Trace });
        }
        let ids = held.lease.ids().with_service(service.clone());
        self.borrows += 1;
        let worker = Some(OfWorker { session, most: i64::from(max_per_session) });
        Ok(Asked { number: self.next_number(), ids, worker })
    }

    /// Handles the grant of a caller's borrow that was sent at `sent`.
    pub(crate) fn handle_grant(
        &mut self,
        asked: &Asked,
        on_error: Option<OnError>,
        grant: Grant,
        sent: Instant,
        now: Instant,
    ) -> Result<Arc<Lease>, Error> {
        self.handle_link(true, now);
        if let Err(error) = self.may_hold(asked) {
            self.stray(Target::Key(grant.key.into()), grant.ttl, now);
            self.end_borrow(asked, now);
            return Err(error);
        }
        let lease = self.hold(asked, on_error, grant, sent);
        if let Some(held) = self.leases.held_mut(asked.number)
            // Naming a lease keeps it alive, too. Before that it needs no keep-alive.
            && !self.stream.names_within(self.schedule.interval(held.ttl))
        {
            self.schedule.add_new(asked.number, held, now);
        }
        self.stream.name(asked.number, now);
        Ok(lease)
    }

    /// Admits a caller's borrow without the server, which is asked for it when it is back.
    ///
    /// `borrow` is the id of the borrow if the server may have granted it and the answer did not
    /// arrive. The server is asked under this id then, so that one lease costs one slot.
    pub(crate) fn admit(
        &mut self,
        asked: &Asked,
        on_error: Option<OnError>,
        borrow: Option<BorrowId>,
        now: Instant,
    ) -> Result<Arc<Lease>, Error> {
        self.may_hold(asked)?;
        self.check_own_limit(asked, now)?;
        let number = asked.number;
        let key = format!("offline-{number}");
        let grant = Grant { key, ttl: DEFAULT_TTL, minimal_life: None };
        let lease = self.hold(asked, on_error, grant, now);
        if let Some(held) = self.leases.held_mut(number) {
            self.schedule.add_offline(number, held, borrow, now);
        }
        if asked.worker.is_some() {
            // After its session, which is borrowed at the first answer of the server.
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

    /// Whether the pool may hold what is `asked` for: it is open, and the session of a worker lives.
    fn may_hold(&self, asked: &Asked) -> Result<(), Error> {
        if self.is_closing() {
            return Err(Error::Closed);
        }
        let Some(worker) = asked.worker else { return Ok(()) };
        match self.leases.held.get(&worker.session) {
            Some(held) if !held.has_ended() => Ok(()),
            held => {
                let reason = held.and_then(|held| held.lease.end_reason().cloned());
                Err(reason.unwrap_or(Error::SessionNotFound))
            }
        }
    }

    /// Ends a caller's borrow with a lease that is held. The caller of this schedules it.
    fn hold(
        &mut self,
        asked: &Asked,
        on_error: Option<OnError>,
        grant: Grant,
        proven: Instant,
    ) -> Arc<Lease> {
        self.borrows -= 1;
        let number = asked.number;
        let Grant { key, ttl, minimal_life } = grant;
        let key: Arc<str> = key.into();
        let lease = Arc::new(Lease::new(number, key.clone(), asked.ids.clone(), on_error));
        let role = asked.worker.map_or(Role::Session(Workers::default()), Role::Worker);
        if let Some(worker) = asked.worker
            && let Some(workers) = self.leases.workers_mut(worker.session)
        {
            workers.held.insert(number);
        }
        self.keys.insert(key.clone(), number);
        let held = Held {
            lease: lease.clone(),
            key,
            role,
            ttl,
            minimal_life,
            proven,
            lost_at: self.schedule.lost_at(proven, ttl),
            lapse: Lapse::None,
            state: State::New,
        };
        self.leases.held.insert(number, Box::new(held));
        self.stats.held(asked.worker.is_some());
        lease
    }

    /// Ends a caller's borrow without a lease.
    pub(crate) fn end_borrow(&mut self, asked: &Asked, now: Instant) {
        self.borrows -= 1;
        self.uncount(asked.number, now);
    }

    /// Whether the server is known to be away, and has been for `outage`: then a borrow is admitted
    /// without another try.
    pub(crate) fn fails_open(&self, outage: Duration, now: Instant) -> bool {
        self.link.is_down_since(outage, now)
    }

    /// Whether borrows are refused.
    pub(crate) fn is_closing(&self) -> bool {
        self.phase != Phase::Open
    }

    // ---- the limits of the pool itself ----

    /// Counts a session, unless its organization and service have `most` already.
    fn count(&mut self, asked: &Asked, most: Option<u64>, now: Instant) -> Result<(), Error> {
        let Some(counts) = &mut self.counts else { return Ok(()) };
        let organization = Some(&*asked.ids.organization).filter(|name| !name.is_empty());
        let request = Request::session(&asked.ids.service, organization.unwrap_or(ANONYMOUS));
        let limits = Limits { organization: most, ..Limits::default() };
        counts.add(asked.number, &request, limits, now).map_err(|error| match error {
            Error::ConcurrentStreamLimitExceeded { active, max, .. } => {
                Error::ConcurrentStreamLimitExceeded { active, max, scope: Scope::Pool }
            }
            error => error,
        })
    }

    fn uncount(&mut self, number: u64, now: Instant) {
        if let Some(counts) = &mut self.counts {
            counts.remove(number, Duration::ZERO, now);
        }
    }

    /// Checks what the pool admits by itself: so many sessions, and workers up to the call's limit.
    fn check_own_limit(&mut self, asked: &Asked, now: Instant) -> Result<(), Error> {
        let Some(OfWorker { session, most }) = asked.worker else {
            // It was counted when it began, perhaps without a limit.
            self.uncount(asked.number, now);
            return self.count(asked, self.rules.most_sessions.or(Some(MOST_SESSIONS)), now);
        };
        let workers = self.leases.workers_mut(session).ok_or(Error::SessionNotFound)?.held.clone();
        let is_same = |worker: &u64| {
            let held = self.leases.held.get(worker);
            held.is_some_and(|held| held.lease.ids().service == asked.ids.service)
        };
        let active = workers.into_iter().filter(is_same).count() as u64;
        let max = u64::try_from(most).unwrap_or(0);
        let full = Error::WorkersLimitExceeded { active, max, scope: Scope::Trace };
        if active < max { Ok(()) } else { Err(full) }
    }

    fn next_number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }
}
