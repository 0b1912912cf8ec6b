//! Group commit: calls that wait for the same batch share one flush and one notice.
//!
//! Waking a task of another thread's runtime costs a system call, so the journal wakes one waiter
//! per serving thread, and that one wakes the others where it runs. They answer in one go, which
//! lets a connection send what it has in one write.

use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::Notify;

use super::Unavailable;
use crate::lane::{self, LANES};

const GATHERING: u8 = 0;
const DURABLE: u8 = 1;
const FAILED: u8 = 2;

/// A batch of changes, shared by everybody who waits for it. A waiter costs no allocation.
#[derive(Debug, Default)]
pub(super) struct Batch {
    state: AtomicU8,
    lanes: [Notify; LANES],
}

impl Batch {
    /// Tells every waiter, and whoever asks later, how it went.
    pub(super) fn settle(&self, outcome: Result<(), Unavailable>) {
        let state = if outcome.is_ok() { DURABLE } else { FAILED };
        self.state.store(state, Ordering::Release);
        for lane in &self.lanes {
            lane.notify_one();
        }
    }

    /// Waits until the batch is durable.
    ///
    /// Cancellation safe: a batch is committed whether anybody waits or not, and a waiter that
    /// goes away hands the notice on.
    pub(super) async fn durable(&self) -> Result<(), Unavailable> {
        let lane = &self.lanes[lane::own()];
        // Made before the state is read, so that a notice between the two is not lost.
        let settled = lane.notified();
        if let Some(outcome) = self.outcome() {
            return outcome;
        }
        settled.await;
        lane.notify_waiters();
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    fn wait_for(batch: &Arc<Batch>) -> tokio::task::JoinHandle<Result<(), Unavailable>> {
        let batch = batch.clone();
        tokio::spawn(async move { batch.durable().await })
    }

    #[tokio::test]
    async fn everybody_who_waits_is_told_and_whoever_asks_later_too() {
        let batch = Arc::<Batch>::default();
        let waiters: Vec<_> = (0..100).map(|_| wait_for(&batch)).collect();
        tokio::task::yield_now().await;
        batch.settle(Ok(()));
        for waiter in waiters {
            assert_eq!(waiter.await.unwrap(), Ok(()));
        }
        assert_eq!(batch.durable().await, Ok(()));
    }

    #[tokio::test]
    async fn a_waiter_that_goes_away_with_the_notice_hands_it_on() {
        let batch = Arc::<Batch>::default();
        let mut first = Box::pin(batch.durable());
        assert!(futures_util::poll!(&mut first).is_pending());
        let second = wait_for(&batch);
        tokio::task::yield_now().await;
        batch.settle(Err(Unavailable::Failed));
        drop(first);
        assert_eq!(second.await.unwrap(), Err(Unavailable::Failed));
    }

    #[test]
    fn waiters_on_many_threads_are_all_told() {
        let batch = Arc::<Batch>::default();
        let threads: Vec<_> = (0..2 * LANES)
            .map(|_| {
                let batch = batch.clone();
                std::thread::spawn(move || {
                    let mut runtime = tokio::runtime::Builder::new_current_thread();
                    runtime.enable_time().build().unwrap().block_on(async {
                        let waiters: Vec<_> = (0..20).map(|_| wait_for(&batch)).collect();
                        for waiter in waiters {
                            let waiter = tokio::time::timeout(Duration::from_secs(30), waiter);
                            assert_eq!(waiter.await.unwrap().unwrap(), Ok(()));
                        }
                    });
                })
            })
            .collect();
        batch.settle(Ok(()));
        for thread in threads {
            thread.join().unwrap();
        }
    }
}
