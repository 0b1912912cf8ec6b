//! A streaming service under load. Its streams begin and end at random, and it knows exactly which
//! leases it holds.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;
use std::time::Duration;

use rand::RngExt as _;
use tgm_session::{Error, Pool, Session, SessionRequest, Worker};
use tokio::time::{sleep, timeout};

/// How a host behaves.
#[derive(Clone, Debug)]
pub(crate) struct Habits {
    /// The start of its trace ids, so that they differ from those of other hosts.
    pub(crate) name: String,
    /// The organizations whose streams it serves.
    pub(crate) organizations: Vec<String>,
    /// The longest pause between two actions.
    pub(crate) pause: Duration,
    /// The most streams that it serves at once.
    pub(crate) streams: usize,
    /// The limit on the workers of one session.
    pub(crate) workers: u32,
}

/// What happened to the leases and borrows of a host, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Sessions and workers that were granted.
    pub(crate) granted: u64,
    /// Borrows that a limit refused, and borrows of workers under a session that had ended.
    pub(crate) refused: u64,
    /// Borrows that found no server in time.
    pub(crate) unavailable: u64,
    /// Borrows that were dropped before they were answered.
    pub(crate) abandoned: u64,
    /// Sessions and workers that were released.
    pub(crate) released: u64,
    /// Sessions and workers that ended before they were released.
    pub(crate) lost: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.granted += other.granted;
        self.refused += other.refused;
        self.unavailable += other.unavailable;
        self.abandoned += other.abandoned;
        self.released += other.released;
        self.lost += other.lost;
    }
}

/// An error that no fault of a server or a network may cause.
#[derive(Debug)]
pub(crate) struct Unexpected(Error);

impl fmt::Display for Unexpected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no fault may bring this about: {}", self.0)
    }
}

impl std::error::Error for Unexpected {}

/// One running stream.
struct Stream {
    trace: String,
    session: Session,
    workers: Vec<Worker>,
}

/// A streaming service with a pool of its own.
pub(crate) struct Host {
    habits: Habits,
    pool: Pool,
    begun: u64,
    streams: Vec<Stream>,
    tally: Tally,
}

fn roll(sides: usize) -> usize {
    rand::rng().random_range(0..sides)
}

impl Host {
    /// A host without streams.
    pub(crate) fn new(pool: Pool, habits: Habits) -> Self {
        Self { habits, pool, begun: 0, streams: Vec::new(), tally: Tally::default() }
    }

    /// The pool of its sessions.
    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The counts so far.
    pub(crate) fn tally(&self) -> Tally {
        self.tally
    }

    /// Does one random action, and then waits for a moment.
    ///
    /// Cancellation safe: if it is dropped during a borrow, the host holds the same leases as
    /// before.
    pub(crate) async fn act(&mut self) -> Result<(), Unexpected> {
        match roll(10) {
            0..4 => self.begin().await?,
            4..8 => self.grow().await?,
            8 => self.shrink(),
            _ => self.end(),
        }
        let pause = self.habits.pause.mul_f64(rand::rng().random_range(0.0..1.0));
        sleep(pause).await;
        self.stop_what_ended()
    }

    async fn begin(&mut self) -> Result<(), Unexpected> {
        if self.streams.len() >= self.habits.streams {
            return Ok(());
        }
        let trace = format!("{}-{}", self.habits.name, self.begun);
        self.begun += 1;
        let organization = &self.habits.organizations[roll(self.habits.organizations.len())];
        let request = SessionRequest::new("t1r", &**organization).trace(&*trace);
        let borrowed = self.pool.borrow(request);
        let Some(borrowed) = patiently(borrowed, &mut self.tally).await else { return Ok(()) };
        if let Some(session) = self.tally.borrowed(borrowed)? {
            self.streams.push(Stream { trace, session, workers: Vec::new() });
        }
        Ok(())
    }

    async fn grow(&mut self) -> Result<(), Unexpected> {
        if self.streams.is_empty() {
            return Ok(());
        }
        let index = roll(self.streams.len());
        let stream = &mut self.streams[index];
        let borrowed = stream.session.borrow_worker("t2w", self.habits.workers);
        let Some(borrowed) = patiently(borrowed, &mut self.tally).await else { return Ok(()) };
        stream.workers.extend(self.tally.borrowed(borrowed)?);
        Ok(())
    }

    fn shrink(&mut self) {
        if let Some(stream) = self.streams.first_mut() {
            self.tally.released += u64::from(stream.workers.pop().is_some());
        }
    }

    fn end(&mut self) {
        if self.streams.is_empty() {
            return;
        }
        let Stream { session, workers, .. } = self.streams.swap_remove(roll(self.streams.len()));
        self.tally.released += 1 + workers.len() as u64;
        if roll(2) == 0 {
            drop((workers, session));
        } else {
            drop(session.release());
            drop(workers);
        }
    }

    /// Stops the streams whose session has ended, as an application must.
    pub(crate) fn stop_what_ended(&mut self) -> Result<(), Unexpected> {
        let before = self.slots();
        for stream in &mut self.streams {
            for reason in stream.workers.iter().filter_map(|worker| worker.end_reason()) {
                expected_end(reason)?;
            }
            stream.workers.retain(|worker| worker.end_reason().is_none());
        }
        for reason in self.streams.iter().filter_map(|stream| stream.session.end_reason()) {
            expected_end(reason)?;
        }
        self.streams.retain(|stream| stream.session.end_reason().is_none());
        self.tally.lost += before - self.slots();
        Ok(())
    }

    /// How many leases it holds.
    pub(crate) fn slots(&self) -> u64 {
        self.streams.iter().map(Stream::slots).sum()
    }

    /// How many leases the server must count for this host, by trace.
    pub(crate) fn holds(&self) -> BTreeMap<String, u64> {
        self.streams.iter().map(|stream| (stream.trace.clone(), stream.slots())).collect()
    }
}

impl Stream {
    fn slots(&self) -> u64 {
        1 + self.workers.len() as u64
    }
}

/// Waits for a borrow with a timeout. One in five borrows is dropped after less than 200 ms.
async fn patiently<T>(borrow: impl Future<Output = T>, tally: &mut Tally) -> Option<T> {
    let patience = if roll(5) == 0 { roll(200) as u64 } else { 30_000 };
    let borrowed = timeout(Duration::from_millis(patience), borrow).await.ok();
    tally.abandoned += u64::from(borrowed.is_none());
    borrowed
}

impl Tally {
    fn borrowed<T>(&mut self, borrowed: Result<T, Error>) -> Result<Option<T>, Unexpected> {
        let count = match borrowed {
            Ok(lease) => {
                self.granted += 1;
                return Ok(Some(lease));
            }
            Err(Error::Unavailable { .. }) => &mut self.unavailable,
            Err(
                Error::ConcurrentStreamLimitExceeded { .. } | Error::WorkersLimitExceeded { .. },
            ) => &mut self.refused,
            // The session of a worker may have ended during the borrow.
            Err(reason) => {
                expected_end(&reason)?;
                &mut self.refused
            }
        };
        *count += 1;
        Ok(None)
    }
}

/// Checks that a fault can be the reason. No fault may look like a decision of the operator or a
/// spent budget.
fn expected_end(reason: &Error) -> Result<(), Unexpected> {
    let expected = match reason {
        Error::Lost { cause } => {
            !matches!(**cause, Error::PermissionDenied { .. } | Error::QuotaExceeded { .. })
        }
        // The pool admitted the lease while no server could be reached, and the next server refused
        // it. Or a worker ended with its session.
        Error::ConcurrentStreamLimitExceeded { .. }
        | Error::WorkersLimitExceeded { .. }
        | Error::SessionNotFound => true,
        _ => false,
    };
    if expected { Ok(()) } else { Err(Unexpected(reason.clone())) }
}
