//! The journal thread, which commits batch after batch, and the checks of how long the disk takes.

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
use crate::journal::{Journal, Stamp, Watch};
use crate::records::OperatorRecord;
use crate::{LONGEST_WAIT, Unavailable};

/// A commit that takes longer than this makes the server not ready.
const READY_WITHIN: Duration = Duration::from_secs(2);

/// While a commit takes longer than this, calls are woken this often to check their deadlines.
const WAKE_EVERY: Duration = Duration::from_millis(500);

/// A longer time between two checks of the disk counts as this much: the process was stopped, and
/// the disk may have finished long ago.
const LONGEST_CHECK: Duration = Duration::from_millis(500);

/// How often the store checks that the journal is still its own.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Fails a batch when it is dropped before it is settled, so that no call waits for it for ever.
struct Unsettled(Arc<Batch>);

impl Drop for Unsettled {
    fn drop(&mut self) {
        // This does nothing to a batch that is settled.
        self.0.settle(Err(Unavailable::Failed));
    }
}

/// A batch that is about to be committed.
struct NextBatch {
    batch: Unsettled,
    pending: Pending,
    stamp: Stamp,
}

impl State {
    /// Resets the state after a commit.
    fn clear_committing(&mut self) {
        self.committing = None;
        (self.disk.changes, self.disk.commit) = (0, Duration::ZERO);
        if self.pending.is_empty() && self.gathering.is_stalled() {
            // The batch is empty, and would refuse the next call.
            self.gathering = Arc::default();
        }
    }
}

impl Shared {
    /// Runs the journal thread: commits batches until the term is over, or the store closes and nothing
    /// is left to commit.
    pub(crate) fn run_journal(&self, mut journal: Box<dyn Journal>, term: u64) {
        while let Some(NextBatch { batch, pending, stamp }) = self.next_batch(term) {
            let (length, began) = (pending.len(), Instant::now());
            let Pending { changes, operator_records, pushes, since } = pending;
            let outcome = commit(&mut *journal, changes, operator_records, stamp);
            let took = began.elapsed();
            let mut state = self.state.lock();
            if state.term != term {
                // The calls that waited were answered when the term ended.
                break;
            }
            state.clear_committing();
            if let Err(Error::Deposed) = outcome {
                // The new leader has the batch, or it never happened.
                batch.0.settle(Err(Unavailable::TermEnded));
                break;
            }
            if let Err(error) = outcome {
                drop(state);
                tracing::error!(%error, "the store failed: changes are refused until a restart");
                self.fail(Unavailable::Failed);
                break;
            }
            if state.failed.is_some() {
                // The store failed during the commit, and the calls that waited were answered.
                break;
            }
            state.stamped = stamp.time;
            drop(state);
            // First, so that a caller that is answered finds the commit in the metrics.
            self.commits.count(took, since.map(|since| (length, since.elapsed())));
            batch.0.settle(Ok(()));
            pushes.into_iter().for_each(Push::deliver);
        }
        self.close_journal(journal, term);
    }

    /// Keeps the journal open until the store closes, writes a last stamp if it is due, and closes the
    /// journal.
    fn close_journal(&self, mut journal: Box<dyn Journal>, term: u64) {
        let mut state = self.state.lock();
        // The file stays locked until the server stops, also when it cannot be written to.
        while !state.closing && state.term == term {
            self.work.wait(&mut state);
        }
        if state.term != term {
            return;
        }
        let is_due = state.failed.is_none() && state.stamped < state.ledger.now();
        let stamp = state.stamp();
        // The lock is released first: the disk may hang.
        drop(state);
        if is_due && let Err(error) = commit(&mut *journal, Vec::new(), Vec::new(), stamp) {
            tracing::error!(%error, "the last commit failed");
            self.fail(Unavailable::Failed);
        }
        if let Err(error) = journal.close() {
            tracing::warn!(%error, "the store was not closed well; the next start repairs it");
        }
    }

    /// Waits for the next batch of the term; `None` when the term is over, or the store closes.
    fn next_batch(&self, term: u64) -> Option<NextBatch> {
        let mut state = self.state.lock();
        while state.term == term
            && (state.rewriting
                || state.pending.is_empty() && (state.closing || !state.stamp_is_due()))
        {
            if state.closing && !state.rewriting {
                return None;
            }
            self.work.wait(&mut state);
        }
        if state.term != term {
            return None;
        }
        // Calls that are ready to run join this batch instead of waiting for the next one: their
        // thread may share a core with this one. Where it does not, this costs nothing.
        MutexGuard::unlocked(&mut state, std::thread::yield_now);
        if state.term != term || state.rewriting {
            drop(state);
            return self.next_batch(term);
        }
        state.batches += 1;
        let pending = state.pending.take();
        state.shares.clear();
        let batch = std::mem::take(&mut state.gathering);
        state.committing = Some(batch.clone());
        state.disk.changes = pending.len();
        state.disk.commit = Duration::ZERO;
        state.disk.committing = std::mem::take(&mut state.disk.gathering);
        let stamp = state.stamp();
        Some(NextBatch { batch: Unsettled(batch), pending, stamp })
    }

    /// Refuses changes from now on, and answers all calls that wait for one. Only the first reason
    /// counts.
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

    /// Measures how long the disk takes, and answers the calls that have waited too long.
    pub(super) fn check_disk(&self, state: &mut State) {
        let now = self.clock.monotonic();
        let step = now.saturating_sub(state.disk.checked_at).min(LONGEST_CHECK);
        state.disk.checked_at = now;
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

    /// Answers all calls that wait for the disk, however long they have waited.
    pub(crate) fn stop_waiting(&self) {
        let state = self.state.lock();
        state.gathering.stall();
        if let Some(committing) = &state.committing {
            committing.stall();
        }
    }

    /// How long the current commit has taken; zero when there is none.
    pub(crate) fn stalled(&self) -> Duration {
        self.state.lock().disk.commit
    }

    /// Checks that changes can be made and are confirmed in time.
    pub(crate) fn ready(&self) -> Result<(), Unavailable> {
        let state = self.state.lock();
        state.check_writable(&*self.clock)?;
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
            // The lock is released first: the check may take as long as the disk.
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

    /// Counts a thread of the store that starts.
    pub(crate) fn thread_begins(&self) {
        self.state.lock().threads += 1;
    }

    /// Counts a thread of the store that has ended.
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

/// Commits one batch. A panic counts as a failure, so that all waiters are answered.
fn commit(
    journal: &mut dyn Journal,
    changes: Vec<Change>,
    operator_records: Vec<OperatorRecord>,
    stamp: Stamp,
) -> Result<(), Error> {
    catch_unwind(AssertUnwindSafe(|| {
        journal.commit(&Rows::collect(changes, operator_records), stamp)
    }))
    .unwrap_or_else(|_| Err(Error::Failed { problem: "a commit panicked".to_owned() }))
}
