//! What a pool can do, and what it is asked for.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::callbacks::Callbacks;
use crate::error::Error;
use crate::guard::Session;
use crate::held::{Ids, Lease, OnError, Release};
use crate::id::Id;
use crate::stats::PoolStats;

/// A boxed future, as an object-safe trait needs it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a plugin does: borrow, keep alive and return, for one URL scheme.
///
/// The five verbs are those of the plugins in production. Applications use [`Pool`], whose guards
/// return what they hold; a caller of the trait itself has to release every lease.
///
/// # Cancellation
///
/// Every future may be dropped at any point. A borrow that is dropped holds nothing afterwards:
/// what a server may have granted meanwhile is given back. A release happens whether or not its
/// future is polled. A close that is dropped goes on refusing borrows and giving back.
pub trait SessionPool: fmt::Debug + Send + Sync {
    /// Borrows a session.
    ///
    /// [`Pool`] gives every request a trace id. A plugin that is called by others, and whose
    /// ceilings need one, has to make it.
    ///
    /// # Errors
    ///
    /// Every kind of [`Error`] but [`Error::WorkersLimitExceeded`], [`Error::SessionNotFound`] and
    /// [`Error::Lost`].
    fn borrow_session(&self, request: SessionRequest) -> BoxFuture<'_, Result<Arc<Lease>, Error>>;

    /// Borrows a worker under a session of this pool.
    ///
    /// # Errors
    ///
    /// Every kind of [`Error`] but [`Error::ConcurrentStreamLimitExceeded`] and [`Error::Lost`].
    fn borrow_worker<'a>(
        &'a self,
        session: &'a Lease,
        request: WorkerRequest,
    ) -> BoxFuture<'a, Result<Arc<Lease>, Error>>;

    /// Returns a session, its workers first. Never blocks and never panics, whatever the lease.
    ///
    /// A session younger than `minimal_life` lingers: it counts until it reaches that age. `None`
    /// leaves the choice to the pool.
    fn release_session(&self, session: &Lease, minimal_life: Option<Duration>) -> Release;

    /// Returns a worker. Never blocks and never panics, whatever the lease.
    fn release_worker(&self, worker: &Lease, minimal_life: Option<Duration>) -> Release;

    /// Refuses new borrows, waits for what is under way, and returns everything held with minimal
    /// life 0, workers first. Everything held ends as [`Error::Closed`].
    fn close(&self, deadline: Duration) -> BoxFuture<'_, CloseReport>;

    /// Returns what the pool holds and has done; all zeros from a plugin that does not count.
    fn stats(&self) -> PoolStats {
        PoolStats::default()
    }
}

/// What a close did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "leases that could not be returned count until their TTL ends"]
pub struct CloseReport {
    /// How many leases the server has back.
    pub returned: u64,
    /// How many it could not be told about: they count until their TTL ends.
    pub not_returned: u64,
}

/// What a session is asked for.
///
/// ```
/// # use tgm_session::SessionRequest;
/// let request = SessionRequest::new("t1r", "acme")
///     .api_key("key-1")
///     .trace("4bf92f3577b34da6a3ce929d0e0e4736")
///     .on_error(|reason| eprintln!("the stream has to stop: {reason}"));
/// ```
#[must_use = "a request borrows nothing by itself"]
pub struct SessionRequest {
    /// The service to run, as the server's policy names it.
    pub service: Arc<str>,
    /// The organization that pays. When empty, the server's `default_organization`, which it may lack;
    /// with `local://`, `anonymous`.
    pub organization: Arc<str>,
    /// The id of the API key the stream came with; empty when there is none.
    pub api_key: Arc<str>,
    /// The trace id that ties workers to the session.
    ///
    /// An empty one, or one of zeros alone, is none: the session gets a random one of its own then,
    /// because without any the server applies no ceiling on its workers.
    pub trace: Arc<str>,
    /// What is called if the session ends before it is released.
    pub on_error: Option<OnError>,
}

impl SessionRequest {
    /// Asks for a session of `service` for `organization`.
    pub fn new(service: impl Into<Id>, organization: impl Into<Id>) -> Self {
        Self {
            service: service.into().into(),
            organization: organization.into().into(),
            api_key: Arc::default(),
            trace: Arc::default(),
            on_error: None,
        }
    }

    /// Adds the id of the API key the stream came with.
    pub fn api_key(mut self, api_key: impl Into<Id>) -> Self {
        self.api_key = api_key.into().into();
        self
    }

    /// Adds the trace id of the stream; without it the session gets a random one.
    pub fn trace(mut self, trace: impl Into<Id>) -> Self {
        self.trace = trace.into().into();
        self
    }

    /// Adds what is called, at most once, if the session is revoked or lost.
    ///
    /// It gets what [`Guard::ended`](crate::Guard::ended) resolves with. It runs on a thread of the pool that
    /// has nothing else to do, in the context of the runtime that borrowed: it may block, and a panic
    /// is logged. Other sessions end meanwhile and their callbacks run, unless eight of them block.
    ///
    /// A plugin gets a callback that only queues this one. Whoever calls a [`SessionPool`] itself
    /// has its callback called by the plugin, and must not block there.
    pub fn on_error(mut self, on_error: impl FnOnce(Error) + Send + 'static) -> Self {
        self.on_error = Some(Box::new(on_error));
        self
    }

    /// Makes a random trace id unless there is one.
    pub(crate) fn with_trace(self) -> Self {
        if lease::forms_a_scope(&self.trace) {
            return self;
        }
        self.trace(format!("{:032x}", rand::random::<u128>()))
    }
}

impl SessionRequest {
    fn ids(&self) -> Ids {
        Ids {
            service: self.service.clone(),
            organization: self.organization.clone(),
            api_key: self.api_key.clone(),
            trace: self.trace.clone(),
        }
    }
}

impl fmt::Debug for SessionRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionRequest")
            .field("service", &self.service)
            .field("organization", &self.organization)
            .field("api_key", &self.api_key)
            .field("trace", &self.trace)
            .finish_non_exhaustive()
    }
}

/// What a worker is asked for.
#[derive(Clone, Debug)]
#[must_use = "a request borrows nothing by itself"]
pub struct WorkerRequest {
    /// The service to run, as the server's policy names it.
    pub service: Arc<str>,
    /// Most workers under the session at once; 0 admits nobody.
    pub max_per_session: u32,
}

impl WorkerRequest {
    /// Asks for a worker of `service`, of which the session may hold `max_per_session`.
    pub fn new(service: impl Into<Id>, max_per_session: u32) -> Self {
        Self { service: service.into().into(), max_per_session }
    }
}

/// A pool of sessions and workers. Cloning it is cheap, and all clones are one pool.
///
/// Dropping the last clone and the last guard returns what is still queued, in the background, as
/// long as the runtime runs. [`Pool::close`] waits for it and says what became of it.
#[derive(Clone, Debug)]
pub struct Pool {
    plugin: Arc<dyn SessionPool>,
    callbacks: Callbacks,
}

impl Pool {
    /// Puts guards on top of a plugin.
    pub fn new(plugin: Arc<dyn SessionPool>) -> Self {
        Self { plugin, callbacks: Callbacks::default() }
    }

    /// Borrows a session, kept alive until its guard is dropped or released.
    ///
    /// Cancellation safe: a borrow that is dropped holds nothing afterwards.
    ///
    /// # Errors
    ///
    /// See [`SessionPool::borrow_session`].
    pub async fn borrow(&self, request: SessionRequest) -> Result<Session, Error> {
        let mut request = request.with_trace();
        let mut kept = None;
        if let Some(callback) = request.on_error.take() {
            let (holds, queues) = self.callbacks.keep(callback, request.ids())?;
            (kept, request.on_error) = (Some(holds), Some(queues));
        }
        let lease = self.plugin.borrow_session(request).await?;
        Ok(Session::new(self.plugin.clone(), lease, kept))
    }

    /// Returns what the pool holds now, and what it has done since it was made.
    pub fn stats(&self) -> PoolStats {
        self.plugin.stats()
    }

    /// Refuses new borrows from now on, waits for what is under way, and returns everything held
    /// with minimal life 0, workers first, for at most `deadline`. Polled outside of a tokio runtime
    /// it begins the same and does not wait.
    ///
    /// Everything held ends as [`Error::Closed`]. A second close waits for the same and reports
    /// what it saw itself.
    pub async fn close(&self, deadline: Duration) -> CloseReport {
        self.plugin.close(deadline).await
    }
}
