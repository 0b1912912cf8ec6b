//! Arguments and answers of the operations of a store.

use std::any::Any;
use std::collections::BTreeSet;
use std::sync::Arc;

use lease::{MemoryFull, Refusal, Report, ReportRefusal, RevokedFor, Usage};
pub use lease::{Reported, Skipped, Submission};
use policy::Policy;
use policy::overrides::AuditEntry;

/// The entry of the audit list that counts the leases that an operation ended.
#[derive(Clone, Debug)]
pub enum AuditNote {
    /// No entry: the operation was not requested by an operator.
    None,
    /// A new entry, which is recorded before the first lease ends.
    New(AuditEntry),
    /// The existing entry of this number.
    Existing(u64),
}

/// The result of enforcing a policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Enforced {
    /// How many leases were ended.
    pub ended: usize,
    /// The number of the entry of the audit list that counts them.
    pub entry: Option<u64>,
}

/// The store cannot answer now. The change may have been made or not.
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
    /// The disk takes too long to confirm changes. The change may still become durable; a borrow is
    /// taken back.
    #[error("the disk takes too long to confirm changes")]
    Stalled,
    /// Too many changes wait for the disk.
    #[error("too many changes wait for the disk")]
    Overloaded,
    /// The store is being closed.
    #[error("the server is stopping")]
    Closing,
    /// Another server of the fleet leads, or none does yet. The change was not made.
    #[error("this server does not lead its fleet")]
    Standby,
    /// This server leads its fleet, but its leadership could not be renewed in time. The change was not
    /// made.
    #[error("the database of the fleet does not answer")]
    Lapsed,
    /// As [`Unavailable::Lapsed`], because the database has no more room.
    #[error("the database of the fleet is full and refuses changes: the log says what to do")]
    Full,
    /// This server led its fleet, and its term ended while the change waited for the database. The next
    /// leader has the change, or it never happens.
    #[error("the leadership of this server ended before the database confirmed the change")]
    TermEnded,
}

impl Unavailable {
    /// Whether the change was certainly not made, because this server could not act as the leader of its
    /// fleet. The leader may be asked for it.
    pub const fn is_for_the_leader(self) -> bool {
        matches!(self, Self::Standby | Self::Lapsed | Self::Full)
    }
}

/// Why a borrow was not granted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BorrowError {
    /// The rules refuse it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store cannot answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// The places of a batch of keep-alives whose leases were not extended, in rising order.
///
/// The lease at a place that is not listed has its full TTL again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NotExtended {
    /// The lease is unknown, has ended, was returned, or is not the caller's.
    pub failed: Vec<u32>,
    /// The lease was revoked, and why.
    pub revoked: Vec<(u32, RevokedFor)>,
    /// The store cannot answer now; the leases are unchanged.
    pub unavailable: Vec<u32>,
}

impl NotExtended {
    /// How many places are listed.
    pub fn listed(&self) -> usize {
        self.failed.len() + self.revoked.len() + self.unavailable.len()
    }

    /// Moves all listed places to `unavailable`, because the changes that they reveal are not
    /// durable.
    pub(crate) fn into_unavailable(mut self) -> Self {
        self.unavailable.append(&mut self.failed);
        self.unavailable.extend(self.revoked.drain(..).map(|(place, _)| place));
        self.unavailable.sort_unstable();
        self
    }
}

/// Why a borrow was not returned by its id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    /// The borrow has not arrived, and the store has no room to remember its id.
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
    /// A value that is dropped once the report is counted or refused.
    pub until_counted: Option<Box<dyn Any + Send>>,
}

impl UsageReport {
    /// Returns the report of `usages`, and how many of them cannot be counted. The answer to the
    /// report names each organization with a budget, in the order of their names.
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

/// Why a report of usage was not counted, or only in part.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// The rules refuse it.
    #[error(transparent)]
    Refused(#[from] ReportRefusal),
    /// The store cannot answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}
