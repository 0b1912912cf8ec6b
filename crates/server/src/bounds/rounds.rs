//! Fair scheduling on a serving thread: the work of a caller queues behind its own work.
//!
//! A thread polls tasks in the order in which they became ready. A caller with a hundred busy
//! connections would get a hundred turns where another caller gets one. So work is counted by caller
//! in *rounds*. A caller that has used up its part of a round waits for the next round, which begins
//! when all tasks that were ready have run. A caller that is alone on the thread never waits.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

use super::memory::CallerName;

/// The units of work of one caller in one round. A unit is one poll of a small call, about 3 µs.
const ROUND: u32 = 500;

/// The most long answers of one caller that are built at once on one thread; more wait.
const READS: usize = 1;

/// How many header fields of a call count as one unit of work.
pub(crate) const FIELDS: usize = 32;

/// How many bytes, read or written, count as one unit of work.
const BYTES: usize = 64;

/// The work of reading or writing so many bytes.
pub(crate) fn work_of(bytes: usize) -> u32 {
    u32::try_from(bytes / BYTES).unwrap_or(u32::MAX)
}

/// The most changes of one caller that wait for the store at once on one thread; more wait.
///
/// This is enough to fill batches for full throughput, and keeps batches small enough that a small
/// change does not wait for a large batch.
const CHANGES: usize = 512;

/// The rounds of one serving thread.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    shares: Mutex<HashMap<CallerName, Weak<Share>>>,
    /// The number of callers with a connection on the thread.
    callers: AtomicU32,
    /// Notified when a task waits for the next round.
    over: Notify,
}

/// The part of one caller in the rounds of one thread.
#[derive(Debug)]
pub(crate) struct Share {
    rounds: Arc<Rounds>,
    used: AtomicU32,
    waiting: Mutex<VecDeque<Waker>>,
    changes: Semaphore,
    reads: Semaphore,
}

impl Rounds {
    /// The share of the caller. It lives as long as a connection of the caller on the thread.
    pub(crate) fn share(self: &Arc<Self>, name: &CallerName) -> Arc<Share> {
        let mut shares = self.shares.lock();
        if let Some(share) = shares.get(name).and_then(Weak::upgrade) {
            return share;
        }
        if shares.len() == shares.capacity() {
            shares.retain(|_, share| share.strong_count() > 0);
        }
        self.callers.fetch_add(1, Relaxed);
        let share = Arc::new(Share {
            rounds: self.clone(),
            used: AtomicU32::new(0),
            waiting: Mutex::default(),
            changes: Semaphore::new(CHANGES),
            reads: Semaphore::new(READS),
        });
        shares.insert(name.clone(), Arc::downgrade(&share));
        share
    }

    /// Begins a round whenever a task waits for one; never returns.
    pub(crate) async fn run(&self) {
        loop {
            self.over.notified().await;
            // Returns when all tasks that are ready have run once.
            tokio::task::yield_now().await;
            self.next();
        }
    }

    fn next(&self) {
        let shares: Vec<_> = self.shares.lock().values().filter_map(Weak::upgrade).collect();
        let mut more = false;
        for share in shares {
            share.used.store(0, Relaxed);
            let mut waiting = share.waiting.lock();
            // At most as many as the round has room for: the others would only wait again.
            let woken = waiting.len().min(ROUND as usize);
            let woken: Vec<_> = waiting.drain(..woken).collect();
            more |= !waiting.is_empty();
            drop(waiting);
            woken.into_iter().for_each(Waker::wake);
        }
        if more {
            self.over.notify_one();
        }
    }
}

impl Share {
    /// Waits for a turn and counts `work` units. A pending task is woken for its turn.
    pub(crate) fn poll_turn(&self, work: u32, context: &Context<'_>) -> Poll<()> {
        if self.used.load(Relaxed) >= ROUND && self.rounds.callers.load(Relaxed) > 1 {
            self.waiting.lock().push_back(context.waker().clone());
            self.rounds.over.notify_one();
            return Poll::Pending;
        }
        self.count(work);
        Poll::Ready(())
    }

    /// Counts work that was done.
    pub(crate) fn count(&self, work: u32) {
        // Only the thread of the share counts, so no count is lost between the load and the store.
        self.used.store(self.used.load(Relaxed).saturating_add(work), Relaxed);
    }

    /// The places of the caller for changes that wait for the store.
    pub(crate) const fn changes(&self) -> &Semaphore {
        &self.changes
    }

    /// The places of the caller for long answers, which are built part by part.
    pub(crate) const fn reads(&self) -> &Semaphore {
        &self.reads
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.rounds.callers.fetch_sub(1, Relaxed);
        // A task may wait in the share of unknown callers although its connection has a caller now.
        self.waiting.get_mut().drain(..).for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn indexer(name: &str) -> CallerName {
        CallerName::Indexer(name.into())
    }

    /// Starts a task that does one unit of work after another, and counts them.
    fn work(share: Arc<Share>, done: Arc<AtomicUsize>) {
        tokio::spawn(async move {
            loop {
                std::future::poll_fn(|context| share.poll_turn(1, context)).await;
                done.fetch_add(1, Relaxed);
                tokio::task::yield_now().await;
            }
        });
    }

    #[tokio::test]
    async fn a_caller_with_ten_times_the_tasks_gets_far_less_than_ten_times_the_turns() {
        let rounds = Arc::<Rounds>::default();
        let (many, few) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let turning = rounds.clone();
        tokio::spawn(async move { turning.run().await });
        for _ in 0..10_000 {
            work(rounds.share(&indexer("many")), many.clone());
        }
        for _ in 0..1_000 {
            work(rounds.share(&indexer("few")), few.clone());
        }
        for _ in 0..2_000 {
            tokio::task::yield_now().await;
        }
        let (many, few) = (many.load(Relaxed), few.load(Relaxed));
        assert!(few > 10_000 && many < 3 * few, "{many} and {few}");
    }

    #[tokio::test]
    async fn one_call_waits_for_a_round_of_another_caller_and_not_for_all_its_work() {
        let rounds = Arc::<Rounds>::default();
        let turning = rounds.clone();
        tokio::spawn(async move { turning.run().await });
        let busy = Arc::<AtomicUsize>::default();
        for _ in 0..50_000 {
            work(rounds.share(&indexer("busy")), busy.clone());
        }
        let quiet = rounds.share(&indexer("quiet"));
        std::future::poll_fn(|context| quiet.poll_turn(1, context)).await;
        tokio::task::yield_now().await;
        let busy = busy.load(Relaxed);
        assert!(busy <= 2 * ROUND as usize, "{busy} units of work came first");
    }

    #[tokio::test]
    async fn a_caller_that_is_alone_never_waits() {
        let rounds = Arc::<Rounds>::default();
        let share = rounds.share(&indexer("west"));
        for _ in 0..10 * ROUND {
            let turn = std::future::poll_fn(|context| Poll::Ready(share.poll_turn(1, context)));
            assert!(turn.await.is_ready());
        }
    }

    #[tokio::test]
    async fn a_call_that_waits_in_a_dropped_share_is_woken() {
        let rounds = Arc::<Rounds>::default();
        let (unknown, own) = (rounds.share(&CallerName::Unknown), rounds.share(&indexer("west")));
        unknown.count(ROUND);
        let current = Mutex::new(unknown);
        let mut waits =
            Box::pin(std::future::poll_fn(|context| current.lock().poll_turn(1, context)));
        assert!(futures_util::poll!(&mut waits).is_pending());
        *current.lock() = own;
        waits.await;
    }

    #[tokio::test]
    async fn a_waiting_call_is_woken_for_the_next_round() {
        let rounds = Arc::<Rounds>::default();
        let (first, _second) = (rounds.share(&indexer("first")), rounds.share(&indexer("second")));
        first.count(ROUND);
        let mut waits = Box::pin(std::future::poll_fn(|context| first.poll_turn(1, context)));
        assert!(futures_util::poll!(&mut waits).is_pending());
        let turning = rounds.clone();
        tokio::spawn(async move { turning.run().await });
        waits.await;
    }
}
