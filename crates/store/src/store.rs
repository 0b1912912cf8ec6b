//! The store within the process: one ledger behind one mutex, with a journal or without.
//!
//! An operation takes the lock, reads the clock, applies itself to the ledger and hands what
//! changed to the batch that is gathering; then it lets go of the lock and waits for that batch.
//! One thread commits batches, one after another: while one is being flushed, the next gathers,
//! so calls at the same time share a flush. Which batch a call waits for is decided under the
//! lock, so batches hold changes in the order applied.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use crate::answers::Unavailable;
use crate::commits::Commits;
use crate::error::Error;
use crate::shared::Shared;
use crate::turns::Turns;

/// The store within the process, behind `memory:` and `file:PATH`.
///
/// After the first write or flush that fails, every change is refused until a restart, while
/// keep-alives of leases go on; see [`Unavailable::Failed`]. So it is when a thread of the store
/// panics, and when its file is removed or replaced.
///
/// [`Store::close`] commits what is pending and says how it went. Dropping the store does the
/// same and says nothing.
#[derive(Debug)]
pub struct Store {
    pub(crate) shared: Arc<Shared>,
    /// What errors call the file.
    path: PathBuf,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// How long a store has to close where nobody says how long.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);

impl Store {
    pub(crate) fn new(shared: Shared, path: PathBuf) -> Self {
        Self { shared: Arc::new(shared), path, threads: Mutex::new(Vec::new()) }
    }

    pub(crate) fn spawn(
        &self,
        name: &'static str,
        run: impl FnOnce(&Shared) + Send + 'static,
    ) -> Result<(), Error> {
        let shared = self.shared.clone();
        self.shared.thread_begins();
        let run = move || {
            if catch_unwind(AssertUnwindSafe(|| run(&shared))).is_err() {
                tracing::error!(
                    thread = name,
                    "a thread of the store panicked: changes are refused until a restart"
                );
                shared.fail(Unavailable::Failed);
            }
            shared.thread_ended();
        };
        let thread =
            std::thread::Builder::new().name(name.to_owned()).spawn(run).map_err(|source| {
                self.shared.thread_ended();
                Error::System { action: "start a thread of the store", source }
            })?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// How long the commit under way has taken; nothing when none is.
    pub fn stalled(&self) -> Duration {
        self.shared.stalled()
    }

    /// What the journal counts.
    pub fn commits(&self) -> &Commits {
        &self.shared.commits
    }

    /// Reads the clock and takes out what has ended, as the store's own thread does many times a
    /// second.
    ///
    /// It says that whatever had arrived was heard: store time goes at most half a second beyond
    /// that while threads serve calls.
    pub fn tick(&self) {
        self.shared.tick_heard();
    }

    /// Whether the threads that serve calls of this store keep up.
    pub fn turns(&self) -> Arc<Turns> {
        self.shared.turns.clone()
    }

    /// Lets no call wait for the disk any longer: whoever waits is answered as if it took too long, and
    /// a borrow is taken back.
    pub fn stop_waiting(&self) {
        self.shared.stop_waiting();
    }

    /// Refuses further changes, commits what is pending and lets go of the file. Blocks until then,
    /// for 10 s at most.
    ///
    /// It says once how that went: a store that is closed already closes well.
    ///
    /// # Errors
    ///
    /// As [`Store::close_within`].
    pub fn close(&self) -> Result<(), Error> {
        self.close_within(CLOSE_WITHIN)
    }

    /// Closes the store as [`Store::close`] does, for at most `time`.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`] when the store failed, now or earlier. [`Error::Unconfirmed`] when
    /// the time is over: the thread that waits for the disk is left alone and holds the file until
    /// the disk answers or the process ends.
    pub fn close_within(&self, time: Duration) -> Result<(), Error> {
        self.shared.close();
        let threads = std::mem::take(&mut *self.threads.lock());
        if threads.is_empty() {
            return Ok(());
        }
        if let Err(changes) = self.shared.ended_within(time) {
            let path = self.path.clone();
            return Err(Error::Unconfirmed { path, changes, waited: time });
        }
        for thread in threads {
            // Panics were caught and have failed the store.
            drop(thread.join());
        }
        match self.shared.failure() {
            None => Ok(()),
            Some(why) => {
                Err(Error::Failed { problem: format!("{why}; changes since then were not kept") })
            }
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(%error, "the store closed badly");
        }
    }
}
