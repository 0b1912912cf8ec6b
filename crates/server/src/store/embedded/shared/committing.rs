//! Batches on their way to the disk: one gathers while the one before is flushed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use lease::Change;
use parking_lot::MutexGuard;

use super::Shared;
use crate::error::Error;
use crate::store::Unavailable;
use crate::store::attached::Push;
use crate::store::batch::Operated;
use crate::store::commit::Batch;
use crate::store::journal::{Journal, Stamp};

/// What one batch holds.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) changes: Vec<Change>,
    pub(super) operated: Vec<Operated>,
    /// Revocations to tell of once the batch is durable.
    pub(super) pushes: Vec<Push>,
    /// When the first of it came.
    pub(super) since: Option<Instant>,
}

impl Pending {
    pub(super) const fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.operated.is_empty()
    }

    pub(super) const fn len(&self) -> usize {
        self.changes.len() + self.operated.len()
    }

    /// What is in it; room for as many changes stays.
    fn take(&mut self) -> Self {
        let changes = Vec::with_capacity(self.changes.len());
        std::mem::replace(self, Self { changes, ..Self::default() })
    }
}

/// A batch that is taken to the disk.
struct Taken {
    batch: Arc<Batch>,
    pending: Pending,
    stamp: Stamp,
}

impl Shared {
    /// Commits batch after batch until the store closes and nothing is left to commit.
    pub(in crate::store::embedded) fn keep_journal(&self, mut journal: Journal) {
        while let Some(Taken { batch, pending, stamp }) = self.next_batch() {
            let (length, began) = (pending.len(), Instant::now());
            let Pending { changes, operated, pushes, since } = pending;
            let outcome = commit(&mut journal, changes, operated, stamp);
            let took = began.elapsed();
            let mut state = self.state.lock();
            state.committing = None;
            if let Err(error) = outcome {
                tracing::error!(%error, "the store failed: changes are refused until a restart");
                state.failed = true;
                state.pending = Pending::default();
                let next = state.gathering.clone();
                drop(state);
                batch.settle(Err(Unavailable::Failed));
                next.settle(Err(Unavailable::Failed));
                break;
            }
            state.stamped = stamp.time;
            drop(state);
            // First, so that whoever hears of the batch finds it counted.
            self.commits.count(took, since.map(|since| (length, since.elapsed())));
            batch.settle(Ok(()));
            pushes.into_iter().for_each(Push::deliver);
        }
        let mut state = self.state.lock();
        // Even a file that cannot be written to stays this server's until it stops.
        while !state.closing {
            self.work.wait(&mut state);
        }
        if !state.failed && state.stamped < state.ledger.now() {
            let stamp = state.stamp();
            state.failed = commit(&mut journal, Vec::new(), Vec::new(), stamp).is_err();
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
        let stamp = state.stamp();
        Some(Taken { batch, pending, stamp })
    }
}

/// Commits one batch. A panic on the way is a failure like any other: waiters must be told.
fn commit(
    journal: &mut Journal,
    changes: Vec<Change>,
    operated: Vec<Operated>,
    stamp: Stamp,
) -> Result<(), Error> {
    catch_unwind(AssertUnwindSafe(|| journal.commit(changes, operated, stamp)))
        .unwrap_or_else(|_| Err(Error::StoreFailed { problem: "a commit panicked".to_owned() }))
}
