//! One lease as the core knows it, from its grant until its return is settled.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use lease::BorrowId;
use tokio::sync::oneshot;

use crate::error::Error;
use crate::held::{Lease, Released};
use crate::request::Ids;

/// The TTL of a server that tells none.
pub(crate) const UNTOLD_TTL: Duration = Duration::from_secs(60);

/// What a borrow asks for: the same again when the server forgot the lease.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) ids: Ids,
    /// 0 asks for a session.
    pub(crate) max_workers: i64,
}

impl Asked {
    pub(crate) fn is_worker(&self) -> bool {
        self.max_workers > 0
    }
}

/// A granted borrow.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    pub(crate) key: String,
    pub(crate) ttl: Duration,
    pub(crate) minimal_life: Option<Duration>,
}

/// What came of one try to borrow.
#[derive(Clone, Debug)]
pub(crate) enum BorrowAnswer {
    Granted(Grant),
    /// The server said no. A `key` that came along nevertheless has to be given back.
    Refused {
        error: Error,
        key: Option<String>,
    },
    /// Nobody knows whether the server holds something, unless the call never left: not `sent`.
    Fault {
        error: Error,
        sent: bool,
    },
    /// The server grants nothing more under the name of this borrow.
    Spent(Error),
    /// The answer contradicts itself; `key`, if any, has to be given back.
    Nonsense {
        error: Error,
        key: Option<String>,
    },
}

impl BorrowAnswer {
    /// Takes the key that came without a grant: it has to be given back.
    pub(crate) fn take_key(&mut self) -> Option<String> {
        match self {
            Self::Refused { key, .. } | Self::Nonsense { key, .. } => key.take(),
            Self::Granted(_) | Self::Fault { .. } | Self::Spent(_) => None,
        }
    }
}

/// What came of one keep-alive.
#[derive(Clone, Debug)]
pub(crate) enum KeepAliveAnswer {
    /// The lease has its full TTL again, and that TTL if the server told it.
    Extended(Option<Duration>),
    /// The server holds no such lease.
    Forgotten,
    /// The session has to end.
    Revoked(Error),
    Fault(Error),
}

/// What came of one try to return, and whether another try may help.
#[derive(Clone, Debug)]
pub(crate) struct ReturnAnswer {
    pub(crate) outcome: Result<Released, Error>,
    pub(crate) again: bool,
    /// Whether the server answered at all.
    pub(crate) answered: bool,
}

/// What the server is asked to take back.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// The lease of this key.
    Key(Arc<str>),
    /// Whatever this borrow took: its answer never came.
    Borrow(BorrowId),
}

impl fmt::Debug for Target {
    /// Shows neither: whoever knows one can return the lease.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(_) => f.write_str("Key(..)"),
            Self::Borrow(_) => f.write_str("Borrow(..)"),
        }
    }
}

/// Everything the core knows of one lease.
#[derive(Debug)]
pub(super) enum Record {
    /// A guard holds it.
    Held(Held),
    /// Its guard is gone, or there never was one: the server has to be told.
    Returning(Returning),
}

/// A lease that a guard holds.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) lease: Arc<Lease>,
    /// The key of the lease, at hand without its lock.
    pub(super) key: Arc<str>,
    pub(super) role: Role,
    pub(super) ttl: Duration,
    /// What the server told when it granted the lease.
    pub(super) minimal_life: Option<Duration>,
    /// When the last call that succeeded was sent: the server counts its TTL from no earlier.
    pub(super) proven: Instant,
    /// When the lease counts as lost, if something has failed and nothing succeeds before.
    pub(super) lost_at: Instant,
    pub(super) lapse: Lapse,
    pub(super) state: State,
}

/// One lease on its way back.
#[derive(Debug)]
pub(super) struct Returning {
    /// `None` when the server holds nothing: it only keeps the order.
    pub(super) target: Option<Target>,
    pub(super) minimal_life: Option<Duration>,
    /// When to stop trying: the lease's own TTL has freed the slot by then.
    pub(super) give_up: Instant,
    /// How many things it waits for before its first try: a call of its own in flight, workers.
    pub(super) holds: usize,
    /// The session of a worker: it waits until this was tried once.
    pub(super) session: Option<u64>,
    pub(super) tries: u32,
    /// Why the last try failed.
    pub(super) fault: Option<Box<Error>>,
    pub(super) waiters: Vec<oneshot::Sender<Result<Released, Error>>>,
}

impl Returning {
    pub(super) fn new(
        target: Option<Target>,
        minimal_life: Option<Duration>,
        give_up: Instant,
    ) -> Self {
        let (tries, fault, waiters) = (0, None, Vec::new());
        Self { target, minimal_life, give_up, holds: 0, session: None, tries, fault, waiters }
    }

    pub(super) fn held_by(self, holds: usize) -> Self {
        Self { holds, ..self }
    }

    pub(super) fn before(self, session: u64) -> Self {
        Self { session: Some(session), ..self }
    }
}

/// Where a held lease stands.
#[derive(Debug)]
pub(super) enum State {
    /// The stream that is open names it soon. Nothing is due.
    New,
    /// The server holds it. Its keep-alive is due then.
    Waiting(Instant),
    /// A keep-alive is in flight.
    Calling,
    /// The server forgot it. `borrow` names a borrow that may have brought it back.
    Forgotten { due: Instant, place: Place, borrow: Option<Box<BorrowId>> },
    /// A borrow of the forgotten lease is in flight. An earlier try may have arrived if `doubted`.
    Borrowing { id: Box<BorrowId>, doubted: bool },
    /// Its holder was told the reason. It is returned when its guard goes.
    Ended { in_flight: bool, left: Left },
}

/// What a forgotten lease waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The time for its next try.
    Pause,
    /// Its turn to be borrowed again.
    Line,
    /// Its session, which has to be found alive first.
    Aside,
}

/// What the server holds of a lease that ended, as far as anybody knows.
#[derive(Debug)]
pub(super) enum Left {
    Key,
    Borrow(Box<BorrowId>),
    Nothing,
}

/// What happened to a lease since its last success.
#[derive(Debug, Default)]
pub(super) enum Lapse {
    #[default]
    None,
    /// It was kept alive out of turn, together with others: they have to drift apart again.
    OutOfTurn,
    /// Something was in vain, and why the last call failed. Without that nothing is lost: after a
    /// pause of the whole process the server is asked first.
    Failing(Option<Box<Error>>),
}

#[derive(Debug)]
pub(super) enum Role {
    Session(Workers),
    Worker { session: u64, max_workers: i64 },
}

/// The workers of a session.
#[derive(Debug, Default)]
pub(super) struct Workers {
    pub(super) held: BTreeSet<u64>,
    /// How many were given back and not tried yet.
    pub(super) leaving: usize,
    /// Whether some may stand aside until the session is found alive.
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
    /// Notes that something was in vain. An error that is known stays until there is another one.
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
    /// Returns what the lease was borrowed by.
    pub(super) fn asked(&self) -> Asked {
        let max_workers = match self.role {
            Role::Session(_) => 0,
            Role::Worker { max_workers, .. } => max_workers,
        };
        Asked { ids: self.lease.ids().clone(), max_workers }
    }

    pub(super) fn is_worker(&self) -> bool {
        matches!(self.role, Role::Worker { .. })
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended { .. })
    }

    /// Whether the server was last heard to hold it.
    pub(super) fn is_forgotten(&self) -> bool {
        matches!(self.state, State::Forgotten { .. } | State::Borrowing { .. })
    }

    /// Whether a call for it is under way.
    pub(super) fn is_in_flight(&self) -> bool {
        match self.state {
            State::Calling | State::Borrowing { .. } => true,
            State::Ended { in_flight, .. } => in_flight,
            State::New | State::Waiting(_) | State::Forgotten { .. } => false,
        }
    }

    /// Returns what the server has to take back for it; `None` when it holds nothing.
    pub(super) fn target(&self) -> Option<Target> {
        match &self.state {
            State::New | State::Waiting(_) | State::Calling => Some(Target::Key(self.key.clone())),
            State::Forgotten { borrow, .. } => borrow.as_deref().copied().map(Target::Borrow),
            State::Borrowing { id, .. } => Some(Target::Borrow(**id)),
            State::Ended { left, .. } => match left {
                Left::Key => Some(Target::Key(self.key.clone())),
                Left::Borrow(id) => Some(Target::Borrow(**id)),
                Left::Nothing => None,
            },
        }
    }

    /// Ends it: nothing more is due.
    pub(super) fn end(&mut self) {
        let in_flight = self.is_in_flight();
        let left = match std::mem::replace(&mut self.state, State::New) {
            State::New | State::Waiting(_) | State::Calling => Left::Key,
            State::Forgotten { borrow: Some(id), .. } | State::Borrowing { id, .. } => {
                Left::Borrow(id)
            }
            State::Forgotten { borrow: None, .. } => Left::Nothing,
            State::Ended { left, .. } => left,
        };
        self.state = State::Ended { in_flight, left };
    }
}

/// The lease that a call was for, when the call is over.
#[derive(Debug)]
pub(super) enum Answered<'a> {
    Held(&'a mut Held),
    Ended(&'a mut Left),
    /// It was released meanwhile, and its return waits for this answer.
    Returning,
}

/// All leases of one pool by their numbers.
#[derive(Debug, Default)]
pub(super) struct Leases {
    records: HashMap<u64, Box<Record>, RandomState>,
    returning: usize,
}

impl Leases {
    pub(super) fn hold(&mut self, number: u64, held: Held) {
        self.records.insert(number, Box::new(Record::Held(held)));
    }

    pub(super) fn give_back(&mut self, number: u64, returning: Returning) {
        self.records.insert(number, Box::new(Record::Returning(returning)));
        self.returning += 1;
    }

    pub(super) fn held(&self, number: u64) -> Option<&Held> {
        match &**self.records.get(&number)? {
            Record::Held(held) => Some(held),
            Record::Returning(_) => None,
        }
    }

    pub(super) fn held_mut(&mut self, number: u64) -> Option<&mut Held> {
        match &mut **self.records.get_mut(&number)? {
            Record::Held(held) => Some(held),
            Record::Returning(_) => None,
        }
    }

    /// Returns the workers of a session that is held.
    pub(super) fn workers_mut(&mut self, session: u64) -> Option<&mut Workers> {
        match &mut self.held_mut(session)?.role {
            Role::Session(workers) => Some(workers),
            Role::Worker { .. } => None,
        }
    }

    pub(super) fn returning_mut(&mut self, number: u64) -> Option<&mut Returning> {
        match &mut **self.records.get_mut(&number)? {
            Record::Returning(returning) => Some(returning),
            Record::Held(_) => None,
        }
    }

    pub(super) fn take_held(&mut self, number: u64) -> Option<Held> {
        self.held(number)?;
        match *self.records.remove(&number)? {
            Record::Held(held) => Some(held),
            Record::Returning(_) => None,
        }
    }

    pub(super) fn take_returning(&mut self, number: u64) -> Option<Returning> {
        self.returning_mut(number)?;
        self.returning -= 1;
        match *self.records.remove(&number)? {
            Record::Returning(returning) => Some(returning),
            Record::Held(_) => None,
        }
    }

    /// Notes that a call for a lease is over, and returns whom it was for.
    pub(super) fn call_over(&mut self, number: u64) -> Answered<'_> {
        match self.held_mut(number) {
            Some(Held { state: State::Ended { in_flight, left }, .. }) => {
                *in_flight = false;
                Answered::Ended(left)
            }
            Some(held) => Answered::Held(held),
            None => Answered::Returning,
        }
    }

    pub(super) fn all_held(&self) -> impl Iterator<Item = (u64, &Held)> {
        self.records.iter().filter_map(|(number, record)| match &**record {
            Record::Held(held) => Some((*number, held)),
            Record::Returning(_) => None,
        })
    }

    pub(super) fn all_returning(&self) -> impl Iterator<Item = u64> {
        let is_returning = |record: &Record| matches!(record, Record::Returning(_));
        self.records.iter().filter(move |(_, record)| is_returning(record)).map(|(n, _)| *n)
    }

    /// Returns how many leases guards hold.
    pub(super) fn held_count(&self) -> usize {
        self.records.len() - self.returning
    }

    /// Returns how many returns are not settled.
    pub(super) fn returning_count(&self) -> usize {
        self.returning
    }
}
