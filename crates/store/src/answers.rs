//! What operations of a store take and answer.

use std::any::Any;
use std::collections::BTreeSet;
use std::sync::Arc;

use lease::{MemoryFull, Refusal, Report, ReportRefusal, RevokedFor, Usage};
pub use lease::{Reported, Skipped, Submission};
use policy::Policy;
use policy::overrides::AuditEntry;

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
    pub(crate) fn unsure(mut self) -> Self {
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
            match report.add(organization, "", &[(metric, value)]) {
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
