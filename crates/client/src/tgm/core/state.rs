//! What the core is made of, and what it tells: no rule is here.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use lease::BorrowId;
use rand::rngs::StdRng;
use tokio::sync::oneshot;

use super::lease::{Asked, Leases, Target};
use super::schedule::{Link, Schedule};
use super::stream::{Batch, Stream};
use crate::error::Error;
use crate::held::{Lease, Released};
use crate::plugin::CloseReport;
use crate::stats::PoolStats;

/// Most keep-alives and borrows of the driver in flight at once.
pub(super) const MOST_CALLS: usize = 256;

/// Most returns in flight at once.
pub(super) const MOST_RETURNS: usize = 64;

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

impl Rules {
    pub(super) fn counts_sessions(self) -> bool {
        self.most_sessions.is_some() || self.fail_open
    }
}

/// What the driver has to do.
#[derive(Debug)]
pub(crate) enum Output {
    /// Tell somebody, with the lock of the core free.
    Notice(Notice),
    /// Open a stream, and tell [`Core::handle_stream`] what comes of it.
    OpenStream,
    /// Drop the stream.
    CloseStream,
    /// Send a batch over the stream.
    Batch(Batch),
    /// Make a call, and tell what it brought to [`Core::handle_keep_alive`],
    /// [`Core::handle_borrow`] or [`Core::handle_return`].
    Call(Call),
}

/// What somebody has to hear once the lock is free.
#[derive(Debug)]
pub(crate) enum Notice {
    /// A lease ended.
    Ended(Arc<Lease>, Error),
    /// A return is over, and so is the wait of these.
    Settled(Vec<oneshot::Sender<Result<Released, Error>>>, Result<Released, Error>),
    /// The pool is closed and nothing is left to do.
    Drained(oneshot::Sender<()>),
}

impl Notice {
    /// Ends the lease, with its callback, or answers everyone who waits. Takes no lock of the pool.
    pub(crate) fn deliver(self) {
        match self {
            Self::Ended(lease, reason) => drop(lease.end(reason)),
            Self::Settled(waiters, outcome) => {
                for waiter in waiters {
                    // Who no longer waits does not want to know.
                    let _ = waiter.send(outcome.clone());
                }
            }
            Self::Drained(closer) => drop(closer.send(())),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// No borrow may bring anything any more.
    Closing,
    /// The driver is gone, so that nobody acts on what is due.
    Gone,
}

/// The state of one remote pool.
#[derive(Debug)]
pub(crate) struct Core {
    pub(super) rules: Rules,
    pub(super) rng: StdRng,
    pub(super) numbers: u64,
    pub(super) leases: Leases,
    /// The numbers of the leases held, by key: a revocation is pushed by key.
    pub(super) keys: HashMap<Arc<str>, u64, RandomState>,
    pub(super) schedule: Schedule,
    pub(super) returns: Returns,
    pub(super) link: Link,
    pub(super) stream: Stream,
    /// Keep-alives and borrows of the driver in flight, batches apart.
    pub(super) calls: usize,
    /// Borrows of callers in flight.
    pub(super) borrows: usize,
    /// Sessions per organization and service, while there may be a ceiling on them.
    pub(super) sessions: HashMap<(Arc<str>, Arc<str>), u64, RandomState>,
    pub(super) phase: Phase,
    pub(super) closers: Vec<oneshot::Sender<()>>,
    pub(super) notices: VecDeque<Notice>,
    pub(super) stats: PoolStats,
}

impl Core {
    /// Makes a core that holds nothing; `rng` spreads beats and retries.
    pub(crate) fn new(rules: Rules, rng: StdRng) -> Self {
        Self {
            rules,
            rng,
            numbers: 0,
            leases: Leases::default(),
            keys: HashMap::default(),
            schedule: Schedule::new(rules.delay, rules.fail_open),
            returns: Returns::default(),
            link: Link::default(),
            stream: Stream::new(),
            calls: 0,
            borrows: 0,
            sessions: HashMap::default(),
            phase: Phase::Open,
            closers: Vec::new(),
            notices: VecDeque::new(),
            stats: PoolStats::default(),
        }
    }
}

/// A call the driver has to make.
#[derive(Debug)]
pub(crate) enum Call {
    KeepAlive { number: u64, key: Arc<str>, api_key: Arc<str>, deadline: Duration },
    Borrow { number: u64, asked: Asked, id: BorrowId, deadline: Duration },
    Return { number: u64, target: Target, minimal_life: Option<Duration> },
}

/// The order in which leases are returned, and what became of them.
#[derive(Debug, Default)]
pub(super) struct Returns {
    pub(super) queue: BinaryHeap<Reverse<(Instant, u64)>>,
    /// When each of them is given up, whatever it waits for then.
    pub(super) ends: BTreeSet<(Instant, u64)>,
    /// Tries in flight.
    pub(super) calls: usize,
    /// The workers that their sessions wait for, in the order in which that ends.
    pub(super) awaited: VecDeque<(Instant, u64)>,
    /// Since the close began.
    pub(super) tally: CloseReport,
    /// Since the pool was made.
    pub(super) returned: u64,
    pub(super) not_returned: u64,
    pub(super) retried: u64,
}

impl Returns {
    /// Returns when to ask [`Core::due_return`] again; `None` when only an answer can change that.
    pub(super) fn next(&self) -> Option<Instant> {
        let awaited = self.awaited.front().map(|(until, _)| *until);
        let end = self.ends.first().map(|(at, _)| *at);
        self.next_try().into_iter().chain(awaited).chain(end).min()
    }

    pub(super) fn next_try(&self) -> Option<Instant> {
        let Reverse((at, _)) = self.queue.peek()?;
        (self.calls < MOST_RETURNS).then_some(*at)
    }

    /// Counts leases that nobody can return any more.
    pub(super) fn lose(&mut self, leases: u64) {
        self.tally.not_returned += leases;
        self.not_returned += leases;
    }
}
