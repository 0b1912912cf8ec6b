//! What changed in a ledger, as a store has to keep it.

use crate::budget::Used;
use crate::clock::Timestamp;
use crate::id::{BorrowId, LeaseId};
use crate::lease::{Lease, Reason};
use crate::revocation::Revocation;

/// One change, in the order applied.
///
/// A store that keeps what the changes say and gives it back through [`Ledger::restore`] has the
/// same ledger again, but for the keep-alives, which are not changes: after a restart every lease
/// gets its full TTL. A snapshot has no form of its own: it is a list of changes too.
///
/// [`Ledger::restore`]: crate::Ledger::restore
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A lease was granted. Keep it under its id.
    Granted(Box<Lease>),
    /// A lease was returned young: [`Lease::lingers_until`] of `id` is `until` now.
    Lingers {
        /// The lease.
        id: LeaseId,
        /// When it ends.
        until: Timestamp,
    },
    /// A lease left the table. Keep it no longer.
    Ended {
        /// The lease.
        id: LeaseId,
        /// How it ended.
        end: End,
    },
    /// A trace ended, and not all of its leases are taken out yet. Keep it until [`Change::TraceGone`].
    TraceEnded(Box<TraceEnd>),
    /// All leases of a trace that ended are taken out. Keep its end no longer.
    TraceGone(Box<TraceEnd>),
    /// A lease was revoked. One that is past the time it is remembered needs no keeping.
    Revoked(Box<Revocation>),
    /// One metric of one organization has the usage counts `used` now.
    Used {
        /// The organization.
        organization: Box<str>,
        /// The metric.
        metric: Box<str>,
        /// The counts, absolute.
        used: Used,
    },
    /// The usage counts of one metric of one organization are of windows long past. Keep them no
    /// longer.
    Unused {
        /// The organization.
        organization: Box<str>,
        /// The metric.
        metric: Box<str>,
    },
    /// A usage report was counted as far as `applied`: so much of it counts nothing again under its
    /// idempotency key until `until`.
    Reported {
        /// The indexer that reported.
        indexer: Option<Box<str>>,
        /// Its idempotency key.
        key: Box<str>,
        /// Until when it is remembered, in store time.
        until: Timestamp,
        /// [`Report::fingerprint`](crate::Report::fingerprint); `None` from a version that kept
        /// none, which counted reports whole.
        fingerprint: Option<u64>,
        /// How many of its amounts are counted.
        applied: u64,
    },
    /// A borrow id gets no lease until `until`: its lease has ended, or the borrow was returned before
    /// it arrived.
    BorrowEnded {
        /// The indexer that borrowed.
        indexer: Option<Box<str>>,
        /// The borrow id.
        id: BorrowId,
        /// [`Request::fingerprint`](crate::Request::fingerprint) of the borrow, if it arrived.
        fingerprint: Option<u64>,
        /// Until when it is remembered, in store time.
        until: Timestamp,
    },
}

/// The end of a trace: every lease that an indexer had of an organization under that trace id, and
/// that was granted before a certain one, has ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TraceEnd {
    /// The indexer.
    pub indexer: Option<Box<str>>,
    /// The organization.
    pub organization: Box<str>,
    /// The trace id.
    pub trace: Box<str>,
    /// The leases of the trace that ended have lower serial numbers than this.
    pub before: u64,
}

/// How a lease left the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// It was returned, old enough.
    Returned,
    /// It was returned young and reached its minimal life.
    Lingered,
    /// Nobody kept it alive for a TTL.
    Expired,
    /// The last session of its trace ended.
    WithSession,
    /// It was revoked.
    Revoked(Reason),
}

impl End {
    /// Every way.
    pub const ALL: [Self; 8] = [
        Self::Returned,
        Self::Lingered,
        Self::Expired,
        Self::WithSession,
        Self::Revoked(Reason::Operator),
        Self::Revoked(Reason::OrganizationDisabled),
        Self::Revoked(Reason::ApiKeyDisabled),
        Self::Revoked(Reason::BudgetSpent),
    ];

    /// Its place in [`End::ALL`].
    const fn place(self) -> usize {
        match self {
            Self::Returned => 0,
            Self::Lingered => 1,
            Self::Expired => 2,
            Self::WithSession => 3,
            Self::Revoked(reason) => 4 + reason as usize,
        }
    }
}

/// How many leases left the table, by how they ended.
///
/// ```
/// use std::time::Duration;
/// use lease::{Config, End, Ledger, Request, Terms, Timestamp};
///
/// let mut ledger = Ledger::new(Config::default());
/// let terms = Terms { ttl: Duration::from_secs(60), ..Terms::default() };
/// ledger.borrow(&Request::session("t1r", "acme"), &terms, Timestamp::ZERO).unwrap();
/// ledger.expire(Timestamp::ZERO + Duration::from_secs(61));
/// assert_eq!(ledger.ends().of(End::Expired), 1);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends([u64; End::ALL.len()]);

impl Ends {
    /// How many ended that way.
    pub const fn of(&self, end: End) -> u64 {
        self.0[end.place()]
    }

    pub(crate) const fn add(&mut self, end: End) {
        self.0[end.place()] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_end_has_its_own_place() {
        for (place, end) in End::ALL.into_iter().enumerate() {
            assert_eq!(end.place(), place, "{end:?}");
        }
    }
}
