//! Numbers of what a pool holds and has done.

use crate::error::Error;

/// What a pool holds now, and what it has done since it was made.
///
/// All numbers are of one moment. They only grow, except for what is held.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tgm_session::Error> {
/// use tgm_session::SessionRequest;
///
/// let pool = tgm_session::connect("local://?max_sessions=1").await?;
/// let _session = pool.borrow(SessionRequest::new("t1r", "acme")).await?;
/// assert!(pool.borrow(SessionRequest::new("t1r", "acme")).await.is_err());
/// let stats = pool.stats();
/// assert_eq!((stats.sessions_held, stats.sessions_borrowed), (1, 1));
/// assert_eq!(stats.denied.sessions_limit, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Sessions whose guard is held, including those that have ended.
    pub sessions_held: u64,
    /// Workers whose guard and session are held, including those that have ended.
    pub workers_held: u64,
    /// Whether keep-alives go over one stream, and revocations are pushed.
    pub attached: bool,
    /// Sessions that were granted or admitted.
    pub sessions_borrowed: u64,
    /// Workers that were granted or admitted.
    pub workers_borrowed: u64,
    /// Sessions and workers that the pool admitted by itself while its server was away.
    pub failed_open: u64,
    /// Borrows that failed, by kind. A borrow that its caller dropped does not count.
    pub denied: Denied,
    /// Leases that were returned, or that the server did not hold any more.
    pub returned: u64,
    /// Leases that could not be returned: they counted until their TTL ended.
    pub not_returned: u64,
    /// Borrows and returns that were sent again.
    pub retried: u64,
    /// Keep-alives that gave a lease its full TTL again.
    pub kept_alive: u64,
    /// Keep-alives that failed, and were tried again.
    pub keep_alives_failed: u64,
    /// Leases that the server had forgotten and granted again.
    pub borrowed_again: u64,
    /// Leases that ended because their session was revoked.
    pub revoked: u64,
    /// Leases that ended for any other reason before they were released: 95 % of a TTL passed
    /// without a keep-alive, or a lease that the server forgot was not granted again.
    pub lost: u64,
}

/// Borrows that failed, by the kind of [`Error`] they failed with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Denied {
    /// [`Error::Unavailable`].
    pub unavailable: u64,
    /// [`Error::Unauthenticated`].
    pub unauthenticated: u64,
    /// [`Error::PermissionDenied`].
    pub permission_denied: u64,
    /// [`Error::QuotaExceeded`].
    pub quota_exceeded: u64,
    /// [`Error::ConcurrentStreamLimitExceeded`].
    pub sessions_limit: u64,
    /// [`Error::WorkersLimitExceeded`].
    pub workers_limit: u64,
    /// Everything else: invalid arguments, closed pools, sessions that had ended.
    pub other: u64,
}

impl PoolStats {
    pub(crate) fn held(&mut self, is_worker: bool) {
        let (held, borrowed) = if is_worker {
            (&mut self.workers_held, &mut self.workers_borrowed)
        } else {
            (&mut self.sessions_held, &mut self.sessions_borrowed)
        };
        *held += 1;
        *borrowed += 1;
    }

    pub(crate) fn let_go(&mut self, is_worker: bool) {
        *(if is_worker { &mut self.workers_held } else { &mut self.sessions_held }) -= 1;
    }

    pub(crate) fn ended(&mut self, reason: &Error) {
        match reason {
            Error::PermissionDenied { .. } | Error::QuotaExceeded { .. } => self.revoked += 1,
            _ => self.lost += 1,
        }
    }
}

impl Denied {
    /// Returns all of them, with the names that metrics give them.
    pub fn by_kind(&self) -> [(&'static str, u64); 7] {
        [
            ("unavailable", self.unavailable),
            ("unauthenticated", self.unauthenticated),
            ("permission_denied", self.permission_denied),
            ("quota_exceeded", self.quota_exceeded),
            ("sessions_limit", self.sessions_limit),
            ("workers_limit", self.workers_limit),
            ("other", self.other),
        ]
    }

    pub(crate) fn count(&mut self, error: &Error) {
        *match error {
            Error::Unavailable { .. } => &mut self.unavailable,
            Error::Unauthenticated { .. } => &mut self.unauthenticated,
            Error::PermissionDenied { .. } => &mut self.permission_denied,
            Error::QuotaExceeded { .. } => &mut self.quota_exceeded,
            Error::ConcurrentStreamLimitExceeded { .. } => &mut self.sessions_limit,
            Error::WorkersLimitExceeded { .. } => &mut self.workers_limit,
            Error::SessionNotFound
            | Error::InvalidArgument { .. }
            | Error::Closed
            | Error::Lost { .. } => &mut self.other,
        } += 1;
    }
}
