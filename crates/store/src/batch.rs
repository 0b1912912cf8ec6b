//! Group commit: calls that wait for the same batch share one flush and one notice.
//!
//! Waking a task of another thread's runtime costs a system call. So the journal thread wakes one
//! waiter per serving thread, and that waiter wakes the others on its thread. All of them answer at
//! the same time, which lets a connection send their answers in one write.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

use crate::answers::Unavailable;
use crate::lane::{self, LANES};

/// A batch of changes, shared by all calls that wait for it. A waiter costs no allocation.
///
/// A batch is settled once: it became durable, or it failed. Before that it may stall: then the
/// calls that wait are answered, and the batch itself goes on.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    outcome: OnceLock<Result<(), Unavailable>>,
    /// Whether the disk took too long, so that calls wait for the batch no longer.
    stalled: AtomicBool,
    lanes: [Notify; LANES],
}

impl Batch {
    /// Settles the batch and wakes all waiters. Only the first call counts: a batch that failed does
    /// not become durable later.
    pub(crate) fn settle(&self, outcome: Result<(), Unavailable>) {
        if self.outcome.set(outcome).is_ok() {
            for lane in &self.lanes {
                lane.notify_one();
            }
        }
    }

    /// Answers all calls that wait for the batch, now or later, that the disk takes too long.
    pub(crate) fn stall(&self) {
        if self.outcome().is_none() && !self.stalled.swap(true, Ordering::AcqRel) {
            self.wake();
        }
    }

    /// Whether calls wait for the batch no longer.
    pub(crate) fn is_stalled(&self) -> bool {
        self.outcome().is_none() && self.stalled.load(Ordering::Acquire)
    }

    /// Wakes all waiters, so that calls check their own deadlines. This costs a system call for
    /// each serving thread, so it is done only while the disk is slow.
    pub(crate) fn wake(&self) {
        for lane in &self.lanes {
            lane.notify_waiters();
        }
    }

    /// Waits until the batch is durable, has failed or has stalled.
    ///
    /// Cancellation safe: a batch is committed whether calls wait for it or not, and a waiter that
    /// is dropped passes its notice on.
    pub(crate) async fn durable(&self) -> Result<(), Unavailable> {
        self.until(Self::answer).await
    }

    /// Waits until the batch is durable or has failed, however long that takes.
    ///
    /// Cancellation safe, as [`Batch::durable`] is.
    pub(crate) async fn settled(&self) -> Result<(), Unavailable> {
        self.until(Self::outcome).await
    }

    async fn until(
        &self,
        state: impl Fn(&Self) -> Option<Result<(), Unavailable>>,
    ) -> Result<(), Unavailable> {
        let lane = &self.lanes[lane::current()];
        loop {
            // Created before the state is read, so that a notice between the two is not lost.
            let notice = lane.notified();
            if let Some(outcome) = state(self) {
                return outcome;
            }
            notice.await;
            // Settling a batch wakes one waiter of each lane; that waiter wakes the others.
            if self.outcome().is_some() {
                lane.notify_waiters();
            }
        }
    }

    fn answer(&self) -> Option<Result<(), Unavailable>> {
        if self.is_stalled() { Some(Err(Unavailable::Stalled)) } else { self.outcome() }
    }

    fn outcome(&self) -> Option<Result<(), Unavailable>> {
        self.outcome.get().copied()
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
    async fn a_settled_batch_answers_all_waiters_and_later_ones() {
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
    async fn a_dropped_waiter_passes_its_wakeup_to_the_next() {
        let batch = Arc::<Batch>::default();
        let mut first = Box::pin(batch.durable());
        assert!(futures_util::poll!(&mut first).is_pending());
        let second = wait_for(&batch);
        tokio::task::yield_now().await;
        batch.settle(Err(Unavailable::Failed));
        drop(first);
        assert_eq!(second.await.unwrap(), Err(Unavailable::Failed));
    }

    #[tokio::test]
    async fn a_stalled_batch_answers_its_waiters_and_may_still_become_durable() {
        let batch = Arc::<Batch>::default();
        let waiters: Vec<_> = (0..100).map(|_| wait_for(&batch)).collect();
        let patient = batch.clone();
        let patient = tokio::spawn(async move { patient.settled().await });
        tokio::task::yield_now().await;
        batch.stall();
        for waiter in waiters {
            assert_eq!(waiter.await.unwrap(), Err(Unavailable::Stalled));
        }
        assert_eq!(batch.durable().await, Err(Unavailable::Stalled));
        assert!(!patient.is_finished());
        batch.settle(Ok(()));
        assert_eq!(patient.await.unwrap(), Ok(()));
        assert_eq!(batch.durable().await, Ok(()));
    }

    #[tokio::test]
    async fn a_batch_is_settled_once() {
        let batch = Batch::default();
        batch.settle(Err(Unavailable::FileLost));
        batch.settle(Ok(()));
        batch.stall();
        assert_eq!(batch.durable().await, Err(Unavailable::FileLost));
    }

    #[tokio::test]
    async fn waiters_that_are_woken_early_wait_again_and_get_the_outcome() {
        let batch = Arc::<Batch>::default();
        let waiters: Vec<_> = (0..100).map(|_| wait_for(&batch)).collect();
        for _ in 0..3 {
            tokio::task::yield_now().await;
            batch.wake();
        }
        tokio::task::yield_now().await;
        assert!(waiters.iter().all(|waiter| !waiter.is_finished()));
        batch.settle(Ok(()));
        for waiter in waiters {
            assert_eq!(waiter.await.unwrap(), Ok(()));
        }
    }

    #[test]
    fn waiters_on_many_threads_all_get_the_outcome() {
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
