//! Group commit: calls that wait for the same batch share one flush and one notice.

use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::Notify;

use super::Unavailable;

const GATHERING: u8 = 0;
const DURABLE: u8 = 1;
const FAILED: u8 = 2;

/// One batch of changes, shared by everybody who waits for it. A waiter costs no allocation.
#[derive(Debug, Default)]
pub(super) struct Batch {
    state: AtomicU8,
    settled: Notify,
}

impl Batch {
    /// Tells every waiter, and whoever asks later, how it went.
    pub(super) fn settle(&self, outcome: Result<(), Unavailable>) {
        let state = if outcome.is_ok() { DURABLE } else { FAILED };
        self.state.store(state, Ordering::Release);
        self.settled.notify_waiters();
    }

    /// Waits until the batch is durable.
    ///
    /// Cancellation safe: a batch is committed whether anybody waits or not.
    pub(super) async fn durable(&self) -> Result<(), Unavailable> {
        // Made before the state is read: a notice between the two is not lost.
        let settled = self.settled.notified();
        if let Some(outcome) = self.outcome() {
            return outcome;
        }
        settled.await;
        self.outcome().unwrap_or(Err(Unavailable::Failed))
    }

    fn outcome(&self) -> Option<Result<(), Unavailable>> {
        match self.state.load(Ordering::Acquire) {
            GATHERING => None,
            DURABLE => Some(Ok(())),
            _ => Some(Err(Unavailable::Failed)),
        }
    }
}
