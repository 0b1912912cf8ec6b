//! One lease as the core knows it, from its grant until its return has ended.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::FixedState;
use lease::BorrowId;
use tokio::sync::oneshot;

use crate::error::Error;
use crate::held::{Lease, Released};
use crate::request::Ids;

/// The TTL of a lease whose server does not say it.
pub(crate) const DEFAULT_TTL: Duration = Duration::from_secs(60);

/// Most returns in flight at once.
pub(super) const MOST_RETURNS: usize = 64;

/// What a borrow asks for. It is asked for again when the server forgot the lease.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// The number of the lease.
    pub(crate) number: u64,
    pub(crate) ids: Ids,
    /// `None` asks for a session.
    pub(crate) worker: Option<OfWorker>,
}

/// What the borrow of a worker asks for in addition.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OfWorker {
    pub(crate) session: u64,
    /// The most workers of the session at once.
    pub(crate) most: i64,
}

/// A granted borrow.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    pub(crate) key: String,
    pub(crate) ttl: Duration,
    pub(crate) minimal_life: Option<Duration>,
}

/// The result of one try to borrow.
#[derive(Clone, Debug)]
pub(crate) enum BorrowAnswer {
    Granted(Grant),
    /// The server refused. A `key` that the answer has nevertheless must be returned.
    Refused {
        error: Error,
        key: Option<String>,
    },
    /// The call failed. If it was `sent`, the server may hold a lease for it.
    Fault {
        error: Error,
        sent: bool,
    },
    /// The server grants nothing more under this borrow id.
    IdUsed(Error),
    /// The answer contradicts itself. Its `key`, if any, must be returned.
    Invalid {
        error: Error,
        key: Option<String>,
    },
}

impl BorrowAnswer {
    /// Takes the key that came without a grant and must be returned.
    pub(crate) fn take_key(&mut self) -> Option<String> {
        match self {
            Self::Refused { key, .. } | Self::Invalid { key, .. } => key.take(),
            Self::Granted(_) | Self::Fault { .. } | Self::IdUsed(_) => None,
        }
    }
}

/// The result of one keep-alive.
#[derive(Clone, Debug)]
pub(crate) enum KeepAliveAnswer {
    /// The lease has its full TTL again, which is this one if the server said it.
    Extended(Option<Duration>),
    /// The server holds no such lease.
    Forgotten,
    /// The session must end.
    Revoked(Error),
    Fault(Error),
}

/// The result of one try to return.
#[derive(Clone, Debug)]
pub(crate) struct ReturnAnswer {
    pub(crate) outcome: Result<Released, Error>,
    /// Whether another try may have another result.
    pub(crate) again: bool,
    /// Whether the server answered.
    pub(crate) answered: bool,
}

/// What is returned to the server.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// The lease of this key.
    Key(Arc<str>),
    /// The lease that this borrow took, if any: its answer did not arrive.
    Borrow(BorrowId),
}

impl fmt::Debug for Target {
    /// Hides both: whoever knows one can return the lease.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(_) => f.write_str("Key(..)"),
            Self::Borrow(_) => f.write_str("Borrow(..)"),
        }
    }
}

/// A lease that a guard holds.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) lease: Arc<Lease>,
    /// The key of the lease, here without the lock that `lease` has around it.
    pub(super) key: Arc<str>,
    pub(super) role: Role,
    pub(super) ttl: Duration,
    /// What the server said when it granted the lease.
    pub(super) minimal_life: Option<Duration>,
    /// When the last successful call was sent. The server counts the TTL from then or later.
    pub(super) proven: Instant,
    /// When the lease counts as lost, if a call has failed and none succeeds before.
    pub(super) lost_at: Instant,
    pub(super) lapse: Lapse,
    pub(super) state: State,
}

/// A lease that is being returned: its guard is gone, or there never was one.
#[derive(Debug)]
pub(super) struct Returning {
    /// `None` when the server holds nothing: then the return only keeps the order.
    pub(super) target: Option<Target>,
    pub(super) minimal_life: Option<Duration>,
    /// When to stop trying: the TTL of the lease has freed the slot by then.
    pub(super) give_up: Instant,
    /// How many things it waits for before its first try: a call of its own in flight, workers.
    pub(super) holds: usize,
    /// The session of a worker, which waits for the first try of this return.
    pub(super) session: Option<u64>,
    /// Its time in the queue of returns.
    pub(super) due: Instant,
    pub(super) in_flight: bool,
    pub(super) tries: u32,
    /// Why the last try failed.
    pub(super) fault: Option<Box<Error>>,
    pub(super) waiters: Vec<oneshot::Sender<Result<Released, Error>>>,
}

impl Returning {
    pub(super) fn new(target: Option<Target>, give_up: Instant) -> Self {
        Self {
            target,
            minimal_life: None,
            give_up,
            holds: 0,
            session: None,
            due: give_up,
            in_flight: false,
            tries: 0,
            fault: None,
            waiters: Vec::new(),
        }
    }
}

/// The order in which leases are returned.
#[derive(Debug, Default)]
pub(super) struct Returns {
    /// One entry per return, at its next event: its next try, the end of its session's patience, or
    /// when it is given up.
    pub(super) queue: BTreeSet<(Instant, u64)>,
    /// Those whose try is due.
    pub(super) ready: VecDeque<u64>,
    /// Tries in flight.
    pub(super) calls: usize,
}

impl Returns {
    pub(super) fn has_room(&self) -> bool {
        self.calls < MOST_RETURNS
    }

    /// Returns when to ask `Core::due_return` again; `None` when only an answer can change that.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        let try_at = (self.has_room() && !self.ready.is_empty()).then_some(now);
        try_at.into_iter().chain(self.queue.first().map(|(at, _)| *at)).min()
    }

    /// Sets the next event of a return, which is given up at its time in any case.
    pub(super) fn set_due(&mut self, number: u64, returning: &mut Returning, due: Instant) {
        self.queue.remove(&(returning.due, number));
        returning.due = due.min(returning.give_up);
        self.queue.insert((returning.due, number));
    }
}

/// The state of a held lease.
#[derive(Debug)]
pub(super) enum State {
    /// The open stream will name it soon. Nothing is due.
    New,
    /// The server holds it. Its keep-alive is due at this time.
    Waiting(Instant),
    /// A keep-alive is in flight.
    Calling,
    /// The server forgot it. `borrow` is the id of a borrow that may have been granted.
    Forgotten { due: Instant, place: Place, borrow: Option<Box<BorrowId>> },
    /// A borrow of the forgotten lease is in flight. If `doubted`, an earlier try may have arrived.
    Borrowing { id: Box<BorrowId>, doubted: bool },
    /// It ended, and is returned when its guard is dropped. The server may still hold `left`.
    Ended { in_flight: bool, left: Option<Box<Target>> },
}

/// What a forgotten lease waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The time for its next try.
    Pause,
    /// Its turn in the line of those that are borrowed again.
    Line,
    /// Its session, which must be found alive first.
    Aside,
}

/// What happened to a lease since its last successful call.
#[derive(Debug, Default)]
pub(super) enum Lapse {
    #[default]
    None,
    /// It was kept alive out of turn, together with others. Their next times must be spread again.
    OutOfTurn,
    /// A call failed, for this reason if it is known. Only then the lease can be lost: after a pause
    /// of the whole process the server is asked first.
    Failing(Option<Box<Error>>),
}

#[derive(Debug)]
pub(super) enum Role {
    Session(Workers),
    Worker(OfWorker),
}

/// The workers of a session.
#[derive(Debug, Default)]
pub(super) struct Workers {
    pub(super) held: BTreeSet<u64>,
    /// How many are being returned and were not tried yet.
    pub(super) leaving: usize,
    /// Whether some may wait until the session is found alive.
    pub(super) awaited: bool,
}

impl State {
    /// Returns the time of the lease in the queue of the schedule.
    pub(super) fn due(&self) -> Option<Instant> {
        match self {
            Self::Waiting(due) | Self::Forgotten { due, .. } => Some(*due),
            Self::New | Self::Calling | Self::Borrowing { .. } | Self::Ended { .. } => None,
        }
    }
}

impl Lapse {
    /// Notes a failure. A known reason stays until there is another one.
    pub(super) fn fail(&mut self, fault: Option<Error>) {
        let before = self.take_fault();
        *self = Self::Failing(fault.map(Box::new).or(before));
    }

    pub(super) fn take_fault(&mut self) -> Option<Box<Error>> {
        match self {
            Self::Failing(fault) => fault.take(),
            Self::None | Self::OutOfTurn => None,
        }
    }

    pub(super) fn is_failing(&self) -> bool {
        matches!(self, Self::Failing(_))
    }
}

impl Held {
    /// Returns what the lease was borrowed with.
    pub(super) fn asked(&self) -> Asked {
        let worker = match self.role {
            Role::Session(_) => None,
            Role::Worker(worker) => Some(worker),
        };
        Asked { number: self.lease.number(), ids: self.lease.ids().clone(), worker }
    }

    /// Returns the session of a worker.
    pub(super) fn session(&self) -> Option<u64> {
        match self.role {
            Role::Session(_) => None,
            Role::Worker(worker) => Some(worker.session),
        }
    }

    pub(super) fn is_worker(&self) -> bool {
        matches!(self.role, Role::Worker(_))
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended { .. })
    }

    /// Whether the server has said that it does not hold it.
    pub(super) fn is_forgotten(&self) -> bool {
        matches!(self.state, State::Forgotten { .. } | State::Borrowing { .. })
    }

    /// Whether a call for it is in flight.
    pub(super) fn is_in_flight(&self) -> bool {
        match self.state {
            State::Calling | State::Borrowing { .. } => true,
            State::Ended { in_flight, .. } => in_flight,
            State::New | State::Waiting(_) | State::Forgotten { .. } => false,
        }
    }

    /// Returns what must be returned for it; `None` when the server holds nothing.
    pub(super) fn target(&self) -> Option<Target> {
        match &self.state {
            State::New | State::Waiting(_) | State::Calling => Some(Target::Key(self.key.clone())),
            State::Forgotten { borrow, .. } => borrow.as_deref().copied().map(Target::Borrow),
            State::Borrowing { id, .. } => Some(Target::Borrow(**id)),
            State::Ended { left, .. } => left.as_deref().cloned(),
        }
    }

    /// Ends it. Nothing is due for it any more.
    pub(super) fn end(&mut self) {
        let (in_flight, left) = (self.is_in_flight(), self.target().map(Box::new));
        self.state = State::Ended { in_flight, left };
    }
}

/// The lease of a call that was answered.
#[derive(Debug)]
pub(super) enum Answered<'a> {
    Held(&'a mut Held),
    /// It has ended, and the server may hold this.
    Ended(&'a mut Option<Box<Target>>),
    /// It was released, and its return waits for this answer.
    Returning,
}

/// All leases of one pool by their numbers. Each is held by a guard or is being returned.
#[derive(Debug)]
pub(super) struct Leases {
    pub(super) held: HashMap<u64, Box<Held>, FixedState>,
    pub(super) returning: HashMap<u64, Box<Returning>, FixedState>,
}

impl Leases {
    /// Makes an empty set.
    pub(super) fn new(hasher: &FixedState) -> Self {
        let held = HashMap::with_hasher(hasher.clone());
        Self { held, returning: HashMap::with_hasher(hasher.clone()) }
    }

    pub(super) fn held_mut(&mut self, number: u64) -> Option<&mut Held> {
        self.held.get_mut(&number).map(Box::as_mut)
    }

    pub(super) fn returning_mut(&mut self, number: u64) -> Option<&mut Returning> {
        self.returning.get_mut(&number).map(Box::as_mut)
    }

    /// Returns the workers of a session that is held.
    pub(super) fn workers_mut(&mut self, session: u64) -> Option<&mut Workers> {
        match &mut self.held_mut(session)?.role {
            Role::Session(workers) => Some(workers),
            Role::Worker(_) => None,
        }
    }

    /// Notes that a call for a lease was answered, and returns the lease.
    pub(super) fn answered(&mut self, number: u64) -> Answered<'_> {
        match self.held_mut(number) {
            Some(Held { state: State::Ended { in_flight, left }, .. }) => {
                *in_flight = false;
                Answered::Ended(left)
            }
            Some(held) => Answered::Held(held),
            None => Answered::Returning,
        }
    }
}
