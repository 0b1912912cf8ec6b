//! Why leases were revoked, and which traces lost a session that way.

use std::fmt;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::budget::BudgetSpent;
use crate::records::Record;
use crate::types::{LeaseId, Reason, Timestamp};

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
    /// Says of a spent budget what the refusal of a borrow says of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.spent {
            Some(spent) => spent.fmt(f),
            None => self.reason.fmt(f),
        }
    }
}

/// Stands for the trace of an organization in 16 bytes: the first half of a SHA-256.
///
/// So a trace takes up the same room however long its ids are, and nobody finds ids that stand for
/// the trace of another. It is the same on every machine and in every release, because stores keep it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceDigest([u8; 16]);

impl TraceDigest {
    pub(crate) fn of(organization: &str, trace: &str) -> Self {
        // A byte that no UTF-8 text contains keeps the two texts apart.
        let digest = Sha256::new_with_prefix(organization).chain_update([0xff]).chain_update(trace);
        let digest: [u8; 32] = digest.finalize().into();
        let mut half = [0; 16];
        half.copy_from_slice(&digest[..16]);
        Self(half)
    }

    /// The bytes, for stores.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// Reads what [`TraceDigest::to_bytes`] wrote.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
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
    /// The number of what is remembered of its trace, which may be another's by now; or none.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_has_one_digest_for_ever_and_no_other_has_it() {
        let digest = TraceDigest::of("acme", "4bf92f3577b34da6a3ce929d0e0e4736");
        let kept = [
            0xbf, 0xd3, 0x93, 0x51, 0x36, 0x10, 0xff, 0xd3, 0xa8, 0x44, 0xe6, 0x3b, 0x1c, 0xe7,
            0x31, 0x5c,
        ];
        assert_eq!(digest.to_bytes(), kept);
        assert_eq!(TraceDigest::from_bytes(kept), digest);
        assert_ne!(TraceDigest::of("acm", "ee"), TraceDigest::of("acme", "e"));
    }
}
