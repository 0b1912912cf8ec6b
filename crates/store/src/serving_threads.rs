//! Probes of the threads that serve calls: do they keep up?
//!
//! Each of these threads answers probes from its own runtime. It answers a probe once its sockets were
//! read and every task that was ready has run. So all that arrived before the probe has been handled.
//! Store time advances at most half a second beyond the last probe that all threads answered. So no
//! lease expires while its keep-alive waits for a thread that is stuck or gets no processor.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// How often a thread checks for a new probe.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The threads that serve calls, and the last probe.
#[derive(Debug, Default)]
pub struct ServingThreads {
    last_probe: AtomicU64,
    /// The last probe that each thread has answered.
    answered: Mutex<Vec<Arc<AtomicU64>>>,
    threads: AtomicUsize,
}

impl ServingThreads {
    /// Whether any thread answers probes.
    pub fn has_threads(&self) -> bool {
        self.threads.load(Ordering::Relaxed) > 0
    }

    /// Returns whether every thread has answered the last probe. If so, it sends the next one.
    pub fn probe(&self) -> bool {
        let last_probe = self.last_probe.load(Ordering::Relaxed);
        let answered =
            self.answered.lock().iter().all(|it| it.load(Ordering::Acquire) >= last_probe);
        if answered {
            self.last_probe.store(last_probe + 1, Ordering::Release);
        }
        answered
    }

    /// Answers probes for the current thread, which must have a runtime of its own, until the future
    /// is dropped.
    pub async fn answer_probes(self: Arc<Self>) {
        let thread = self.register();
        loop {
            let last_probe = self.last_probe.load(Ordering::Acquire);
            // Each yield lets the runtime read its sockets and run the tasks that are ready. What the
            // first one reads may make other tasks ready; the second one runs them.
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            thread.answered.store(last_probe, Ordering::Release);
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn register(&self) -> Thread<'_> {
        let answered = Arc::<AtomicU64>::default();
        self.answered.lock().push(answered.clone());
        self.threads.fetch_add(1, Ordering::Relaxed);
        Thread { serving_threads: self, answered }
    }
}

/// A thread that answers probes. Dropping it removes the thread.
struct Thread<'t> {
    serving_threads: &'t ServingThreads,
    answered: Arc<AtomicU64>,
}

impl Drop for Thread<'_> {
    fn drop(&mut self) {
        self.serving_threads
            .answered
            .lock()
            .retain(|answered| !Arc::ptr_eq(answered, &self.answered));
        self.serving_threads.threads.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_stuck_is_waited_for_and_one_that_has_ended_is_not() {
        let serving_threads = ServingThreads::default();
        assert!(!serving_threads.has_threads() && serving_threads.probe());
        let (quick, stuck) = (serving_threads.register(), serving_threads.register());
        let answer = |thread: &Thread<'_>| {
            thread
                .answered
                .store(serving_threads.last_probe.load(Ordering::Acquire), Ordering::Release);
        };
        answer(&quick);
        assert!(!serving_threads.probe(), "one has not answered");
        answer(&stuck);
        assert!(serving_threads.probe());
        answer(&quick);
        assert!(!serving_threads.probe(), "an answer to the question before is none");
        drop(stuck);
        assert!(serving_threads.probe() && serving_threads.has_threads());
        drop(quick);
        assert!(!serving_threads.has_threads());
    }

    #[tokio::test(start_paused = true)]
    async fn a_runtime_answers_again_and_again_until_it_ends() {
        let serving_threads = Arc::<ServingThreads>::default();
        let part = tokio::spawn(serving_threads.clone().answer_probes());
        for _ in 0..3 {
            tokio::time::sleep(2 * LOOK_EVERY).await;
            assert!(serving_threads.has_threads() && serving_threads.probe());
            assert!(!serving_threads.probe(), "nobody had time to answer that");
        }
        part.abort();
        assert!(part.await.unwrap_err().is_cancelled());
        assert!(!serving_threads.has_threads() && serving_threads.probe());
    }
}
