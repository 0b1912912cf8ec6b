//! The interface of a plugin: the pool behind the guards.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::held::{Lease, Release};
use crate::request::{SessionRequest, WorkerRequest};
use crate::stats::PoolStats;

/// A boxed future, which a `dyn` trait needs.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A plugin for one URL scheme: it borrows leases, keeps them alive and returns them.
///
/// The five verbs are those of the plugins in production. Applications use [`Pool`](crate::Pool), whose
/// guards return their leases. A caller of the trait itself must release every lease.
///
/// # Cancellation
///
/// Every future may be dropped at any point. A borrow that is dropped holds nothing afterwards: what
/// a server may have granted meanwhile is returned. A release happens even if its future is not
/// polled. A close that is dropped goes on refusing borrows and returning leases.
pub trait SessionPool: fmt::Debug + Send + Sync {
    /// Borrows a session.
    ///
    /// [`Pool`](crate::Pool) gives every request a trace id. A plugin that is called directly, and whose
    /// limits need a trace id, must make one.
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
    /// A session younger than `minimal_life` lingers: it counts until it reaches that age. With `None`
    /// the pool chooses.
    fn release_session(&self, session: &Lease, minimal_life: Option<Duration>) -> Release;

    /// Returns a worker. Never blocks and never panics, whatever the lease.
    fn release_worker(&self, worker: &Lease, minimal_life: Option<Duration>) -> Release;

    /// Refuses new borrows, waits for the calls in flight, and returns everything held with minimal
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
    /// How many leases were returned to the server.
    pub returned: u64,
    /// How many could not be returned: they count until their TTL ends.
    pub not_returned: u64,
}
