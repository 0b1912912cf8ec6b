//! One lease as its holder sees it: its key and its end.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::error::Error;
use crate::request::{Ids, OnError, SessionRequest, WorkerRequest};

/// One session or worker that a pool granted. The pool and the guard share it.
///
/// A plugin makes one per grant, with a number that it never uses again, and ends it when the
/// lease is revoked or lost. Applications use it through [`Session`](crate::Session) and
/// [`Worker`](crate::Worker).
pub struct Lease {
    number: u64,
    ids: Ids,
    key: Mutex<Arc<str>>,
    keep_alives: AtomicU64,
    /// In a box, because most leases end without a reason.
    reason: OnceLock<Box<Error>>,
    ended: Notify,
    on_error: Mutex<Option<OnError>>,
}

impl Lease {
    /// Makes the lease of a granted session. `key` is its name on the wire, and `number` in its pool.
    pub fn of_session(number: u64, key: impl Into<Arc<str>>, request: SessionRequest) -> Self {
        Self::new(number, key, request.ids(), request.on_error)
    }

    /// Makes the lease of a worker granted under `session`.
    pub fn of_worker(
        number: u64,
        key: impl Into<Arc<str>>,
        session: &Self,
        request: WorkerRequest,
    ) -> Self {
        Self::new(number, key, session.ids.with_service(request.service), None)
    }

    pub(crate) fn new(
        number: u64,
        key: impl Into<Arc<str>>,
        ids: Ids,
        on_error: Option<OnError>,
    ) -> Self {
        Self {
            number,
            ids,
            key: Mutex::new(key.into()),
            keep_alives: AtomicU64::new(0),
            reason: OnceLock::new(),
            ended: Notify::new(),
            on_error: Mutex::new(on_error),
        }
    }

    /// Returns the number of the lease in its pool. It stays when the key changes.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Returns who the lease is for.
    pub fn ids(&self) -> &Ids {
        &self.ids
    }

    /// Returns the key the lease has on the wire now.
    ///
    /// The key changes when a server that forgot the lease granted it again.
    pub fn key(&self) -> Arc<str> {
        self.key.lock().clone()
    }

    /// Sets the key of a new grant.
    pub fn set_key(&self, key: impl Into<Arc<str>>) {
        *self.key.lock() = key.into();
    }

    /// Returns how many keep-alives gave the lease its full TTL again.
    pub fn keep_alives(&self) -> u64 {
        self.keep_alives.load(Ordering::Relaxed)
    }

    /// Counts a keep-alive that gave the lease its full TTL again.
    ///
    /// A plugin calls this for one lease from one thread at a time.
    pub fn kept_alive(&self) {
        // There is one writer. An atomic addition would wait until the lease is in the cache, and with
        // many leases it is not.
        self.keep_alives.store(self.keep_alives() + 1, Ordering::Relaxed);
    }

    /// Ends the lease for `reason`. Returns false if it had ended before.
    ///
    /// Wakes all who wait in [`Lease::ended`] and then calls the `on_error` callback on this thread,
    /// once in the life of the lease. A panic in the callback is caught and logged. A plugin must
    /// not hold a lock when it calls this.
    pub fn end(&self, reason: Error) -> bool {
        if self.reason.set(Box::new(reason.clone())).is_err() {
            return false;
        }
        self.ended.notify_waiters();
        let callback = self.on_error.lock().take();
        if let Some(callback) = callback {
            // The callback is dropped after this call, so no half-changed state can be seen.
            if catch_unwind(AssertUnwindSafe(|| callback(reason))).is_err() {
                tracing::error!(lease = self.number, "the on_error callback of a session panicked");
            }
        }
        true
    }

    /// Returns why the lease ended, or `None` while it lives.
    pub fn end_reason(&self) -> Option<&Error> {
        self.reason.get().map(Box::as_ref)
    }

    /// Waits until the lease ends and returns why. Cancellation safe.
    ///
    /// A lease that its holder released never ends in this sense.
    pub async fn ended(self: Arc<Self>) -> Error {
        // It is made before the check, so that an end between the two is not missed.
        let notified = self.ended.notified();
        if let Some(reason) = self.end_reason() {
            return reason.clone();
        }
        notified.await;
        self.end_reason().cloned().expect("the reason is set before `ended` is notified")
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Whoever knows the key can return the lease.
        f.debug_struct("Lease")
            .field("number", &self.number)
            .field("ended", &self.reason.get())
            .finish_non_exhaustive()
    }
}

/// What the server answered to a return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Released {
    /// The slot is free.
    Returned,
    /// The lease is younger than its minimal life, counts until it reaches it, and ends then.
    Lingers,
    /// The server holds no such lease: it ended before.
    Missing,
}

/// A return in flight. It began when this was made, and goes on if this is dropped.
///
/// Resolves with the answer of the server.
///
/// # Errors
///
/// [`Error::Unavailable`] when the server did not answer within one TTL, which has freed the slot
/// then. [`Error::Closed`] when the pool stopped before it had an answer.
#[derive(Debug)]
pub struct Release(State);

#[derive(Debug)]
enum State {
    Known(Result<Released, Error>),
    Waiting(oneshot::Receiver<Result<Released, Error>>),
}

impl Release {
    /// Makes a return whose outcome is known already.
    pub fn known(outcome: Result<Released, Error>) -> Self {
        Self(State::Known(outcome))
    }

    /// Makes a return whose outcome will be sent.
    pub fn waiting(outcome: oneshot::Receiver<Result<Released, Error>>) -> Self {
        Self(State::Waiting(outcome))
    }
}

impl Future for Release {
    type Output = Result<Released, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = match &mut self.0 {
            State::Known(outcome) => outcome.clone(),
            State::Waiting(outcome) => {
                ready!(Pin::new(outcome).poll(cx)).unwrap_or(Err(Error::Closed))
            }
        };
        Poll::Ready(outcome)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn an_ended_lease_keeps_its_first_reason_and_calls_back_once() {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let on_error: OnError = Box::new(move |reason| {
            assert_eq!(reason, Error::Closed);
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let lease = Arc::new(Lease::new(1, "key", Ids::default(), Some(on_error)));
        let mut early = Box::pin(lease.clone().ended());
        assert_eq!(early.as_mut().now_or_never(), None);

        assert!(lease.end(Error::Closed));
        assert!(!lease.end(Error::SessionNotFound));

        assert_eq!(early.await, Error::Closed);
        assert_eq!(lease.clone().ended().await, Error::Closed);
        assert_eq!(lease.end_reason(), Some(&Error::Closed));
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_panic_in_the_callback_is_caught() {
        let lease =
            Lease::new(1, "key", Ids::default(), Some(Box::new(|_| panic!("in a callback"))));
        assert!(lease.end(Error::Closed));
        assert_eq!(lease.end_reason(), Some(&Error::Closed));
    }

    #[test]
    fn the_callback_may_look_at_its_own_lease() {
        let slot: Arc<OnceLock<Arc<Lease>>> = Arc::default();
        let seen = slot.clone();
        let on_error: OnError = Box::new(move |_| {
            let lease = seen.get().unwrap();
            assert_eq!((&*lease.key(), lease.end_reason()), ("key", Some(&Error::Closed)));
            assert!(!lease.end(Error::Closed));
        });
        let lease =
            slot.get_or_init(|| Arc::new(Lease::new(1, "key", Ids::default(), Some(on_error))));
        // A failed assertion of the callback would be caught as a panic. This test shows that no
        // lock is held while the callback runs: the call would block forever.
        assert!(lease.end(Error::Closed));
    }

    #[test]
    fn debug_does_not_show_the_key() {
        assert!(!format!("{:?}", Lease::new(1, "proof", Ids::default(), None)).contains("proof"));
    }

    #[tokio::test]
    async fn a_return_whose_pool_is_gone_ends_as_closed() {
        let (sender, receiver) = oneshot::channel();
        drop(sender);
        assert_eq!(Release::waiting(receiver).await, Err(Error::Closed));
        assert_eq!(Release::known(Ok(Released::Missing)).await, Ok(Released::Missing));
    }
}
