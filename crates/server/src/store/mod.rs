//! Stores: where leases are kept, one atomic operation at a time.

mod attached;
mod batch;
mod commit;
mod create;
mod embedded;
mod file;
mod journal;
mod listing;
mod lock;
mod note;
mod rows;
mod staged;
mod url;

use std::any::Any;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use lease::{
    BorrowId, Ends, Grant, KeptAlive, LeaseId, LeaseNumber, MemoryFull, PoolUse, Reason, Refusal,
    Released, Report, ReportRefusal, Request, RevokedFor, Terms, Usage, Used,
};

pub use attached::{Attachment, Listener};
pub use embedded::{Embedded, Options, Recovered};
pub use lease::{Reported, Skipped, Submission};
pub use listing::{
    LeaseFilter, LeasePage, ListedLease, MAX_PAGE, Order, PoolCount, RecordError, UsageCount,
};
pub use url::StoreUrl;

use policy::Policy;
use policy::overrides::{AuditEntry, OverrideChange, Overrides};

/// Nobody waits longer than this for the disk.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// A store of leases.
///
/// A method is one whole lease operation, never a read or a write of a value, so every store
/// applies the same rules atomically. The operation is on its way when the method returns; the
/// future only waits for the answer, and borrows nothing. It resolves once every change that the
/// answer reveals is as durable as the store makes it; only an extended TTL waits for nothing.
///
/// The trait is used as a type parameter, not as an object: a boxed future per call would cost an
/// allocation where the whole call costs a few.
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Grants one lease, or says what stands against it. The request must be valid.
    ///
    /// Cancellation: when the future is dropped before the answer, or the answer with its
    /// [`Delivery`] pending, the lease is taken back.
    fn borrow(
        &self,
        request: &Request<'_>,
        terms: &Terms<'_>,
    ) -> impl Future<Output = Result<Borrowed, BorrowError>> + Send + use<Self>;

    /// Gives a lease that `caller` holds its full TTL again.
    fn keep_alive(
        &self,
        id: LeaseId,
        caller: Option<&str>,
    ) -> impl Future<Output = Result<KeptAlive, Unavailable>> + Send + use<Self>;

    /// Takes in a listener, which is told when a lease is revoked that it was the last to name in
    /// [`Store::keep_alive_batch`], until the attachment is dropped.
    fn attach(&self, listener: Arc<dyn Listener>) -> Attachment;

    /// Gives each lease of a batch that `caller` holds its full TTL again, as
    /// [`Store::keep_alive`] does for one, and tells `attachment` if it is revoked from now on.
    /// `None` stands for a text that never was a key.
    ///
    /// All of them are applied when the method returns. The future waits for the changes that the
    /// answer reveals, but not for long: past a second those leases count as unavailable, so that
    /// a slow disk does not keep the answer for all the others.
    fn keep_alive_batch(
        &self,
        ids: &[Option<LeaseId>],
        caller: Option<&str>,
        attachment: &Attachment,
    ) -> impl Future<Output = KeptBatch> + Send + use<Self>;

    /// Returns a lease that `caller` holds; one younger than `minimal_life` lingers.
    ///
    /// Cancellation: dropped before the answer, the return may have been applied.
    fn release(
        &self,
        id: LeaseId,
        caller: Option<&str>,
        minimal_life: Duration,
    ) -> impl Future<Output = Result<Released, Unavailable>> + Send + use<Self>;

    /// Returns whatever the borrow that `caller` named `borrow_id` took, as [`Store::release`] does.
    fn release_borrow(
        &self,
        borrow_id: BorrowId,
        caller: Option<&str>,
        minimal_life: Duration,
    ) -> impl Future<Output = Result<Released, ReleaseError>> + Send + use<Self>;

    /// The counts of the pool (organization, service).
    fn state(
        &self,
        service: &str,
        organization: &str,
    ) -> impl Future<Output = Result<PoolUse, Unavailable>> + Send + use<Self>;

    /// Ends one lease at once and remembers why. Answers whether there was such a lease.
    fn revoke(
        &self,
        id: LeaseId,
        reason: Reason,
    ) -> impl Future<Output = Result<bool, Unavailable>> + Send + use<Self>;

    /// Ends the lease of that number at once, remembers why, and records in `entry` that an operator
    /// did it: both, or neither.
    ///
    /// Answers the entry with its number and how many leases ended: the lease, and with the last
    /// session of a trace the trace's workers. `None`, and nothing is recorded, when there is no such
    /// lease. It waits for the disk as long as that takes.
    fn revoke_number(
        &self,
        number: LeaseNumber,
        reason: Reason,
        entry: AuditEntry,
    ) -> impl Future<Output = Result<Option<AuditEntry>, Unavailable>> + Send + use<Self>;

    /// Takes `policy` for the one in force from now on: a borrow under the terms of one with a lower
    /// number is refused, and what goes on in parts goes on under this one. Waits for nothing.
    fn follow(&self, policy: &Policy);

    /// Ends every lease that `policy` no longer allows to live: of a disabled organization or API
    /// key, or of an organization with a spent budget.
    ///
    /// Lowered ceilings end nobody. The entry of the audit list that `noted` names tells at every
    /// moment how many of them ended durably, through a kill too; where there is one, the answer waits
    /// for the disk as long as that takes.
    fn enforce(
        &self,
        policy: &Policy,
        noted: Noted,
    ) -> impl Future<Output = Result<Enforced, Unavailable>> + Send + use<Self>;

    /// Counts a report of usage and revokes the leases of each organization of which it spends a
    /// budget; leases of observed services live on.
    ///
    /// A large one is counted by parts, between which other calls go on, on a thread for what
    /// blocks; the method has to be called within a runtime. Once begun it goes on until it is
    /// counted whole, whether anybody waits or not.
    ///
    /// The same idempotency key from the same caller counts once in ten minutes. One that a failure
    /// or a stop cut short goes on where it stopped when it is sent again.
    fn report(
        &self,
        report: UsageReport,
    ) -> impl Future<Output = Result<Reported, ReportError>> + Send + use<Self>;

    /// The number of live leases of each service that has any.
    fn live(
        &self,
    ) -> impl Future<Output = Result<Vec<(Box<str>, u64)>, Unavailable>> + Send + use<Self>;

    /// How many leases have ended since the store was opened, and how.
    fn ends(&self) -> impl Future<Output = Result<Ends, Unavailable>> + Send + use<Self>;

    /// Whether changes can be made, and are confirmed in time.
    fn ready(&self) -> Result<(), Unavailable>;

    /// Rises with every change of leases, usage, overrides and the audit list; keep-alives change
    /// nothing. It costs nothing to ask, and starts anew with the process.
    fn revision(&self) -> u64;

    /// The counts of every pool that holds a lease, ordered by organization and then by service.
    ///
    /// This and the other reading methods below show what is applied, which may not be durable yet,
    /// and wait for nothing. Those that read whole tables do it on a thread for what blocks, by
    /// parts, between which calls go on: what changes meanwhile may show or not.
    fn pools(&self)
    -> impl Future<Output = Result<Vec<PoolCount>, Unavailable>> + Send + use<Self>;

    /// One page of the leases that match `filter`: at most `limit` (and [`MAX_PAGE`]) of those that
    /// follow `after` in that order.
    fn leases(
        &self,
        filter: LeaseFilter,
        order: Order,
        after: Option<LeaseNumber>,
        limit: usize,
    ) -> impl Future<Output = Result<LeasePage, Unavailable>> + Send + use<Self>;

    /// The live lease of that number.
    fn find(
        &self,
        number: LeaseNumber,
    ) -> impl Future<Output = Result<Option<ListedLease>, Unavailable>> + Send + use<Self>;

    /// What the organization used, by metric, in no particular order.
    fn used(
        &self,
        organization: &str,
    ) -> impl Future<Output = Result<Vec<(Box<str>, Used)>, Unavailable>> + Send + use<Self>;

    /// What every organization used that used anything, ordered by organization and metric.
    fn usage(
        &self,
    ) -> impl Future<Output = Result<Vec<UsageCount>, Unavailable>> + Send + use<Self>;

    /// What operators set.
    fn overrides(&self) -> Arc<Overrides>;

    /// The latest things operators did, the latest first: at most `limit` (and [`MAX_PAGE`]) of
    /// those with a number below `before`.
    fn audit(&self, before: Option<u64>, limit: usize) -> Vec<AuditEntry>;

    /// Records what an operator did, and the change of the overrides that it was: both, or neither.
    ///
    /// Answers the number of the entry; [`AuditEntry::number`] is not looked at. The oldest entries
    /// are forgotten past [`MAX_AUDIT`]. Durable when it answers. Cancellation: dropped, it may have
    /// been recorded.
    ///
    /// [`MAX_AUDIT`]: policy::overrides::MAX_AUDIT
    fn record(
        &self,
        change: Option<OverrideChange>,
        entry: AuditEntry,
    ) -> impl Future<Output = Result<u64, RecordError>> + Send + use<Self>;
}

/// Which entry of the audit list tells how many leases an operation ended.
#[derive(Clone, Debug)]
pub enum Noted {
    /// None: no operator asked for it.
    Nowhere,
    /// A new one, which is recorded before the first of them ends.
    Anew(AuditEntry),
    /// The one of this number, which is there already.
    At(u64),
}

/// What came of enforcing a policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Enforced {
    /// How many leases were ended.
    pub ended: usize,
    /// The number of the entry of the audit list that says so.
    pub entry: Option<u64>,
}

/// A store that cannot answer now. Nothing is known to have changed, and it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// A write or a flush failed. Changes are refused until a restart.
    #[error("the store failed and refuses changes until the server is restarted")]
    Failed,
    /// The file of the store was removed, moved or replaced while the server had it open. Changes
    /// are refused until a restart.
    #[error(
        "the file of the store was removed or replaced: the server refuses changes until it is \
         restarted"
    )]
    FileLost,
    /// The disk takes too long to confirm changes. One that was waited for may still become durable;
    /// a borrow is taken back.
    #[error("the disk takes too long to confirm changes")]
    Stalled,
    /// More changes wait for the disk than the server is ready to hold.
    #[error("too many changes wait for the disk")]
    Overloaded,
    /// The store is being closed.
    #[error("the server is stopping")]
    Closing,
}

/// A borrow that got no lease.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BorrowError {
    /// The rules refuse it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store cannot answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// What became of the leases of one batch of keep-alives, by their places in it, in rising order.
///
/// A place that is not listed has its full TTL again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeptBatch {
    /// Unknown, ended, returned, or not the caller's.
    pub failed: Vec<u32>,
    /// Revoked, and why.
    pub revoked: Vec<(u32, RevokedFor)>,
    /// The store cannot say; the leases are as they were.
    pub unavailable: Vec<u32>,
}

impl KeptBatch {
    /// How many places are listed, and so were not extended.
    pub fn listed(&self) -> usize {
        self.failed.len() + self.revoked.len() + self.unavailable.len()
    }

    /// The same batch, when the changes it reveals could not be made durable.
    fn unsure(mut self) -> Self {
        self.unavailable.append(&mut self.failed);
        self.unavailable.extend(self.revoked.drain(..).map(|(place, _)| place));
        self.unavailable.sort_unstable();
        self
    }
}

/// A borrow that could not be returned by its id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    /// The borrow has not arrived, and its id cannot be remembered.
    #[error(transparent)]
    MemoryFull(#[from] MemoryFull),
    /// The store cannot answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// A report of usage for a store to count.
#[derive(Debug)]
pub struct UsageReport {
    /// The report and who sent it.
    pub submission: Submission,
    /// The policy that has the budgets.
    pub policy: Arc<Policy>,
    /// What is dropped once the report is counted, or refused.
    pub until_counted: Option<Box<dyn Any + Send>>,
}

impl UsageReport {
    /// The report of `usages`, of which the answer tells about every organization with a budget, in
    /// the order of their names; and what of them cannot be counted.
    pub fn of(
        caller: Option<&str>,
        idempotency_key: Option<&str>,
        usages: &[Usage<'_>],
        policy: Arc<Policy>,
    ) -> (Self, Skipped) {
        let mut report = Report::builder();
        let mut skipped = Skipped::default();
        let mut organizations = BTreeSet::new();
        for &Usage { organization, metric, value } in usages {
            match report.add(organization, &[(metric, value)]) {
                Err(why) => skipped[why as usize] += 1,
                Ok(()) if policy.organization_budgets(organization).is_empty() => {}
                Ok(()) => drop(organizations.insert(organization)),
            }
        }
        let submission = Submission {
            caller: caller.map(Into::into),
            idempotency_key: idempotency_key.map(Into::into),
            report: report.build(),
            organizations: organizations.into_iter().map(Into::into).collect(),
        };
        (Self { submission, policy, until_counted: None }, skipped)
    }
}

/// A report of usage that was not counted whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// The rules refuse it.
    #[error(transparent)]
    Refused(#[from] ReportRefusal),
    /// The store cannot answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// A granted borrow on its way to the caller.
#[derive(Debug)]
pub struct Borrowed {
    /// What was granted.
    pub grant: Grant,
    /// Takes the lease back unless the answer gets away.
    pub delivery: Delivery,
}

/// The promise that a borrow nobody hears of takes no slot.
///
/// It travels with the answer. Dropped before [`Delivery::complete`], it returns the lease at
/// once: the caller was gone before the answer was handed to the transport, so nobody knows the
/// key. A lease that several tries of one borrow were granted is returned when the last of their
/// answers is lost, and never once one of them got away.
#[must_use = "dropping it takes the lease back"]
pub struct Delivery {
    pending: Option<Pending>,
}

struct Pending {
    store: Arc<dyn TakeBack>,
    id: LeaseId,
    borrow_id: Option<BorrowId>,
}

/// What a store does about the answers of its grants. Neither method waits.
pub(crate) trait TakeBack: Send + Sync {
    /// The answer was handed to the transport.
    fn delivered(&self, id: LeaseId, borrow_id: Option<BorrowId>);

    /// The answer is lost.
    fn take_back(&self, id: LeaseId, borrow_id: Option<BorrowId>);
}

impl Delivery {
    /// The promise for the lease `id` of `store`.
    pub(crate) fn pending(
        store: Arc<dyn TakeBack>,
        id: LeaseId,
        borrow_id: Option<BorrowId>,
    ) -> Self {
        Self { pending: Some(Pending { store, id, borrow_id }) }
    }

    /// A promise that is kept already: an earlier answer with the same lease got away.
    pub(crate) const fn done() -> Self {
        Self { pending: None }
    }

    /// Says that the answer was handed to the transport: the lease is the caller's now.
    pub fn complete(mut self) {
        if let Some(Pending { store, id, borrow_id }) = self.pending.take() {
            store.delivered(id, borrow_id);
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Some(Pending { store, id, borrow_id }) = self.pending.take() {
            store.take_back(id, borrow_id);
        }
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lease = self.pending.as_ref().map(|pending| pending.id);
        f.debug_struct("Delivery").field("pending", &lease).finish()
    }
}
