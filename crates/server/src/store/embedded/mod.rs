//! The store within the process: one ledger behind one mutex, with a journal or without.
//!
//! An operation takes the lock, reads the clock, applies itself to the ledger and hands what
//! changed to the batch that is gathering; then it lets go of the lock and waits for that batch.
//! One thread commits batches, one after another: while one is being flushed, the next gathers,
//! so calls at the same time share a flush. Which batch a call waits for is decided under the
//! lock, so batches hold changes in the order applied.

mod listing;
mod operator;
mod recovered;
mod revoking;
mod shared;

use std::collections::HashSet;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::FutureExt as _;
use lease::{
    BorrowId, BudgetSpent, Ends, Invalid, KeptAlive, LeaseId, LeaseNumber, Ledger, PoolReading,
    PoolUse, Reason, Released, Request, Terms, Usage, Used,
};
use parking_lot::Mutex;

pub(super) use operator::Kept;
pub use recovered::{Options, Recovered};
use revoking::Revoking;
use shared::{Shared, Wait};

use super::{
    Attachment, BorrowError, Borrowed, KeptBatch, LeaseFilter, LeasePage, ListedLease, Listener,
    Order, PoolCount, RecordError, ReportError, Reported, Store, Unavailable, UsageCount,
};
use crate::admin::metrics::Commits;
use crate::error::Error;
use crate::policy::Policy;
use crate::policy::overrides::{AuditEntry, OverrideChange, Overrides};
use crate::turns::Turns;

/// The store within the process, behind `memory:` and `file:PATH`.
///
/// After the first write or flush that fails, every change is refused until a restart, while
/// keep-alives of leases go on; see [`Unavailable::Failed`].
///
/// [`Embedded::close`] commits what is pending and says how it went. Dropping the store does the
/// same and says nothing.
#[derive(Debug)]
pub struct Embedded {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Embedded {
    fn new(shared: Shared) -> Self {
        Self { shared: Arc::new(shared), threads: Mutex::new(Vec::new()) }
    }

    fn spawn(
        &self,
        name: &'static str,
        run: impl FnOnce(&Shared) + Send + 'static,
    ) -> Result<(), Error> {
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(&shared))
            .map_err(|source| Error::System { action: "start a thread of the store", source })?;
        self.threads.lock().push(thread);
        Ok(())
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

    /// Refuses further changes, commits what is pending and lets go of the file. Blocks until then.
    ///
    /// It says once how that went: a store that is closed already closes well.
    ///
    /// # Errors
    ///
    /// [`Error::StoreFailed`] when a write or a flush failed, now or earlier.
    pub fn close(&self) -> Result<(), Error> {
        self.shared.close();
        let threads = std::mem::take(&mut *self.threads.lock());
        if threads.is_empty() {
            return Ok(());
        }
        let panicked = threads.into_iter().filter_map(|thread| thread.join().err()).count() > 0;
        if panicked || self.shared.has_failed() {
            let problem = "changes since the failure were not kept".to_owned();
            return Err(Error::StoreFailed { problem });
        }
        Ok(())
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(%error, "the store closed badly");
        }
    }
}

/// Most organizations that the answer to a report tells the spent budgets of.
const SPENT_TOLD: usize = 16;

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

/// Does what takes a while on a thread for what blocks.
async fn aside<R: Send + 'static>(
    work: impl FnOnce() -> Result<R, Unavailable> + Send + 'static,
) -> Result<R, Unavailable> {
    aside_at_once(work).await
}

/// As [`aside`]; it begins at once, and goes on whether anybody waits for it or not.
fn aside_at_once<R: Send + 'static>(
    work: impl FnOnce() -> Result<R, Unavailable> + Send + 'static,
) -> impl Future<Output = Result<R, Unavailable>> + Send {
    let work = tokio::task::spawn_blocking(work);
    async move {
        match work.await {
            Ok(answer) => answer,
            Err(stopped) => match stopped.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime ends.
                Err(_) => Err(Unavailable::Closing),
            },
        }
    }
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
        answered(self.shared.change(|ledger, now| ledger.release(id, caller, minimal_life, now)))
    }

    fn release_borrow(
        &self,
        borrow_id: BorrowId,
        caller: Option<&str>,
        minimal_life: Duration,
    ) -> impl Future<Output = Result<Released, Unavailable>> + Send + use<> {
        answered(
            self.shared
                .change(|ledger, now| ledger.release_borrow(borrow_id, caller, minimal_life, now)),
        )
    }

    fn state(
        &self,
        service: &str,
        organization: &str,
    ) -> impl Future<Output = Result<PoolUse, Unavailable>> + Send + use<> {
        let mut reading = PoolReading::default();
        let mut part = self.shared.change(|ledger, now| {
            ledger.read_pool(service, organization, &mut reading, now);
        });
        let shared = self.shared.clone();
        let (service, organization) = (Box::<str>::from(service), Box::<str>::from(organization));
        async move {
            while !reading.is_done() && part.is_ok() {
                // Other calls of this thread come between the parts.
                tokio::task::yield_now().await;
                part = shared.change(|ledger, now| {
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
            revoked.extend(found.then_some((id, reason)));
            found
        }))
    }

    fn revoke_number(
        &self,
        number: LeaseNumber,
        reason: Reason,
    ) -> impl Future<Output = Result<usize, Unavailable>> + Send + use<> {
        answered(self.shared.revoke(|ledger, now, revoked| {
            let (id, ended) = ledger.revoke_number(number, reason, now).unzip();
            revoked.extend(id.map(|id| (id, reason)));
            usize::try_from(ended.unwrap_or(0)).unwrap_or(usize::MAX)
        }))
    }

    fn enforce(
        &self,
        policy: &Policy,
    ) -> impl Future<Output = Result<usize, Unavailable>> + Send + use<> {
        Revoking::enforce(policy.clone()).start(&self.shared)
    }

    fn report(
        &self,
        caller: Option<&str>,
        idempotency_key: Option<&str>,
        usages: &[Usage<'_>],
        policy: &Policy,
    ) -> impl Future<Output = Result<Reported, ReportError>> + Send + use<> {
        let wall = self.shared.clock.wall();
        let reported = self.shared.change(|ledger, now| {
            let spent = |ledger: &Ledger, organization: &str| {
                ledger.spent(organization, policy.organization_budgets(organization), wall)
            };
            // Only a report that spends something ends leases: what was spent before was acted on
            // then, and has borrowed nothing since.
            let mut spends: HashSet<&str> = usages.iter().map(|usage| usage.organization).collect();
            spends.retain(|organization| spent(ledger, organization).is_none());
            let counted = ledger.report(caller, idempotency_key, usages, wall, now)?;
            spends.retain(|organization| spent(ledger, organization).is_some());
            let mut told: Vec<(Box<str>, BudgetSpent)> = Vec::new();
            for organization in usages.iter().map(|usage| usage.organization) {
                if told.len() < SPENT_TOLD && told.iter().all(|(known, _)| **known != *organization)
                {
                    told.extend(
                        spent(ledger, organization).map(|spent| (organization.into(), spent)),
                    );
                }
            }
            let spends: Vec<Box<str>> = spends.into_iter().map(Into::into).collect();
            Ok::<_, Invalid>((Reported { counted, revoked: 0, spent: told }, spends))
        });
        let revoking = match &reported {
            Ok((Ok((_, spends)), _)) if !spends.is_empty() => {
                Some(Revoking::spent(policy.clone(), spends.clone()).start(&self.shared))
            }
            _ => None,
        };
        async move {
            let (mut reported, _) = answered(reported).await??;
            if let Some(revoking) = revoking {
                reported.revoked = revoking.await?;
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
        self.shared.sound()
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
                Ok(recorded) => Ok(answered(Ok(recorded)).await?),
                Err(refused) => Err(refused),
            }
        }
    }

    fn amend(
        &self,
        number: u64,
        ended: u64,
    ) -> impl Future<Output = Result<(), Unavailable>> + Send + use<> {
        answered(self.shared.amend(number, ended))
    }
}
