//! The operations of a store.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{Either, ready};
use lease::{
    BorrowId, Ends, KeptAlive, LeaseId, LeaseNumber, PoolReading, PoolUse, Reason, Released,
    Request, Terms, Used,
};
use policy::Policy;
use policy::overrides::{AuditEntry, OverrideChange, Overrides};

use crate::answers::{
    BorrowError, Enforced, KeptBatch, Noted, ReleaseError, ReportError, Reported, Unavailable,
    UsageReport,
};
use crate::attached::{Attachment, Listener};
use crate::blocking::{aside, joined};
use crate::delivery::Borrowed;
use crate::enforcing::Enforcing;
use crate::listing::{
    LeaseFilter, LeasePage, ListedLease, Order, PoolCount, RecordError, UsageCount,
};
use crate::reporting::Reporting;
use crate::shared::Wait;
use crate::store::Store;

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

/// One method is one whole lease operation, never a read or a write of a value, so the rules are
/// applied atomically. The operation is on its way when the method returns; the future only waits
/// for the answer, and borrows nothing. It resolves once every change that the answer reveals is
/// durable, as far as the journal makes it so; only an extended TTL waits for nothing.
impl Store {
    /// Grants one lease, or says what stands against it. The request must be valid.
    ///
    /// Cancellation: when the future is dropped before the answer, or the answer with its
    /// [`Delivery`] pending, the lease is taken back.
    pub fn borrow(
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

    /// Gives a lease that `caller` holds its full TTL again.
    pub fn keep_alive(
        &self,
        id: LeaseId,
        caller: Option<&str>,
    ) -> impl Future<Output = Result<KeptAlive, Unavailable>> + Send + use<> {
        answered(self.shared.keep_alive(id, caller))
    }

    /// Takes in a listener, which is told when a lease is revoked that it was the last to name in
    /// [`Store::keep_alive_batch`], until the attachment is dropped.
    pub fn attach(&self, listener: Arc<dyn Listener>) -> Attachment {
        self.shared.attach(listener)
    }

    /// Gives each lease of a batch that `caller` holds its full TTL again, as
    /// [`Store::keep_alive`] does for one, and tells `attachment` if it is revoked from now on.
    /// `None` stands for a text that never was a key.
    ///
    /// All of them are applied when the method returns. The future waits for the changes that the
    /// answer reveals, but not for long: past a second those leases count as unavailable, so that
    /// a slow disk does not keep the answer for all the others.
    pub fn keep_alive_batch(
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

    /// Returns a lease that `caller` holds; one younger than `minimal_life` lingers.
    ///
    /// Cancellation: dropped before the answer, the return may have been applied.
    pub fn release(
        &self,
        id: LeaseId,
        caller: Option<&str>,
        minimal_life: Duration,
    ) -> impl Future<Output = Result<Released, Unavailable>> + Send + use<> {
        answered(
            self.shared.change(caller, |ledger, now| ledger.release(id, caller, minimal_life, now)),
        )
    }

    /// Returns whatever the borrow that `caller` named `borrow_id` took, as [`Store::release`] does.
    pub fn release_borrow(
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
                // Other calls of this thread come between the parts.
                tokio::task::yield_now().await;
                part = shared.change(None, |ledger, now| {
                    ledger.read_pool(&service, &organization, &mut reading, now);
                });
            }
            answered(part.map(|((), wait)| (reading.finish(), wait))).await
        }
    }

    /// Ends one lease at once and remembers why. Answers whether there was such a lease.
    pub fn revoke(
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

    /// Ends the lease of that number at once, remembers why, and records in `entry` that an operator
    /// did it: both, or neither.
    ///
    /// Answers the entry with its number and how many leases ended: the lease, and with the last
    /// session of a trace the trace's workers. `None`, and nothing is recorded, when there is no such
    /// lease. It waits for the disk as long as that takes.
    pub fn revoke_number(
        &self,
        number: LeaseNumber,
        reason: Reason,
        entry: AuditEntry,
    ) -> impl Future<Output = Result<Option<AuditEntry>, Unavailable>> + Send + use<> {
        answered_in_the_end(self.shared.revoke_number(number, reason, entry))
    }

    /// Takes `policy` for the one in force from now on: a borrow under the terms of one with a lower
    /// number is refused, and what goes on in parts goes on under this one. Waits for nothing.
    pub fn follow(&self, policy: &Policy) {
        self.shared.follow(policy);
    }

    /// Ends every lease that `policy` no longer allows to live: of a disabled organization or API
    /// key, or of an organization with a spent budget.
    ///
    /// Lowered ceilings end nobody. The entry of the audit list that `noted` names tells at every
    /// moment how many of them ended durably, through a kill too; where there is one, the answer waits
    /// for the disk as long as that takes.
    pub fn enforce(
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

    /// Counts a report of usage and revokes the leases of each organization of which it spends a
    /// budget; leases of observed services live on.
    ///
    /// A large one is counted by parts, between which other calls go on, on a thread for what
    /// blocks; the method has to be called within a runtime. Once begun it goes on until it is
    /// counted whole, whether anybody waits or not.
    ///
    /// The same idempotency key from the same caller counts once in ten minutes. One that a failure
    /// or a stop cut short goes on where it stopped when it is sent again.
    pub fn report(
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

    /// Rises with every change of leases, usage, overrides and the audit list; keep-alives change
    /// nothing. It costs nothing to ask, and starts anew with the process.
    pub fn revision(&self) -> u64 {
        self.shared.revision()
    }

    /// The counts of every pool that holds a lease, ordered by organization and then by service.
    ///
    /// This and the other reading methods below show what is applied, which may not be durable yet,
    /// and wait for nothing. Those that read whole tables do it on a thread for what blocks, by
    /// parts, between which calls go on: what changes meanwhile may show or not.
    pub fn pools(
        &self,
    ) -> impl Future<Output = Result<Vec<PoolCount>, Unavailable>> + Send + use<> {
        let shared = self.shared.clone();
        aside(move || shared.pools())
    }

    /// One page of the leases that match `filter`: at most `limit` (and [`MAX_PAGE`]) of those that
    /// follow `after` in that order.
    pub fn leases(
        &self,
        filter: LeaseFilter,
        order: Order,
        after: Option<LeaseNumber>,
        limit: usize,
    ) -> impl Future<Output = Result<LeasePage, Unavailable>> + Send + use<> {
        let shared = self.shared.clone();
        aside(move || shared.leases(&filter, order, after, limit))
    }

    /// The live lease of that number.
    pub fn find(
        &self,
        number: LeaseNumber,
    ) -> impl Future<Output = Result<Option<ListedLease>, Unavailable>> + Send + use<> {
        std::future::ready(self.shared.find(number))
    }

    /// What the organization used, by metric, in no particular order.
    pub fn used(
        &self,
        organization: &str,
    ) -> impl Future<Output = Result<Vec<(Box<str>, Used)>, Unavailable>> + Send + use<> {
        std::future::ready(self.shared.read(|ledger| {
            ledger.used(organization).map(|(metric, used)| (metric.into(), used)).collect()
        }))
    }

    /// What every organization used that used anything, ordered by organization and metric.
    pub fn usage(
        &self,
    ) -> impl Future<Output = Result<Vec<UsageCount>, Unavailable>> + Send + use<> {
        let shared = self.shared.clone();
        aside(move || shared.usage())
    }

    /// What operators set.
    pub fn overrides(&self) -> Arc<Overrides> {
        self.shared.overrides()
    }

    /// The latest things operators did, the latest first: at most `limit` (and [`MAX_PAGE`]) of
    /// those with a number below `before`.
    pub fn audit(&self, before: Option<u64>, limit: usize) -> Vec<AuditEntry> {
        self.shared.audit(before, limit)
    }

    /// Records what an operator did, and the change of the overrides that it was: both, or neither.
    ///
    /// Answers the number of the entry; [`AuditEntry::number`] is not looked at. The oldest entries
    /// are forgotten past [`MAX_AUDIT`]. Durable when it answers. Cancellation: dropped, it may have
    /// been recorded.
    ///
    /// [`MAX_AUDIT`]: policy::overrides::MAX_AUDIT
    pub fn record(
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
