//! The operations of a store.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{Either, ready};
use lease::{
    BorrowId, Ends, KeptAlive, LeaseId, LeaseNumber, ListedLease, PoolCount, PoolReading, PoolUse,
    Reason, Released, Request, Terms, Used,
};
use policy::Policy;
use policy::overrides::{AuditEntry, OverrideChange, Overrides};

use crate::answers::{
    AuditNote, BorrowError, Enforced, NotExtended, ReleaseError, ReportError, Reported,
    Unavailable, UsageReport,
};
use crate::attached::Listener;
use crate::blocking::{join, run_blocking};
use crate::enforcing::Enforcing;
use crate::listing::{LeaseFilter, LeasePage, Order, RecordError, UsageCount};
use crate::reporting::Reporting;
use crate::shared::{Attachment, Borrowed, Wait};
use crate::store::Store;

/// The longest time that the answer to a batch of keep-alives waits for the disk.
const PATIENCE: Duration = Duration::from_secs(1);

/// Waits until the batch that an answer depends on is durable, and returns the answer.
///
/// The answer is not moved while the batch is waited for. Moved, it would be stored a second time in
/// the future of every call.
#[expect(clippy::manual_async_fn, reason = "an async fn stores its arguments twice")]
fn when_durable<R>(
    applied: Result<(R, Wait), Unavailable>,
) -> impl Future<Output = Result<R, Unavailable>> {
    async move {
        if let Ok((_, Some(batch))) = &applied {
            batch.durable().await?;
        }
        applied.map(|(answer, _)| answer)
    }
}

/// As [`when_durable`], but waits as long as the disk takes.
async fn when_settled<R>(applied: Result<(R, Wait), Unavailable>) -> Result<R, Unavailable> {
    let (answer, wait) = applied?;
    if let Some(batch) = wait {
        batch.settled().await?;
    }
    Ok(answer)
}

/// Each method is one atomic lease operation. The operation is applied, or has started, when the
/// method returns; the future only waits for the answer, and borrows nothing. It resolves once every
/// change that the answer reveals is durable in the journal. Only an extended TTL waits for nothing.
impl Store {
    /// Grants one lease, or returns why it is refused. The request must be valid.
    ///
    /// Cancellation: the lease is taken back when the future is dropped before the answer, or when
    /// the answer is dropped before [`Delivery::complete`](crate::Delivery::complete).
    pub fn borrow(
        &self,
        request: &Request<'_>,
        terms: &Terms<'_>,
    ) -> impl Future<Output = Result<Borrowed, BorrowError>> + Send + use<> {
        // The delivery is part of the answer already: a caller that stops waiting for the batch drops
        // it, which takes the lease back.
        when_durable(self.shared.grant(request, terms)).map(|answer| Ok(answer??))
    }

    /// Extends a lease that `caller` holds to its full TTL.
    pub fn keep_alive(
        &self,
        id: LeaseId,
        caller: Option<&str>,
    ) -> impl Future<Output = Result<KeptAlive, Unavailable>> + Send + use<> {
        when_durable(self.shared.keep_alive(id, caller))
    }

    /// Attaches a listener until the attachment is dropped. It learns of the revocation of each lease
    /// that it was the last to keep alive by [`Store::keep_alive_batch`].
    pub fn attach(&self, listener: Arc<dyn Listener>) -> Attachment {
        self.shared.attach(listener)
    }

    /// Extends each lease of a batch that `caller` holds to its full TTL, as [`Store::keep_alive`] does
    /// for one, and subscribes the listener of `attachment` to its revocation. `None` stands for a
    /// text that is no key.
    ///
    /// All keep-alives are applied when the method returns. The future waits up to a second for the
    /// changes that the answer reveals. After that, the leases that were not extended count as
    /// unavailable, so that a slow disk does not delay the answer for all the others.
    pub fn keep_alive_batch(
        &self,
        ids: &[Option<LeaseId>],
        caller: Option<&str>,
        attachment: &Attachment,
    ) -> impl Future<Output = NotExtended> + Send + use<> {
        let (kept, wait) = self.shared.keep_alive_batch(ids, caller, attachment);
        async move {
            let Some(batch) = wait else { return kept };
            match tokio::time::timeout(PATIENCE, batch.durable()).await {
                Ok(Ok(())) => kept,
                Ok(Err(_)) | Err(_) => kept.into_unavailable(),
            }
        }
    }

    /// Returns a lease that `caller` holds; one younger than `minimal_life` lingers.
    ///
    /// Cancellation: dropped before the answer, the return may have been applied.
    pub fn release(
        &self,
        id: LeaseId,
        caller: Option<&str>,
        minimal_life: Duration,
    ) -> impl Future<Output = Result<Released, Unavailable>> + Send + use<> {
        when_durable(
            self.shared.change(caller, |ledger, now| ledger.release(id, caller, minimal_life, now)),
        )
    }

    /// Returns the lease of the borrow that `caller` named `borrow_id`, as [`Store::release`] does.
    pub fn release_borrow(
        &self,
        borrow_id: BorrowId,
        caller: Option<&str>,
        minimal_life: Duration,
    ) -> impl Future<Output = Result<Released, ReleaseError>> + Send + use<> {
        when_durable(self.shared.change(caller, |ledger, now| {
            ledger.release_borrow(borrow_id, caller, minimal_life, now)
        }))
        .map(|answer| Ok(answer??))
    }

    /// The counts of the pool (organization, service).
    pub fn state(
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
                // Other calls of this thread run between the parts.
                tokio::task::yield_now().await;
                part = shared.change(None, |ledger, now| {
                    ledger.read_pool(&service, &organization, &mut reading, now);
                });
            }
            when_durable(part.map(|((), wait)| (reading.finish(), wait))).await
        }
    }

    /// Ends one lease at once and remembers why. Returns whether there was such a lease.
    pub fn revoke(
        &self,
        id: LeaseId,
        reason: Reason,
    ) -> impl Future<Output = Result<bool, Unavailable>> + Send + use<> {
        when_durable(self.shared.revoke(id, reason))
    }

    /// Ends the lease of that number at once, remembers why, and records the audit entry of the
    /// operator: both, or neither.
    ///
    /// Returns the entry with its number and how many leases ended: the lease, and with the last
    /// session of a trace the trace's workers. Returns `None`, and records nothing, when there is no
    /// such lease. It waits for the disk as long as that takes.
    pub fn revoke_number(
        &self,
        number: LeaseNumber,
        reason: Reason,
        entry: AuditEntry,
    ) -> impl Future<Output = Result<Option<AuditEntry>, Unavailable>> + Send + use<> {
        when_settled(self.shared.revoke_number(number, reason, entry))
    }

    /// Puts `policy` into force: a borrow under the terms of a policy with a lower number is refused,
    /// and operations that run part by part continue under this one. Waits for nothing.
    pub fn set_policy(&self, policy: &Policy) {
        self.shared.set_policy(policy);
    }

    /// Ends every lease that `policy` no longer allows: of a disabled organization or API key, or of an
    /// organization with a spent budget.
    ///
    /// A lowered limit ends no lease. The entry of the audit list that `noted` names counts at any
    /// time the leases that ended durably, also after a kill. Where there is an entry, the answer
    /// waits for the disk as long as that takes.
    pub fn enforce(
        &self,
        policy: &Policy,
        noted: AuditNote,
    ) -> impl Future<Output = Result<Enforced, Unavailable>> + Send + use<> {
        let noted = match noted {
            AuditNote::None => Ok(None),
            AuditNote::Existing(number) => Ok(Some((number, None))),
            AuditNote::New(entry) => self.shared.record_entry(entry).map(Some),
        };
        let policy = policy.clone();
        let begun = noted.map(|noted| Enforcing::new(policy, noted).start(&self.shared));
        async move { begun?.await }
    }

    /// Counts a report of usage and revokes the leases of each organization of which it spends a
    /// budget; leases of observed services live on.
    ///
    /// A large report is counted part by part on a thread that may block; other calls run between
    /// the parts. The method has to be called within a runtime. Once started, counting goes on to the
    /// end of the report, also when the future is dropped.
    ///
    /// Reports with the same idempotency key from the same caller count once in ten minutes. A report
    /// that a failure or a stop interrupted continues where it stopped when it is sent again.
    pub fn report(
        &self,
        report: UsageReport,
    ) -> impl Future<Output = Result<Reported, ReportError>> + Send + use<> {
        let mut reporting = Reporting::new(self.shared.clone(), report);
        let mut begun = Ok(());
        while begun.is_ok() && !reporting.is_done() && reporting.is_short() {
            begun = reporting.step(false).map(drop);
        }
        let applied = begun.map(|()| {
            if reporting.is_done() {
                Either::Left(ready(Ok(reporting.finish())))
            } else {
                // Started now, so that it goes on when the future is dropped.
                Either::Right(join(tokio::task::spawn_blocking(move || reporting.run())))
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

    /// The number of live leases of each service that has any.
    pub fn live(
        &self,
    ) -> impl Future<Output = Result<Vec<(Box<str>, u64)>, Unavailable>> + Send + use<> {
        std::future::ready(self.shared.read(|ledger| {
            ledger.leases_by_service().map(|(service, leases)| (service.into(), leases)).collect()
        }))
    }

    /// How many leases have ended since the store was opened, and how.
    pub fn ends(&self) -> impl Future<Output = Result<Ends, Unavailable>> + Send + use<> {
        std::future::ready(self.shared.read(lease::Ledger::ends))
    }

    /// Whether changes can be made, and are confirmed in time.
    pub fn ready(&self) -> Result<(), Unavailable> {
        self.shared.ready()
    }

    /// A number that rises with every change of leases, usage, overrides and the audit list.
    /// Keep-alives do not change it. Reading it takes no lock. It restarts with the process.
    pub fn revision(&self) -> u64 {
        self.shared.revision()
    }

    /// The counts of every pool that holds a lease, ordered by organization and then by service.
    ///
    /// This and the other reading methods below show what is applied, which may not be durable yet,
    /// and do not wait for the disk. Those that read whole tables do it part by part on a thread that
    /// may block; a change that is made in the meantime may show or not.
    pub fn pools(
        &self,
    ) -> impl Future<Output = Result<Vec<PoolCount>, Unavailable>> + Send + use<> {
        let shared = self.shared.clone();
        run_blocking(move || shared.pools())
    }

    /// One page of the leases that match `filter`: at most `limit` (and [`MAX_PAGE`]) of those after
    /// `after` in that order.
    ///
    /// [`MAX_PAGE`]: crate::MAX_PAGE
    pub fn leases(
        &self,
        filter: LeaseFilter,
        order: Order,
        after: Option<LeaseNumber>,
        limit: usize,
    ) -> impl Future<Output = Result<LeasePage, Unavailable>> + Send + use<> {
        let shared = self.shared.clone();
        run_blocking(move || shared.leases(&filter, order, after, limit))
    }

    /// The live lease of that number.
    pub fn find(
        &self,
        number: LeaseNumber,
    ) -> impl Future<Output = Result<Option<ListedLease>, Unavailable>> + Send + use<> {
        std::future::ready(self.shared.find(number))
    }

    /// The usage of the organization by metric, in no particular order.
    pub fn used(
        &self,
        organization: &str,
    ) -> impl Future<Output = Result<Vec<(Box<str>, Used)>, Unavailable>> + Send + use<> {
        std::future::ready(self.shared.read(|ledger| {
            ledger.used(organization).map(|(metric, used)| (metric.into(), used)).collect()
        }))
    }

    /// The usage of every organization that used anything, ordered by organization and metric.
    pub fn usage(
        &self,
    ) -> impl Future<Output = Result<Vec<UsageCount>, Unavailable>> + Send + use<> {
        let shared = self.shared.clone();
        run_blocking(move || shared.usage())
    }

    /// The overrides.
    pub fn overrides(&self) -> Arc<Overrides> {
        self.shared.overrides()
    }

    /// The audit list, the latest entry first: at most `limit` (and [`MAX_PAGE`]) entries with a
    /// number below `before`.
    ///
    /// [`MAX_PAGE`]: crate::MAX_PAGE
    pub fn audit(&self, before: Option<u64>, limit: usize) -> Vec<AuditEntry> {
        self.shared.audit(before, limit)
    }

    /// Records an audit entry and the change of an override: both, or neither.
    ///
    /// Returns the number of the entry; [`AuditEntry::number`] is ignored. The oldest entries beyond
    /// [`MAX_AUDIT`] are removed. The records are durable when the future resolves. Cancellation: when
    /// the future is dropped, they may have been recorded.
    ///
    /// [`MAX_AUDIT`]: policy::overrides::MAX_AUDIT
    pub fn record(
        &self,
        change: Option<OverrideChange>,
        entry: AuditEntry,
    ) -> impl Future<Output = Result<u64, RecordError>> + Send + use<> {
        let recorded = self.shared.record(change, entry);
        async move { Ok(when_settled(Ok(recorded?)).await?) }
    }
}
