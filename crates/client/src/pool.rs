//! The pool of an application: guards on top of a plugin.

use std::sync::Arc;
use std::time::Duration;

use crate::callbacks::Callbacks;
use crate::error::Error;
use crate::guard::Session;
use crate::plugin::{CloseReport, SessionPool};
use crate::request::SessionRequest;
use crate::stats::PoolStats;

/// A pool of sessions and workers. Clones are cheap and share the pool.
///
/// After the last clone and the last guard are dropped, the queued returns go on in the background,
/// as long as the runtime runs. [`Pool::close`] waits for them and reports the results.
#[derive(Clone, Debug)]
pub struct Pool {
    plugin: Arc<dyn SessionPool>,
    callbacks: Callbacks,
}

impl Pool {
    /// Makes a pool with guards on top of a plugin.
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

    /// Refuses new borrows from now on, and returns everything held with minimal life 0, workers first.
    /// Waits for this and for the calls in flight, for at most `deadline`. Outside of a tokio runtime it
    /// does the same without waiting.
    ///
    /// Everything held ends as [`Error::Closed`]. A second close waits, too, and reports the same.
    pub async fn close(&self, deadline: Duration) -> CloseReport {
        self.plugin.close(deadline).await
    }
}
