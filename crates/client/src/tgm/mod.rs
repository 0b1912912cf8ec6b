//! The remote plugin, `tgm://`: sessions and workers counted by a session server.

mod borrow;
mod config;
mod core;
mod driver;
#[cfg(feature = "simulation")]
#[doc(hidden)]
pub mod simulation;
mod wire;

use std::fmt;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ::connect::{Bytestream, Connection, Connector, grpc};
use ::wire::worker::WorkersState;
use lease::Request;
use tokio::io::{AsyncRead, AsyncWrite};

use self::borrow::{Patience, Wanted};
pub use self::config::{OnUnavailable, TgmConfig};
use self::core::{Core, Rules};
use self::driver::{Caretaker, Shared};
use self::wire::Remote;
use crate::api_key::ApiKey;
use crate::dsn::Dsn;
use crate::error::Error;
use crate::held::{Lease, Release};
use crate::metered::Metered;
use crate::plugin::{BoxFuture, CloseReport, SessionPool};
use crate::request::{SessionRequest, WorkerRequest};
use crate::stats::PoolStats;

/// A pool of sessions and workers that a session server counts.
///
/// One task works in the background: it keeps every lease alive, returns what was released, and
/// borrows again what a restarted server forgot. It ends when the pool is closed, or when the pool and
/// all its guards are dropped and everything is returned.
///
/// The task lives in the runtime that the pool was made in. If that is shut down first, everything
/// held ends as [`Error::Closed`], and borrows and releases from other runtimes fail with this error.
/// What was held counts on the server until its TTL ends.
pub struct TgmPool {
    shared: Arc<Shared>,
    patience: Patience,
}

impl TgmPool {
    /// Makes the pool that a `tgm://` URL describes. The first borrow connects to the server.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] as [`TgmConfig::from_dsn`] and [`TgmPool::connect`].
    pub fn from_dsn(dsn: &Dsn) -> Result<Self, Error> {
        Self::connect(&TgmConfig::from_dsn(dsn)?)
    }

    /// Makes the pool that `config` describes. The first borrow connects to the server.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when the host, the key or a certificate file cannot be used, and
    /// outside of a tokio runtime.
    pub fn connect(config: &TgmConfig) -> Result<Self, Error> {
        Self::over(config, config.connector()?)
    }

    /// As [`TgmPool::connect`], over streams of bytes that the application makes. What `config` says
    /// about TLS has no effect, and its host is only a name.
    ///
    /// `connect` is called before the first call and whenever the connection is gone, and may take
    /// three seconds. The pool speaks HTTP/2 over its stream.
    ///
    /// ```no_run
    /// # fn example(config: &tgm_session::TgmConfig) -> Result<(), tgm_session::Error> {
    /// # #[cfg(unix)]
    /// let pool = tgm_session::TgmPool::with_connector(config, || {
    ///     tokio::net::UnixStream::connect("/run/tgm-session.sock")
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when the host or the key cannot be used, and outside of a tokio
    /// runtime.
    pub fn with_connector<C, F, T>(config: &TgmConfig, connect: C) -> Result<Self, Error>
    where
        C: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = io::Result<T>> + Send + 'static,
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let connect = move || -> BoxFuture<'static, _> {
            let connecting = connect();
            Box::pin(async { Ok(Box::new(connecting.await?) as Box<dyn Bytestream>) })
        };
        Self::over(config, Connector::Own(Arc::new(connect)))
    }

    fn over(config: &TgmConfig, connector: Connector) -> Result<Self, Error> {
        let runtime = driver::runtime()?;
        config.check()?;
        let key =
            ApiKey::new(config.indexer_api_key.as_ref(), config.indexer_api_key_file.as_ref())?;
        let fail_open = config.on_unavailable == OnUnavailable::Allow;
        let rules = Rules {
            delay: config.keep_alive_delay,
            minimal_life: config.minimal_life,
            most_sessions: config.max_sessions_per_organization,
            fail_open,
        };
        let core = Core::new(rules, rand::make_rng(), driver::now());
        let remote = Remote::new(Connection::new(connector), config.origin()?, key);
        let shared = Arc::new(Shared::new(core, remote));
        let caretaker = Caretaker { shared: shared.clone(), metered: Metered::default() };
        runtime.spawn(driver::run(caretaker));
        let (timeout, wait) = (config.borrow_timeout, config.borrow_wait);
        let patience = Patience { timeout, wait, fail_open };
        Ok(Self { shared, patience })
    }

    /// Reads from the server what `organization` holds of `service`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for a service that the server does not know, and outside of a tokio
    /// runtime; [`Error::Unauthenticated`]; [`Error::Unavailable`] after the borrow timeout.
    pub async fn state(&self, service: &str, organization: &str) -> Result<PoolState, Error> {
        let answer = async {
            let answer = self.shared.remote.state(service, organization);
            let answer = grpc::within(self.patience.timeout, answer).await;
            answer.map_err(|status| wire::error(&status))
        };
        let answer = driver::in_runtime(pin!(answer)).await?;
        let state = answer.into_inner().worker_state.map(PoolState::from_wire);
        state.ok_or_else(|| Error::unavailable("the server answered without a state of the pool"))
    }
}

/// What one organization holds of one service, as the server counts it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolState {
    /// Live leases, sessions and workers alike.
    pub borrowed: u64,
    /// The limit; `None` when there is none.
    pub max: Option<u64>,
    /// How many more the limit allows; `None` when there is none.
    pub available: Option<u64>,
    /// Distinct trace ids with a live lease.
    pub active_traces: u64,
    /// Live leases per trace id.
    pub per_trace: std::collections::BTreeMap<String, u64>,
}

impl PoolState {
    fn from_wire(state: WorkersState) -> Self {
        let count = |count: i64| u64::try_from(count).unwrap_or(0);
        let per_trace = state.worker_count_per_trace_id.into_iter();
        // On the wire a maximum of 0 is no limit, unless nothing is available either.
        let (max, available) = (count(state.max_workers), count(state.available_workers));
        let is_limited = max > 0 || available == 0;
        Self {
            borrowed: count(state.borrowed_workers),
            max: is_limited.then_some(max),
            available: is_limited.then_some(available),
            active_traces: count(state.active_trace_id),
            per_trace: per_trace.map(|(trace, held)| (trace, count(held))).collect(),
        }
    }
}

impl SessionPool for TgmPool {
    fn borrow_session(&self, request: SessionRequest) -> BoxFuture<'_, Result<Arc<Lease>, Error>> {
        Box::pin(async move {
            let request = request.with_trace();
            // The server may have a default organization.
            let organization =
                lease::organization_of(&request.organization, Some(lease::ANONYMOUS))
                    .map_err(Error::of_request)?;
            Request::session(&request.service, organization)
                .api_key(&request.api_key)
                .trace(&request.trace)
                .validate()
                .map_err(Error::of_request)?;
            let wanted = Wanted::Session { ids: request.ids() };
            borrow::borrow(&self.shared, wanted, request.on_error, self.patience).await
        })
    }

    fn borrow_worker<'a>(
        &'a self,
        session: &'a Lease,
        request: WorkerRequest,
    ) -> BoxFuture<'a, Result<Arc<Lease>, Error>> {
        Box::pin(async move {
            lease::validate_id("service", &request.service, true).map_err(Error::of_request)?;
            let wanted = Wanted::Worker {
                session: session.number(),
                service: request.service,
                max_per_session: request.max_per_session,
            };
            borrow::borrow(&self.shared, wanted, None, self.patience).await
        })
    }

    fn release_session(&self, session: &Lease, minimal_life: Option<Duration>) -> Release {
        self.shared.tell(|core, now| core.release(session.number(), minimal_life, now))
    }

    fn release_worker(&self, worker: &Lease, minimal_life: Option<Duration>) -> Release {
        self.shared.tell(|core, now| core.release(worker.number(), minimal_life, now))
    }

    fn close(&self, deadline: Duration) -> BoxFuture<'_, CloseReport> {
        Box::pin(async move {
            let drained = self.shared.tell(Core::close);
            if driver::runtime().is_err() {
                tracing::warn!("a close outside of a tokio runtime has no clock and does not wait");
            } else if tokio::time::timeout(deadline, drained).await.is_err() {
                return self.shared.tell(|core, now| {
                    let report = core.report();
                    core.give_up(now);
                    report
                });
            }
            self.shared.tell(|core, _| core.report())
        })
    }

    fn stats(&self) -> PoolStats {
        self.shared.note(|core| core.stats())
    }
}

impl fmt::Debug for TgmPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TgmPool").field("patience", &self.patience).finish_non_exhaustive()
    }
}

impl Drop for TgmPool {
    fn drop(&mut self) {
        // This does not wait. The task goes on until everything is returned.
        drop(self.shared.tell(Core::close));
    }
}
