//! The state machine of a pool without I/O, for the simulation of a fleet.
//!
//! This is not part of the API of the library: it is hidden, and changes without notice.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lease::BorrowId;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::core::{
    self, BorrowAnswer, Call, Core, DEFAULT_TTL, Detached, KeepAliveAnswer, Output, ReturnAnswer,
    Rules, StreamEvent,
};
use crate::error::{Error, Scope};
use crate::held::{Lease, Released};
use crate::request::Ids;

/// A pool whose calls, stream and clock are those of a simulation.
#[derive(Debug)]
pub struct Pool(Core);

/// A borrow that a caller has begun.
#[derive(Debug)]
pub struct Asked(core::Asked);

/// What the driver of a pool must do.
#[derive(Debug)]
pub enum Todo {
    /// Open a stream.
    OpenStream,
    /// Drop the stream.
    CloseStream,
    /// Send keys over the stream.
    Batch {
        /// The number of the batch on its stream.
        number: u64,
        /// The keys.
        keys: Vec<String>,
    },
    /// Keep the lease of that number alive.
    KeepAlive {
        /// The number of the lease in the pool.
        lease: u64,
        /// Its key.
        key: Arc<str>,
        /// How long the call may take.
        deadline: Duration,
    },
    /// Borrow a lease again that the server forgot.
    Borrow {
        /// The number of the lease in the pool.
        lease: u64,
        /// What to ask for.
        wanted: Wanted,
        /// The borrow id.
        id: BorrowId,
        /// How long the call may take.
        deadline: Duration,
    },
    /// Return a lease.
    Return {
        /// The number of the return.
        lease: u64,
        /// What is returned.
        target: Target,
        /// The minimal life.
        minimal_life: Duration,
    },
}

/// What a borrow asks the server for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The service.
    pub service: Arc<str>,
    /// The organization.
    pub organization: Arc<str>,
    /// The trace.
    pub trace: Arc<str>,
    /// The most workers of the trace; 0 for a session.
    pub most_workers: i64,
}

/// What is returned.
#[derive(Clone, Debug)]
pub enum Target {
    /// The lease with this key.
    Key(Arc<str>),
    /// What this borrow took, if anything.
    Borrow(BorrowId),
}

/// The answer to a borrow.
#[derive(Clone, Debug)]
pub enum Borrowed {
    /// Granted.
    Granted {
        /// The key.
        key: String,
        /// How long the lease lives without a keep-alive.
        ttl: Duration,
        /// The minimal life that the server told.
        minimal_life: Duration,
    },
    /// A limit is reached.
    Refused,
    /// The borrow id gets no lease any more.
    IdUsed,
    /// There was no answer.
    Fault {
        /// Whether the call may have reached the server.
        sent: bool,
    },
}

/// The answer to a keep-alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The lease has this TTL again, or the one that it had.
    Extended(Option<Duration>),
    /// The server holds no such lease.
    Forgotten,
    /// There was no answer, or none that decides.
    Unavailable,
}

/// A lease of the pool, as its holder sees it.
#[derive(Debug)]
pub struct Belief<'a> {
    /// The number of the lease in the pool.
    pub lease: u64,
    /// Its key.
    pub key: &'a Arc<str>,
    /// Until when the pool takes the lease to live, if no further keep-alive succeeds.
    pub until: Instant,
}

fn away() -> Error {
    Error::unavailable("the simulated server is away")
}

impl Wanted {
    fn of(asked: &core::Asked) -> Self {
        let Ids { service, organization, trace, .. } = asked.ids.clone();
        let most_workers = asked.worker.map_or(0, |worker| worker.most);
        Self { service, organization, trace, most_workers }
    }
}

impl From<Target> for core::Target {
    fn from(target: Target) -> Self {
        match target {
            Target::Key(key) => Self::Key(key),
            Target::Borrow(id) => Self::Borrow(id),
        }
    }
}

impl From<Borrowed> for BorrowAnswer {
    fn from(borrowed: Borrowed) -> Self {
        match borrowed {
            Borrowed::Granted { key, ttl, minimal_life } => {
                Self::Granted(core::Grant { key, ttl, minimal_life: Some(minimal_life) })
            }
            Borrowed::Refused => {
                let scope = Scope::Organization;
                let error = Error::ConcurrentStreamLimitExceeded { active: 1, max: 1, scope };
                Self::Refused { error, key: None }
            }
            Borrowed::IdUsed => Self::IdUsed(away()),
            Borrowed::Fault { sent } => Self::Fault { error: away(), sent },
        }
    }
}

impl From<Kept> for KeepAliveAnswer {
    fn from(kept: Kept) -> Self {
        match kept {
            Kept::Extended(ttl) => Self::Extended(ttl),
            Kept::Forgotten => Self::Forgotten,
            Kept::Unavailable => Self::Fault(away()),
        }
    }
}

impl Asked {
    /// What to ask the server for.
    pub fn wanted(&self) -> Wanted {
        Wanted::of(&self.0)
    }
}

impl Pool {
    /// Makes a pool that does not fail open, with the defaults of a session URL.
    pub fn new(seed: u64, now: Instant) -> Self {
        let rules = Rules {
            delay: Duration::from_secs(20),
            minimal_life: None,
            most_sessions: None,
            fail_open: false,
        };
        Self(Core::new(rules, StdRng::seed_from_u64(seed), now))
    }

    /// Returns the next thing to do; `None` until [`Pool::poll_timeout`].
    pub fn poll(&mut self, now: Instant) -> Option<Todo> {
        loop {
            return Some(match self.0.poll_output(now)? {
                Output::Notice(notice) => {
                    notice.deliver();
                    continue;
                }
                Output::OpenStream => Todo::OpenStream,
                Output::CloseStream => Todo::CloseStream,
                Output::Batch(core::Batch { number, keys }) => Todo::Batch { number, keys },
                Output::Call(Call::KeepAlive { number, key, deadline, .. }) => {
                    Todo::KeepAlive { lease: number, key, deadline }
                }
                Output::Call(Call::Borrow { asked, id, deadline }) => {
                    let wanted = Wanted::of(&asked);
                    Todo::Borrow { lease: asked.number, wanted, id, deadline }
                }
                Output::Call(Call::Return { number, target, minimal_life }) => {
                    let target = match target {
                        core::Target::Key(key) => Target::Key(key),
                        core::Target::Borrow(id) => Target::Borrow(id),
                    };
                    let minimal_life = minimal_life.unwrap_or_default();
                    Todo::Return { lease: number, target, minimal_life }
                }
            });
        }
    }

    /// Returns when to poll again if nothing else happens.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        self.0.poll_timeout(now)
    }

    /// Begins the borrow of a session.
    pub fn begin_session(&mut self, wanted: &Wanted, now: Instant) -> Option<Asked> {
        let Wanted { service, organization, trace, .. } = wanted.clone();
        let ids = Ids { service, organization, trace, api_key: "".into() };
        self.0.begin_session(&ids, now).ok().map(Asked)
    }

    /// Begins the borrow of a worker under a session.
    pub fn begin_worker(&mut self, session: u64, service: &Arc<str>, most: u32) -> Option<Asked> {
        self.0.begin_worker(session, service, most).ok().map(Asked)
    }

    /// Handles the grant of a borrow that a caller has begun. Returns the lease that its guard holds.
    pub fn handle_grant(
        &mut self,
        asked: &Asked,
        (key, ttl, minimal_life): (String, Duration, Duration),
        sent: Instant,
        now: Instant,
    ) -> Option<Arc<Lease>> {
        let grant = core::Grant { key, ttl, minimal_life: Some(minimal_life) };
        self.0.handle_grant(&asked.0, None, grant, sent, now).ok()
    }

    /// Ends a caller's borrow without a lease. What the borrow `doubted` may have taken is returned.
    pub fn end_borrow(&mut self, asked: &Asked, doubted: Option<BorrowId>, now: Instant) {
        if let Some(id) = doubted {
            self.give_back(Target::Borrow(id), now);
        }
        self.0.end_borrow(&asked.0, now);
    }

    /// Queues the return of something that no guard holds.
    pub fn give_back(&mut self, target: Target, now: Instant) {
        self.0.stray(target.into(), DEFAULT_TTL, now);
    }

    /// Notes whether the server answered a call of a borrow.
    pub fn handle_link(&mut self, answered: bool, now: Instant) {
        self.0.handle_link(answered, now);
    }

    /// Drops the guard of a lease, with its workers.
    pub fn release(&mut self, lease: u64, minimal_life: Duration, now: Instant) {
        drop(self.0.release(lease, Some(minimal_life), now));
    }

    /// Handles the answer to [`Todo::KeepAlive`].
    pub fn handle_keep_alive(&mut self, lease: u64, kept: Kept, sent: Instant, now: Instant) {
        self.0.handle_keep_alive(lease, kept.into(), sent, now);
    }

    /// Handles the answer to [`Todo::Borrow`].
    pub fn handle_borrow(&mut self, lease: u64, borrowed: Borrowed, sent: Instant, now: Instant) {
        self.0.handle_borrow(lease, borrowed.into(), sent, now);
    }

    /// Handles the answer to [`Todo::Return`]; `None` when there was none.
    pub fn handle_return(&mut self, lease: u64, released: Option<Released>, now: Instant) {
        let answered = released.is_some();
        let outcome = released.ok_or_else(away);
        self.0.handle_return(lease, ReturnAnswer { outcome, again: true, answered }, now);
    }

    /// The server has accepted the stream.
    pub fn stream_opened(&mut self, now: Instant) {
        self.0.handle_stream(StreamEvent::Opened, now);
    }

    /// Handles the answer to a batch: the places that did not get their full TTL.
    pub fn stream_answered(&mut self, batch: u64, places: &[(u32, Kept)], now: Instant) {
        let answers = places.iter().map(|(place, kept)| (*place, (*kept).into()));
        let places: HashMap<u32, KeepAliveAnswer> = answers.collect();
        self.0.handle_stream(StreamEvent::Answer { batch, places }, now);
    }

    /// The stream is gone.
    pub fn stream_over(&mut self, now: Instant) {
        self.0.handle_stream(StreamEvent::Over(Detached::Broken), now);
    }

    /// Whether the stream is open.
    pub fn is_attached(&self) -> bool {
        self.0.stats().attached
    }

    /// Calls `each` with every lease that the pool takes to live: held, not ended, and not known to
    /// be forgotten by the server.
    pub fn beliefs(&self, each: impl FnMut(Belief<'_>)) {
        self.0.believed().map(|(lease, key, until)| Belief { lease, key, until }).for_each(each);
    }
}
