//! Batches on their way to the disk: one gathers while the one before is flushed, and a disk that
//! takes too long is noticed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lease::Change;
use parking_lot::MutexGuard;

use super::pending::Pending;
use super::{Shared, State};
use crate::attached::Push;
use crate::batch::Batch;
use crate::error::Error;
use crate::journal::rows::Rows;
use crate::journal::{Journal, Operated, Stamp, Watch};
use crate::{LONGEST_WAIT, Unavailable};

/// A commit that has been under way for longer makes the server not ready.
const READY_WITHIN: Duration = Duration::from_secs(2);

/// How often calls look at their own deadlines while a commit takes longer than this.
const WAKE_EVERY: Duration = Duration::from_millis(500);

/// A longer time between two looks at the disk counts as this much: the process stood still, and
/// the disk may have been done all the while.
const LONGEST_LOOK: Duration = Duration::from_millis(500);

/// How often the store checks that the journal is still its own.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Lets nobody wait for a batch whose thread broke off.
struct Unsettled(Arc<Batch>);

impl Drop for Unsettled {
    fn drop(&mut self) {
        // Nothing happens to one that is settled.
        self.0.settle(Err(Unavailable::Failed));
    }
}

/// A batch that is taken to the disk.
struct Taken {
    batch: Unsettled,
    pending: Pending,
    stamp: Stamp,
}

impl State {
    /// Notes that no commit is under way.
    fn committed(&mut self) {
        self.committing = None;
        (self.disk.changes, self.disk.commit) = (0, Duration::ZERO);
        if self.pending.is_empty() && self.gathering.is_stalled() {
            // Nothing is in it, and it would refuse whoever comes next.
            self.gathering = Arc::default();
        }
    }
}

impl Shared {
    /// Commits batch after batch until the store closes and nothing is left to commit.
    pub(crate) fn keep_journal(&self, mut journal: Box<dyn Journal>) {
        while let Some(Taken { batch, pending, stamp }) = self.next_batch() {
            let (length, began) = (pending.len(), Instant::now());
            let Pending { changes, operated, pushes, since } = pending;
            let outcome = commit(&mut *journal, changes, operated, stamp);
            let took = began.elapsed();
            let mut state = self.state.lock();
            state.committed();
            if let Err(error) = outcome {
                drop(state);
                tracing::error!(%error, "the store failed: changes are refused until a restart");
                self.fail(Unavailable::Failed);
                break;
            }
            if state.failed.is_some() {
                // While it was under way: whoever waited for it was told, and nobody is told more.
                break;
            }
            state.stamped = stamp.time;
            drop(state);
            // First, so that whoever hears of the batch finds it counted.
            self.commits.count(took, since.map(|since| (length, since.elapsed())));
            batch.0.settle(Ok(()));
            pushes.into_iter().for_each(Push::deliver);
        }
        self.finish(journal);
    }

    /// Keeps the file until the store closes, and closes it.
    fn finish(&self, mut journal: Box<dyn Journal>) {
        let mut state = self.state.lock();
        // Even a file that cannot be written to stays this server's until it stops.
        while !state.closing {
            self.work.wait(&mut state);
        }
        let is_due = state.failed.is_none() && state.stamped < state.ledger.now();
        let stamp = state.stamp();
        // Not under the lock: the disk may hang.
        drop(state);
        if is_due && let Err(error) = commit(&mut *journal, Vec::new(), Vec::new(), stamp) {
            tracing::error!(%error, "the last commit failed");
            self.fail(Unavailable::Failed);
        }
        if let Err(error) = journal.close() {
            tracing::warn!(%error, "the store was not closed well; the next start repairs it");
        }
    }

    /// Waits for something to commit and takes it; `None` when there will be nothing.
    fn next_batch(&self) -> Option<Taken> {
        let mut state = self.state.lock();
        while state.pending.is_empty() && (state.closing || !state.stamp_is_due()) {
            if state.closing {
                return None;
            }
            self.work.wait(&mut state);
        }
        // Calls that are ready to run join this batch instead of waiting for the next: the thread
        // that serves them may share a core with this one and have been interrupted for it. Where
        // it does not, this costs nothing.
        MutexGuard::unlocked(&mut state, std::thread::yield_now);
        let pending = state.pending.take();
        state.shares.clear();
        let batch = std::mem::take(&mut state.gathering);
        state.committing = Some(batch.clone());
        state.disk.changes = pending.len();
        state.disk.commit = Duration::ZERO;
        state.disk.committing = std::mem::take(&mut state.disk.gathering);
        let stamp = state.stamp();
        Some(Taken { batch: Unsettled(batch), pending, stamp })
    }

    /// Refuses changes from now on, and answers whoever waits for one. Only the first reason counts.
    pub(crate) fn fail(&self, why: Unavailable) {
        let mut state = self.state.lock();
        let why = *state.failed.get_or_insert(why);
        let pending = std::mem::take(&mut state.pending);
        let batches = [state.committing.clone(), Some(state.gathering.clone())];
        drop(state);
        drop(pending);
        for batch in batches.into_iter().flatten() {
            batch.settle(Err(why));
        }
    }

    /// Counts how long the disk has been taking, and answers those who have waited for too long.
    pub(super) fn look_at_disk(&self, state: &mut State) {
        let now = self.clock.monotonic();
        let step = now.saturating_sub(state.disk.looked).min(LONGEST_LOOK);
        state.disk.looked = now;
        let State { disk, committing, gathering, pending, .. } = state;
        let before = disk.commit;
        if committing.is_some() {
            disk.commit += step;
            disk.committing += step;
        }
        if !pending.is_empty() {
            disk.gathering += step;
        }
        if disk.gathering >= LONGEST_WAIT || disk.commit >= LONGEST_WAIT {
            gathering.stall();
        }
        let Some(committing) = committing else { return };
        if disk.committing >= LONGEST_WAIT {
            committing.stall();
        }
        let periods = |time: Duration| time.as_millis() / WAKE_EVERY.as_millis();
        if periods(disk.commit) > periods(before) {
            committing.wake();
            gathering.wake();
        }
        if disk.commit > READY_WITHIN && before <= READY_WITHIN {
            let waiting = disk.changes + pending.len();
            tracing::warn!(
                waiting,
                "the disk takes long to confirm changes: the server is not ready"
            );
        }
    }

    /// Answers those who wait for the disk, whether they have for long or not.
    pub(crate) fn stop_waiting(&self) {
        let state = self.state.lock();
        state.gathering.stall();
        if let Some(committing) = &state.committing {
            committing.stall();
        }
    }

    /// How long the commit under way has taken; nothing when none is.
    pub(crate) fn stalled(&self) -> Duration {
        self.state.lock().disk.commit
    }

    /// Whether changes can be made, and are confirmed in time.
    pub(crate) fn ready(&self) -> Result<(), Unavailable> {
        let state = self.state.lock();
        state.sound()?;
        if state.disk.commit > READY_WITHIN { Err(Unavailable::Stalled) } else { Ok(()) }
    }

    /// Checks from time to time that the journal is still this store's, until the store closes.
    pub(crate) fn watch_journal(&self, watch: &dyn Watch, path: &Path) {
        let mut is_lost = false;
        loop {
            let mut state = self.state.lock();
            if !state.closing {
                self.closing.wait_for(&mut state, WATCH_EVERY);
            }
            if state.closing {
                return;
            }
            // Not under the lock: a check may take as long as the disk.
            drop(state);
            if let Err(why) = watch.check()
                && !is_lost
            {
                is_lost = true;
                tracing::error!(path = %path.display(), "{why}");
                self.fail(why);
            }
        }
    }

    /// Counts one more thread of the store.
    pub(crate) fn thread_begins(&self) {
        self.state.lock().threads += 1;
    }

    /// Counts one thread less.
    pub(crate) fn thread_ended(&self) {
        self.state.lock().threads -= 1;
        self.ended.notify_all();
    }

    /// Waits until every thread of the store has ended.
    ///
    /// # Errors
    ///
    /// How many changes the disk has not confirmed, when that takes longer than `time`.
    pub(crate) fn ended_within(&self, time: Duration) -> Result<(), usize> {
        let by = Instant::now() + time;
        let mut state = self.state.lock();
        while state.threads > 0 {
            if self.ended.wait_until(&mut state, by).timed_out() && state.threads > 0 {
                return Err(state.disk.changes + state.pending.len());
            }
        }
        Ok(())
    }
}

/// Commits one batch. A panic on the way is a failure like any other: waiters must be told.
fn commit(
    journal: &mut dyn Journal,
    changes: Vec<Change>,
    operated: Vec<Operated>,
    stamp: Stamp,
) -> Result<(), Error> {
    catch_unwind(AssertUnwindSafe(|| journal.commit(&Rows::collect(changes, operated), stamp)))
        .unwrap_or_else(|_| Err(Error::Failed { problem: "a commit panicked".to_owned() }))
}
