//! The plugin `local://`: sessions and workers counted in this process.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lease::{Limits, Request};
use parking_lot::Mutex;

use crate::counts::Counts;
use crate::dsn::Dsn;
use crate::error::{Error, Scope};
use crate::held::{Lease, Release, Released};
use crate::plugin::{BoxFuture, CloseReport, SessionPool};
use crate::request::{Ids, OnError, SessionRequest, WorkerRequest};
use crate::stats::PoolStats;

/// The ledger counts by service. Here all services count together.
const SESSIONS: &str = "sessions";
const WORKERS: &str = "workers";

/// The limits of a pool that counts in this process. Every one is a parameter of `local://`.
///
/// ```
/// use tgm_session::{LocalConfig, LocalPool};
///
/// let pool = LocalPool::new(LocalConfig::new().max_sessions(20).max_workers_per_session(4));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "limits do nothing by themselves"]
pub struct LocalConfig {
    max_sessions: u64,
    max_sessions_per_organization: u64,
    max_workers: u64,
    max_workers_per_organization: u64,
    max_workers_per_session: u64,
}

impl Default for LocalConfig {
    /// As [`LocalConfig::new`].
    fn default() -> Self {
        Self::new()
    }
}

impl LocalConfig {
    /// Sets every limit to its default: 100 of everything, and 10 sessions per organization.
    pub const fn new() -> Self {
        Self {
            max_sessions: 100,
            max_sessions_per_organization: 10,
            max_workers: 100,
            max_workers_per_organization: 100,
            max_workers_per_session: 100,
        }
    }

    /// Sets the most sessions.
    pub const fn max_sessions(mut self, most: u64) -> Self {
        self.max_sessions = most;
        self
    }

    /// Sets the most sessions of one organization.
    pub const fn max_sessions_per_organization(mut self, most: u64) -> Self {
        self.max_sessions_per_organization = most;
        self
    }

    /// Sets the most workers.
    pub const fn max_workers(mut self, most: u64) -> Self {
        self.max_workers = most;
        self
    }

    /// Sets the most workers of one organization.
    pub const fn max_workers_per_organization(mut self, most: u64) -> Self {
        self.max_workers_per_organization = most;
        self
    }

    /// Sets the most workers of one session, whatever the call allows.
    pub const fn max_workers_per_session(mut self, most: u64) -> Self {
        self.max_workers_per_session = most;
        self
    }

    /// Reads the parameters of a `local://` URL.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] names the parameter that is unknown or wrong.
    pub fn from_dsn(dsn: &Dsn) -> Result<Self, Error> {
        if dsn.host().is_some() {
            tracing::warn!(
                "the session URL names a host, which is ignored: {}:// counts in this process",
                dsn.given_scheme()
            );
        }
        let mut p = dsn.parameters();
        let default = Self::default();
        let mut count = |names: &[&'static str], default| Ok(p.count(names)?.unwrap_or(default));
        let config = Self {
            max_sessions: count(&["max_sessions"], default.max_sessions)?,
            max_sessions_per_organization: count(
                &["max_sessions_per_organization", "max_sessions_per_user"],
                default.max_sessions_per_organization,
            )?,
            max_workers: count(&["max_workers"], default.max_workers)?,
            max_workers_per_organization: count(
                &["max_workers_per_organization", "max_workers_per_user"],
                default.max_workers_per_organization,
            )?,
            max_workers_per_session: count(
                &["max_workers_per_session"],
                default.max_workers_per_session,
            )?,
        };
        p.finish()?;
        Ok(config)
    }
}

/// A pool that counts in this process, by the rules of the session server.
///
/// Nothing expires: the process holds its leases as long as it runs.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tgm_session::Error> {
/// use tgm_session::SessionRequest;
///
/// let pool = tgm_session::connect("local://?max_sessions=1").await?;
/// let session = pool.borrow(SessionRequest::new("t1r", "acme")).await?;
/// assert_eq!(&*session.key(), "local-session-1");
/// let refused = pool.borrow(SessionRequest::new("t1r", "acme")).await.unwrap_err();
/// assert_eq!(refused.to_string(), "Concurrent stream limit exceeded (active sessions: 1/1)");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct LocalPool {
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    config: LocalConfig,
    counts: Counts,
    held: HashMap<u64, Held>,
    numbers: u64,
    sessions: u64,
    closed: bool,
    stats: PoolStats,
}

#[derive(Debug)]
struct Held {
    lease: Arc<Lease>,
    role: Role,
}

#[derive(Debug)]
enum Role {
    Session { workers: BTreeSet<u64>, named: u64 },
    Worker { session: u64 },
}

impl LocalPool {
    /// Makes an empty pool with these limits.
    pub fn new(config: LocalConfig) -> Self {
        let table = Table {
            config,
            counts: Counts::new(rand::random(), now()),
            held: HashMap::new(),
            numbers: 0,
            sessions: 0,
            closed: false,
            stats: PoolStats::default(),
        };
        Self { table: Mutex::new(table) }
    }

    /// Makes the pool that a `local://` URL describes.
    ///
    /// # Errors
    ///
    /// As [`LocalConfig::from_dsn`].
    pub fn from_dsn(dsn: &Dsn) -> Result<Self, Error> {
        Ok(Self::new(LocalConfig::from_dsn(dsn)?))
    }

    fn borrow(
        &self,
        borrow: impl FnOnce(&mut Table) -> Result<Arc<Lease>, Error>,
    ) -> Result<Arc<Lease>, Error> {
        let mut table = self.table.lock();
        borrow(&mut table).inspect_err(|error| table.stats.denied.count(error))
    }

    fn release(&self, number: u64, minimal_life: Option<Duration>) -> Release {
        let mut ended = Vec::new();
        let life = minimal_life.unwrap_or_default();
        let released = self.table.lock().release(number, life, &mut ended);
        ended.into_iter().for_each(|lease| {
            lease.end(Error::SessionNotFound);
        });
        Release::known(Ok(released))
    }
}

impl Table {
    fn borrow_session(&mut self, request: SessionRequest) -> Result<Arc<Lease>, Error> {
        let SessionRequest { service, mut organization, api_key, trace, on_error } = request;
        if organization.is_empty() {
            organization = lease::ANONYMOUS.into();
        }
        Request::session(&service, &organization)
            .api_key(&api_key)
            .trace(&trace)
            .validate()
            .map_err(Error::of_request)?;
        if self.closed {
            return Err(Error::Closed);
        }
        let limits = Limits {
            service: Some(self.config.max_sessions),
            organization: Some(self.config.max_sessions_per_organization),
            api_key: None,
        };
        let ids = Ids { service, organization, api_key, trace };
        let key = format!("local-session-{}", self.sessions + 1);
        let request = Request::session(SESSIONS, &ids.organization).trace(&key);
        self.counts.add(self.numbers + 1, &request, limits, now())?;
        self.sessions += 1;
        let role = Role::Session { workers: BTreeSet::new(), named: 0 };
        Ok(self.hold(key, ids, on_error, role))
    }

    fn borrow_worker(&mut self, session: u64, request: WorkerRequest) -> Result<Arc<Lease>, Error> {
        let WorkerRequest { service, max_per_session } = request;
        lease::validate_id("service", &service, true).map_err(Error::of_request)?;
        if self.closed {
            return Err(Error::Closed);
        }
        let limits = Limits {
            service: Some(self.config.max_workers),
            organization: Some(self.config.max_workers_per_organization),
            api_key: None,
        };
        let held = self.held.get(&session).ok_or(Error::SessionNotFound)?;
        let Role::Session { workers, named } = &held.role else {
            return Err(Error::SessionNotFound);
        };
        let most = u64::from(max_per_session).min(self.config.max_workers_per_session);
        if most == 0 {
            // With a limit of 0 the ledger would grant a session.
            let active = workers.len() as u64;
            return Err(Error::WorkersLimitExceeded { active, max: 0, scope: Scope::Trace });
        }
        let ids = held.lease.ids().with_service(service);
        let trace = held.lease.key();
        let key = format!("{trace}-w{:04}", named + 1);
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let request = Request::worker(WORKERS, &ids.organization, &trace, most);
        self.counts.add(self.numbers + 1, &request, limits, now())?;
        let lease = self.hold(key, ids, None, Role::Worker { session });
        if let Some(Role::Session { workers, named, .. }) =
            self.held.get_mut(&session).map(|held| &mut held.role)
        {
            workers.insert(lease.number());
            *named += 1;
        }
        Ok(lease)
    }

    fn hold(&mut self, key: String, ids: Ids, on_error: Option<OnError>, role: Role) -> Arc<Lease> {
        self.numbers += 1;
        let lease = Arc::new(Lease::new(self.numbers, key, ids, on_error));
        self.stats.held(matches!(role, Role::Worker { .. }));
        self.held.insert(self.numbers, Held { lease: lease.clone(), role });
        lease
    }

    /// Returns a lease, with a session its workers first; they go into `ended`.
    fn release(
        &mut self,
        number: u64,
        minimal_life: Duration,
        ended: &mut Vec<Arc<Lease>>,
    ) -> Released {
        let Some(held) = self.held.remove(&number) else { return Released::Missing };
        self.stats.let_go(matches!(held.role, Role::Worker { .. }));
        self.stats.returned += 1;
        match held.role {
            Role::Session { workers, .. } => {
                for worker in workers {
                    ended.extend(self.held.get(&worker).map(|held| held.lease.clone()));
                    self.release(worker, Duration::ZERO, ended);
                }
            }
            Role::Worker { session } => {
                if let Some(Role::Session { workers, .. }) =
                    self.held.get_mut(&session).map(|held| &mut held.role)
                {
                    workers.remove(&number);
                }
            }
        }
        self.counts.remove(number, minimal_life, now())
    }
}

impl SessionPool for LocalPool {
    fn borrow_session(&self, request: SessionRequest) -> BoxFuture<'_, Result<Arc<Lease>, Error>> {
        Box::pin(async move { self.borrow(|table| table.borrow_session(request)) })
    }

    fn borrow_worker<'a>(
        &'a self,
        session: &'a Lease,
        request: WorkerRequest,
    ) -> BoxFuture<'a, Result<Arc<Lease>, Error>> {
        Box::pin(async move { self.borrow(|table| table.borrow_worker(session.number(), request)) })
    }

    fn release_session(&self, session: &Lease, minimal_life: Option<Duration>) -> Release {
        self.release(session.number(), minimal_life)
    }

    fn release_worker(&self, worker: &Lease, minimal_life: Option<Duration>) -> Release {
        self.release(worker.number(), minimal_life)
    }

    fn close(&self, _deadline: Duration) -> BoxFuture<'_, CloseReport> {
        Box::pin(async move {
            let held = {
                let mut table = self.table.lock();
                table.closed = true;
                let mut held: Vec<_> = table.held.values().map(|held| held.lease.clone()).collect();
                held.sort_unstable_by_key(|lease| lease.number());
                for lease in &held {
                    table.release(lease.number(), Duration::ZERO, &mut Vec::new());
                }
                held
            };
            let returned = held.len() as u64;
            held.into_iter().for_each(|lease| {
                lease.end(Error::Closed);
            });
            CloseReport { returned, not_returned: 0 }
        })
    }

    fn stats(&self) -> PoolStats {
        self.table.lock().stats
    }
}

/// The present, by the clock of the runtime, which tests may pause.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests;
