//! What a plugin does: the pools behind the guards.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::held::{Lease, Release};
use crate::request::{SessionRequest, WorkerRequest};
use crate::stats::PoolStats;

/// A boxed future, as an object-safe trait needs it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a plugin does: borrow, keep alive and return, for one URL scheme.
///
/// The five verbs are those of the plugins in production. Applications use [`Pool`](crate::Pool), whose guards
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
    /// [`Pool`](crate::Pool) gives every request a trace id. A plugin that is called by others, and whose
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
