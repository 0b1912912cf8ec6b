//! The store within the process: one ledger behind one mutex, with a journal or without.
//!
//! An operation takes the lock, reads the clock, applies itself to the ledger and hands what
//! changed to the batch that is gathering; then it lets go of the lock and waits for that batch.
//! One thread commits batches, one after another: while one is being flushed, the next gathers,
//! so calls at the same time share a flush. Which batch a call waits for is decided under the
//! lock, so batches hold changes in the order applied.

mod enforcing;
mod listing;
mod operator;
mod recovered;
mod reporting;
mod shared;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{Either, ready};
use lease::{
    BorrowId, Ends, KeptAlive, LeaseId, LeaseNumber, PoolReading, PoolUse, Reason, Released,
    Request, Terms, Used,
};
use parking_lot::Mutex;
use tokio::task::JoinHandle as TaskHandle;

use enforcing::Enforcing;
pub(super) use operator::Kept;
use policy::Policy;
use policy::overrides::{AuditEntry, OverrideChange, Overrides};
pub use recovered::{Options, Recovered};
use reporting::Reporting;
use shared::{Shared, Wait};

use super::{
    Attachment, BorrowError, Borrowed, Enforced, KeptBatch, LeaseFilter, LeasePage, ListedLease,
    Listener, Noted, Order, PoolCount, RecordError, ReleaseError, ReportError, Reported, Store,
    Unavailable, UsageCount, UsageReport,
};
use crate::admin::metrics::Commits;
use crate::error::Error;
use crate::turns::Turns;

/// The store within the process, behind `memory:` and `file:PATH`.
///
/// After the first write or flush that fails, every change is refused until a restart, while
/// keep-alives of leases go on; see [`Unavailable::Failed`]. So it is when a thread of the store
/// panics, and when its file is removed or replaced.
///
/// [`Embedded::close`] commits what is pending and says how it went. Dropping the store does the
/// same and says nothing.
#[derive(Debug)]
pub struct Embedded {
    shared: Arc<Shared>,
    /// What errors call the file.
    path: PathBuf,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// How long a store has to close where nobody says how long.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);

impl Embedded {
    fn new(shared: Shared, path: PathBuf) -> Self {
        Self { shared: Arc::new(shared), path, threads: Mutex::new(Vec::new()) }
    }

    fn spawn(
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
    pub(crate) fn stalled(&self) -> Duration {
        self.shared.stalled()
    }

    /// What the journal counts.
    pub(crate) fn commits(&self) -> &Commits {
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
    pub(crate) fn turns(&self) -> Arc<Turns> {
        self.shared.turns.clone()
    }

    /// Lets no call wait for the disk any longer: whoever waits is answered as if it took too long, and
    /// a borrow is taken back.
    pub(crate) fn stop_waiting(&self) {
        self.shared.stop_waiting();
    }

    /// Refuses further changes, commits what is pending and lets go of the file. Blocks until then,
    /// for 10 s at most.
    ///
    /// It says once how that went: a store that is closed already closes well.
    ///
    /// # Errors
    ///
    /// As [`Embedded::close_within`].
    pub fn close(&self) -> Result<(), Error> {
        self.close_within(CLOSE_WITHIN)
    }

    /// Closes the store as [`Embedded::close`] does, for at most `time`.
    ///
    /// # Errors
    ///
    /// [`Error::StoreFailed`] when the store failed, now or earlier. [`Error::StoreUnconfirmed`] when
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
            return Err(Error::StoreUnconfirmed { path, changes, waited: time });
        }
        for thread in threads {
            // Panics were caught and have failed the store.
            drop(thread.join());
        }
        match self.shared.failure() {
            None => Ok(()),
            Some(why) => Err(Error::StoreFailed {
                problem: format!("{why}; changes since then were not kept"),
            }),
        }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(%error, "the store closed badly");
        }
    }
}

/// How long the answer to a batch of keep-alives waits for the disk.
const PATIENCE: Duration = Duration::from_secs(1);

/// Waits for the batch that an answer depends on, and gives the answer.
///
/// The answer is looked at where it lies while the batch is waited for: moved, it would be stored
/// a second time in the future of every call.
#[expect(clippy::manual_async_fn, reason = "an async fn stores its arguments twice")]
fn answered<R>(
    applied: Result<(R, Wait), Unavailable>,
) -> impl Future<Output = Result<R, Unavailable>> {
    async move {
        if let Ok((_, Some(batch))) = &applied {
            batch.durable().await?;
        }
        applied.map(|(answer, _)| answer)
    }
}

/// As [`answered`], and waits for as long as the disk takes: for what must not be left half done.
async fn answered_in_the_end<R>(applied: Result<(R, Wait), Unavailable>) -> Result<R, Unavailable> {
    let (answer, wait) = applied?;
    if let Some(batch) = wait {
        batch.settled().await?;
    }
    Ok(answer)
}

/// Does what takes a while on a thread for what blocks.
async fn aside<R: Send + 'static>(
    work: impl FnOnce() -> Result<R, Unavailable> + Send + 'static,
) -> Result<R, Unavailable> {
    aside_at_once(work).await
}

/// The answer of what runs on a thread for what blocks.
async fn joined<R, E: From<Unavailable>>(work: TaskHandle<Result<R, E>>) -> Result<R, E> {
    match work.await {
        Ok(answer) => answer,
        Err(stopped) => match stopped.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends.
            Err(_) => Err(Unavailable::Closing.into()),
        },
    }
}

/// As [`aside`]; it begins at once, and goes on whether anybody waits for it or not.
fn aside_at_once<R: Send + 'static>(
    work: impl FnOnce() -> Result<R, Unavailable> + Send + 'static,
) -> impl Future<Output = Result<R, Unavailable>> + Send {
    joined(tokio::task::spawn_blocking(work))
}

impl Store for Embedded {
    fn borrow(
        &self,
        request: &Request<'_>,
        terms: &Terms<'_>,
    ) -> impl Future<Output = Result<Borrowed, BorrowError>> + Send + use<> {
        // The promise to take the lease back is part of the answer already: whoever stops waiting
        // for the batch keeps it.
        answered(self.shared.grant(request, terms)).map(|answer| {
            let (grant, delivery) = answer??;
            Ok(Borrowed { grant, delivery })
        })
    }

    fn keep_alive(
        &self,
        id: LeaseId,
        caller: Option<&str>,
    ) -> impl Future<Output = Result<KeptAlive, Unavailable>> + Send + use<> {
        answered(self.shared.keep_alive(id, caller))
    }

    fn attach(&self, listener: Arc<dyn Listener>) -> Attachment {
        self.shared.attach(listener)
    }

    fn keep_alive_batch(
        &self,
        ids: &[Option<LeaseId>],
        caller: Option<&str>,
        attachment: &Attachment,
    ) -> impl Future<Output = KeptBatch> + Send + use<> {
        let (kept, wait) = self.shared.keep_alive_batch(ids, caller, attachment.number());
        async move {
            let Some(batch) = wait else { return kept };
            match tokio::time::timeout(PATIENCE, batch.durable()).await {
                Ok(Ok(())) => kept,
                Ok(Err(_)) | Err(_) => kept.unsure(),
            }
        }
    }

    fn release(
        &self,
        id: LeaseId,
        caller: Option<&str>,
        minimal_life: Duration,
    ) -> impl Future<Output = Result<Released, Unavailable>> + Send + use<> {
        answered(
            self.shared.change(caller, |ledger, now| ledger.release(id, caller, minimal_life, now)),
        )
    }

    fn release_borrow(
        &self,
        borrow_id: BorrowId,
        caller: Option<&str>,
        minimal_life: Duration,
    ) -> impl Future<Output = Result<Released, ReleaseError>> + Send + use<> {
        answered(self.shared.change(caller, |ledger, now| {
            ledger.release_borrow(borrow_id, caller, minimal_life, now)
        }))
        .map(|answer| Ok(answer??))
    }

    fn state(
        &self,
        service: &str,
        organization: &str,
    ) -> impl Future<Output = Result<PoolUse, Unavailable>> + Send + use<> {
        let mut reading = PoolReading::default();
        let mut part = self.shared.change(None, |ledger, now| {
            ledger.read_pool(service, organization, &mut reading, now);
        });
        let shared = self.shared.clone();
        let (service, organization) = (Box::<str>::from(service), Box::<str>::from(organization));
        async move {
            while !reading.is_done() && part.is_ok() {
                // Other calls of this thread come between the parts.
                tokio::task::yield_now().await;
                part = shared.change(None, |ledger, now| {
                    ledger.read_pool(&service, &organization, &mut reading, now);
                });
            }
            answered(part.map(|((), wait)| (reading.finish(), wait))).await
        }
    }

    fn revoke(
        &self,
        id: LeaseId,
        reason: Reason,
    ) -> impl Future<Output = Result<bool, Unavailable>> + Send + use<> {
        answered(self.shared.revoke(|ledger, now, revoked| {
            let found = ledger.revoke(id, reason, now);
            revoked.extend(found.then_some((id, reason.into())));
            found
        }))
    }

    fn revoke_number(
        &self,
        number: LeaseNumber,
        reason: Reason,
        entry: AuditEntry,
    ) -> impl Future<Output = Result<Option<AuditEntry>, Unavailable>> + Send + use<> {
        answered_in_the_end(self.shared.revoke_number(number, reason, entry))
    }

    fn follow(&self, policy: &Policy) {
        self.shared.follow(policy);
    }

    fn enforce(
        &self,
        policy: &Policy,
        noted: Noted,
    ) -> impl Future<Output = Result<Enforced, Unavailable>> + Send + use<> {
        let noted = match noted {
            Noted::Nowhere => Ok(None),
            Noted::At(number) => Ok(Some((number, None))),
            Noted::Anew(entry) => self.shared.note_alone(entry).map(Some),
        };
        let policy = policy.clone();
        let begun = noted.map(|noted| Enforcing::new(policy, noted).start(&self.shared));
        async move { begun?.await }
    }

    fn report(
        &self,
        report: UsageReport,
    ) -> impl Future<Output = Result<Reported, ReportError>> + Send + use<> {
        let mut reporting = Reporting::new(self.shared.clone(), report);
        let mut begun = Ok(());
        while begun.is_ok() && !reporting.is_done() && reporting.is_short() {
            begun = reporting.step();
        }
        let applied = begun.map(|()| {
            if reporting.is_done() {
                Either::Left(ready(Ok(reporting.finish())))
            } else {
                // On its way now: it goes on if nobody waits for it any more.
                Either::Right(joined(tokio::task::spawn_blocking(move || reporting.run())))
            }
        });
        async move {
            let (reported, wait) = applied?.await?;
            if let Some(batch) = wait {
                batch.durable().await?;
            }
            Ok(reported)
        }
    }

    fn live(
        &self,
    ) -> impl Future<Output = Result<Vec<(Box<str>, u64)>, Unavailable>> + Send + use<> {
        std::future::ready(self.shared.read(|ledger| {
            ledger.leases_by_service().map(|(service, leases)| (service.into(), leases)).collect()
        }))
    }

    fn ends(&self) -> impl Future<Output = Result<Ends, Unavailable>> + Send + use<> {
        std::future::ready(self.shared.read(lease::Ledger::ends))
    }

    fn ready(&self) -> Result<(), Unavailable> {
        self.shared.ready()
    }

    fn revision(&self) -> u64 {
        self.shared.revision()
    }

    fn pools(&self) -> impl Future<Output = Result<Vec<PoolCount>, Unavailable>> + Send + use<> {
        let shared = self.shared.clone();
        aside(move || shared.pools())
    }

    fn leases(
        &self,
        filter: LeaseFilter,
        order: Order,
        after: Option<LeaseNumber>,
        limit: usize,
    ) -> impl Future<Output = Result<LeasePage, Unavailable>> + Send + use<> {
        let shared = self.shared.clone();
        aside(move || shared.leases(&filter, order, after, limit))
    }

    fn find(
        &self,
        number: LeaseNumber,
    ) -> impl Future<Output = Result<Option<ListedLease>, Unavailable>> + Send + use<> {
        std::future::ready(self.shared.find(number))
    }

    fn used(
        &self,
        organization: &str,
    ) -> impl Future<Output = Result<Vec<(Box<str>, Used)>, Unavailable>> + Send + use<> {
        std::future::ready(self.shared.read(|ledger| {
            ledger.used(organization).map(|(metric, used)| (metric.into(), used)).collect()
        }))
    }

    fn usage(&self) -> impl Future<Output = Result<Vec<UsageCount>, Unavailable>> + Send + use<> {
        let shared = self.shared.clone();
        aside(move || shared.usage())
    }

    fn overrides(&self) -> Arc<Overrides> {
        self.shared.overrides()
    }

    fn audit(&self, before: Option<u64>, limit: usize) -> Vec<AuditEntry> {
        self.shared.audit(before, limit)
    }

    fn record(
        &self,
        change: Option<OverrideChange>,
        entry: AuditEntry,
    ) -> impl Future<Output = Result<u64, RecordError>> + Send + use<> {
        let recorded = self.shared.record(change, entry);
        async move {
            match recorded {
                Ok(recorded) => Ok(answered_in_the_end(Ok(recorded)).await?),
                Err(refused) => Err(refused),
            }
        }
    }
}
