//! Whether the threads that serve calls keep up.
//!
//! A thread takes part in the turns from its own runtime: asked, it answers once its sockets were
//! read and every task that was ready has run. What arrived before the question was heard then. Store
//! time goes only half a second beyond that, so that nobody's lease expires while its keep-alive
//! waits for a thread that is stuck or gets no processor.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// How often a thread looks whether it was asked.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The threads that take part, and the question they were asked last.
#[derive(Debug, Default)]
pub struct Turns {
    asked: AtomicU64,
    /// The last question that each thread has answered.
    answered: Mutex<Vec<Arc<AtomicU64>>>,
    threads: AtomicUsize,
}

impl Turns {
    /// Whether any thread takes part.
    pub fn has_threads(&self) -> bool {
        self.threads.load(Ordering::Relaxed) > 0
    }

    /// Whether every thread has answered the last question. If so, they are asked again.
    pub fn all_answered(&self) -> bool {
        let asked = self.asked.load(Ordering::Relaxed);
        let answered = self.answered.lock().iter().all(|it| it.load(Ordering::Acquire) >= asked);
        if answered {
            self.asked.store(asked + 1, Ordering::Release);
        }
        answered
    }

    /// Answers for the thread it runs on, which must have a runtime of its own, until it is dropped.
    pub async fn take_part(self: Arc<Self>) {
        let thread = self.enter();
        loop {
            let asked = self.asked.load(Ordering::Acquire);
            // Each lets the runtime look at its sockets and run what is ready; what was read in the
            // first may have made other tasks ready, which run in the second.
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            thread.answered.store(asked, Ordering::Release);
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn enter(&self) -> Thread<'_> {
        let answered = Arc::<AtomicU64>::default();
        self.answered.lock().push(answered.clone());
        self.threads.fetch_add(1, Ordering::Relaxed);
        Thread { turns: self, answered }
    }
}

/// A thread that takes part; dropped, nobody waits for it any more.
struct Thread<'t> {
    turns: &'t Turns,
    answered: Arc<AtomicU64>,
}

impl Drop for Thread<'_> {
    fn drop(&mut self) {
        self.turns.answered.lock().retain(|answered| !Arc::ptr_eq(answered, &self.answered));
        self.turns.threads.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_stuck_is_waited_for_and_one_that_has_ended_is_not() {
        let turns = Turns::default();
        assert!(!turns.has_threads() && turns.all_answered());
        let (quick, stuck) = (turns.enter(), turns.enter());
        let answer = |thread: &Thread<'_>| {
            thread.answered.store(turns.asked.load(Ordering::Acquire), Ordering::Release);
        };
        answer(&quick);
        assert!(!turns.all_answered(), "one has not answered");
        answer(&stuck);
        assert!(turns.all_answered());
        answer(&quick);
        assert!(!turns.all_answered(), "an answer to the question before is none");
        drop(stuck);
        assert!(turns.all_answered() && turns.has_threads());
        drop(quick);
        assert!(!turns.has_threads());
    }

    #[tokio::test(start_paused = true)]
    async fn a_runtime_answers_again_and_again_until_it_ends() {
        let turns = Arc::<Turns>::default();
        let part = tokio::spawn(turns.clone().take_part());
        for _ in 0..3 {
            tokio::time::sleep(2 * LOOK_EVERY).await;
            assert!(turns.has_threads() && turns.all_answered());
            assert!(!turns.all_answered(), "nobody had time to answer that");
        }
        part.abort();
        assert!(part.await.unwrap_err().is_cancelled());
        assert!(!turns.has_threads() && turns.all_answered());
    }
}
