//! Why leases were revoked, and which traces lost a session that way.

use std::fmt;
use std::sync::Arc;

use crate::budget::BudgetSpent;
use crate::clock::Timestamp;
use crate::digest::TraceDigest;
use crate::id::LeaseId;
use crate::lease::Reason;
use crate::records::Record;

/// Why a lease was revoked, with the facts.
///
/// ```
/// use lease::{Reason, RevokedFor};
///
/// let by_hand = RevokedFor::from(Reason::Operator);
/// assert_eq!(by_hand.to_string(), "revoked by an operator");
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct RevokedFor {
    /// The reason.
    pub reason: Reason,
    /// The budget, where one that was spent is the reason. Earlier versions of the store kept none.
    pub spent: Option<Arc<BudgetSpent>>,
}

impl From<Reason> for RevokedFor {
    fn from(reason: Reason) -> Self {
        Self { reason, spent: None }
    }
}

impl From<BudgetSpent> for RevokedFor {
    fn from(spent: BudgetSpent) -> Self {
        Self { reason: Reason::BudgetSpent, spent: Some(Arc::new(spent)) }
    }
}

impl fmt::Display for RevokedFor {
    /// Describes a spent budget as the refusal of a borrow does.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.spent {
            Some(spent) => spent.fmt(f),
            None => self.reason.fmt(f),
        }
    }
}

/// The revocation of one lease, as it is remembered.
#[derive(Clone, Debug, PartialEq)]
pub struct Revocation {
    /// The lease.
    pub id: LeaseId,
    /// The indexer that held it.
    pub indexer: Option<Box<str>>,
    /// Why.
    pub why: RevokedFor,
    /// The trace, if the lease was a session that had one: no worker is granted under it while no
    /// session of it is live.
    pub trace: Option<TraceDigest>,
    /// Until when it is remembered, in store time.
    pub until: Timestamp,
}

/// What a ledger remembers of a lease that was revoked.
#[derive(Debug)]
pub(crate) struct RevokedLease {
    pub(crate) id: LeaseId,
    pub(crate) why: RevokedFor,
    /// The number of the fact about its trace, or [`NONE`](crate::slab::NONE). The number may have
    /// been given to another fact since.
    pub(crate) trace_at: u32,
}

impl Record for RevokedLease {
    type Key<'a> = u64;

    fn key(&self) -> u64 {
        self.id.serial
    }
}

/// A trace of which a session was revoked: of several the one that is remembered longest.
#[derive(Debug)]
pub(crate) struct RevokedTrace {
    pub(crate) digest: TraceDigest,
    /// The serial number of the session.
    pub(crate) serial: u64,
}

impl Record for RevokedTrace {
    type Key<'a> = TraceDigest;

    fn key(&self) -> TraceDigest {
        self.digest
    }
}
