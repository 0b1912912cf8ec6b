//! The store: one ledger behind one mutex, with a journal or without.
//!
//! An operation takes the lock, reads the clock, changes the ledger and adds the changes to the
//! gathering batch. Then it releases the lock and waits for that batch. One thread commits batches,
//! one after another. While one batch is flushed, the next one gathers, so concurrent calls share a
//! flush. Which batch a call waits for is decided under the lock, so batches hold changes in the order
//! in which they were applied.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::answers::Unavailable;
use crate::commits::Commits;
use crate::error::Error;
use crate::fleet::{FleetSecret, Leader};
use crate::serving_threads::ServingThreads;
use crate::shared::Shared;

/// An open store.
///
/// After the first write or flush that fails, every change is refused until a restart, while
/// keep-alives of leases continue; see [`Unavailable::Failed`]. The same happens when a thread of the
/// store panics, and when the file of the store is removed or replaced.
///
/// [`Store::close`] commits the pending changes and returns whether that succeeded. Dropping the
/// store does the same and logs a failure.
#[derive(Debug)]
pub struct Store {
    pub(crate) shared: Arc<Shared>,
    /// The path that errors name.
    path: PathBuf,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// How long [`Store::close`] waits.
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

    /// How long the current commit has taken; zero when there is none.
    pub fn stalled(&self) -> Duration {
        self.shared.stalled()
    }

    /// The metrics of the commits.
    pub fn commits(&self) -> &Commits {
        &self.shared.commits
    }

    /// Reads the clock and removes leases that have ended, as the clock thread of the store does many
    /// times a second.
    ///
    /// The caller says that all calls that had arrived were handled. Otherwise store time advances
    /// at most half a second beyond the last answered probe of the [`ServingThreads`].
    pub fn tick(&self) {
        self.shared.tick_handled();
    }

    /// The terms that this server leads in its fleet: a number, or `None` while it stands by. A store that
    /// no other server uses has one term.
    ///
    /// In a new term the store changes nothing before [`Store::serve_term`]: first the overrides that
    /// came with the term have to be in force.
    pub fn terms(&self) -> watch::Receiver<Option<u64>> {
        self.shared.terms.subscribe()
    }

    /// Serves from now on in the term of that number, if it is not over. Every lease has its full TTL from
    /// now.
    pub fn serve_term(&self, number: u64) {
        self.shared.serve_term(number);
    }

    /// Whether this server leads its fleet and serves. A store that no other server uses does.
    pub fn leads(&self) -> bool {
        self.shared.leads.load(Ordering::Acquire)
    }

    /// The secret of the fleet, and its leader as this server sees it; `None` for a store that no other
    /// server uses.
    ///
    /// The leader is unknown while the database shows none, or does not answer. A leader that is known
    /// may have ended since.
    pub fn fleet(&self) -> Option<(FleetSecret, watch::Receiver<Option<Leader>>)> {
        let secret = self.shared.fleet_secret.get()?;
        Some((*secret, self.shared.leader.subscribe()))
    }

    /// The threads that serve calls of this store.
    pub fn serving_threads(&self) -> Arc<ServingThreads> {
        self.shared.serving_threads.clone()
    }

    /// Answers all calls that wait for the disk with [`Unavailable::Stalled`]. Their borrows are taken
    /// back.
    pub fn stop_waiting(&self) {
        self.shared.stop_waiting();
    }

    /// Refuses further changes, commits the pending ones and closes the file. Blocks for 10 s at most.
    ///
    /// The outcome is returned once: closing a closed store succeeds.
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
    /// [`Error::Failed`] when the store failed, now or earlier. [`Error::Unconfirmed`] when the time is
    /// over: the journal thread goes on waiting for the disk, and keeps the file open until the disk
    /// answers or the process ends.
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
            // A panic of the thread was caught and has failed the store.
            drop(thread.join());
        }
        self.shared.failure().map_or(Ok(()), |why| {
            Err(Error::Failed { problem: format!("{why}; changes since then were not kept") })
        })
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(%error, "the store closed badly");
        }
    }
}
