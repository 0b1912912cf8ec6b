//! The guards an application holds: a session, and the workers under it.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use crate::callbacks::Kept;
use crate::error::Error;
use crate::held::{Lease, Release};
use crate::plugin::SessionPool;
use crate::request::{Id, Ids, WorkerRequest};

/// The common part of [`Session`] and [`Worker`]: who the lease is for, and how it ends.
///
/// Both dereference to it, and return their lease when they are dropped.
pub struct Guard {
    pool: Arc<dyn SessionPool>,
    lease: Arc<Lease>,
    kind: Kind,
    released: bool,
    /// It is dropped with the guard, and not by the task of the pool.
    on_error: Option<Kept>,
}

/// The kind of a lease. A plugin has one method for each to return it.
#[derive(Clone, Copy)]
enum Kind {
    Session,
    Worker,
}

impl Guard {
    /// Returns who the lease is for.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tgm_session::Error> {
    /// use tgm_session::SessionRequest;
    ///
    /// let pool = tgm_session::connect("local://").await?;
    /// let session = pool.borrow(SessionRequest::new("t1r", "acme").api_key("key-1")).await?;
    /// let worker = session.borrow_worker("t2w", 1).await?;
    /// assert_eq!((&*session.ids().service, &*session.ids().api_key), ("t1r", "key-1"));
    /// assert_eq!((&*worker.ids().service, &*worker.ids().organization), ("t2w", "acme"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn ids(&self) -> &Ids {
        self.lease.ids()
    }

    /// Resolves with the reason when the lease is revoked or lost, or its pool is closed. A worker also
    /// ends when its session ends or is released.
    ///
    /// The future may outlive the guard. It never resolves after the guard was released. Cancellation
    /// safe.
    pub fn ended(&self) -> impl Future<Output = Error> + Send + use<> {
        self.lease.clone().ended()
    }

    /// Returns why the lease ended, or `None` while it lives.
    pub fn end_reason(&self) -> Option<&Error> {
        self.lease.end_reason()
    }

    /// Returns how many keep-alives of the lease the server has answered with a full TTL.
    ///
    /// It stays 0 with `local://`, which needs no keep-alives.
    pub fn keep_alives(&self) -> u64 {
        self.lease.keep_alives()
    }

    /// Returns the key the lease has on the wire now.
    ///
    /// Whoever knows it can return the lease: treat it as a secret.
    pub fn key(&self) -> Arc<str> {
        self.lease.key()
    }

    /// Queues the return now, although the guard is still held.
    ///
    /// A second return when the guard is dropped has no effect.
    pub(crate) fn give_back(&self, minimal_life: Option<Duration>) -> Release {
        match self.kind {
            Kind::Session => self.pool.release_session(&self.lease, minimal_life),
            Kind::Worker => self.pool.release_worker(&self.lease, minimal_life),
        }
    }

    fn release(&mut self, minimal_life: Option<Duration>) -> Release {
        self.released = true;
        self.on_error = None;
        self.give_back(minimal_life)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.released {
            drop(self.give_back(None));
        }
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lease.fmt(f)
    }
}

/// The right to run one stream, returned when dropped.
///
/// Dropping never blocks and never spawns: the return is queued, after the returns of the workers of
/// the session. Workers end with their session. See [`Guard`] for its methods.
#[derive(Debug)]
#[must_use = "a session is returned when it is dropped"]
pub struct Session(Guard);

impl Session {
    pub(crate) fn new(
        pool: Arc<dyn SessionPool>,
        lease: Arc<Lease>,
        on_error: Option<Kept>,
    ) -> Self {
        Self(Guard { pool, lease, kind: Kind::Session, released: false, on_error })
    }

    /// Borrows a worker of `service` under this session, which may hold `max_per_session` of them.
    ///
    /// Cancellation safe: a borrow that is dropped holds nothing afterwards.
    ///
    /// # Errors
    ///
    /// See [`SessionPool::borrow_worker`].
    pub async fn borrow_worker(
        &self,
        service: impl Into<Id>,
        max_per_session: u32,
    ) -> Result<Worker, Error> {
        let request = WorkerRequest::new(service, max_per_session);
        let lease = self.0.pool.borrow_worker(&self.0.lease, request).await?;
        let (pool, kind) = (self.0.pool.clone(), Kind::Worker);
        Ok(Worker(Guard { pool, lease, kind, released: false, on_error: None }))
    }

    /// Returns the session, its workers first. The future resolves with the answer of the server.
    ///
    /// The return begins at once and goes on if the future is dropped.
    ///
    /// # Errors
    ///
    /// See [`Release`].
    pub fn release(mut self) -> Release {
        self.0.release(None)
    }

    /// As [`Session::release`]; a session younger than `minimal_life` counts until it is that old.
    ///
    /// # Errors
    ///
    /// See [`Release`].
    pub fn release_after(mut self, minimal_life: Duration) -> Release {
        self.0.release(Some(minimal_life))
    }
}

impl Deref for Session {
    type Target = Guard;

    fn deref(&self) -> &Guard {
        &self.0
    }
}

/// The right to run one job under a session, returned when dropped. See [`Guard`] for its methods.
#[derive(Debug)]
#[must_use = "a worker is returned when it is dropped"]
pub struct Worker(Guard);

impl Worker {
    /// Returns the worker. The future resolves with the answer of the server.
    ///
    /// The return begins at once and goes on if the future is dropped.
    ///
    /// # Errors
    ///
    /// See [`Release`].
    pub fn release(mut self) -> Release {
        self.0.release(None)
    }

    /// As [`Worker::release`]; a worker younger than `minimal_life` counts until it is that old.
    ///
    /// # Errors
    ///
    /// See [`Release`].
    pub fn release_after(mut self, minimal_life: Duration) -> Release {
        self.0.release(Some(minimal_life))
    }
}

impl Deref for Worker {
    type Target = Guard;

    fn deref(&self) -> &Guard {
        &self.0
    }
}
