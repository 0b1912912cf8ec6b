//! What changed in a ledger, as a store has to keep it.

use crate::budget::Used;
use crate::types::{Lease, LeaseId, Reason, Timestamp};

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
    /// The reason a lease was revoked for is known until `until`; one past needs no keeping.
    Revoked {
        /// The lease.
        id: LeaseId,
        /// The indexer that held it.
        indexer: Option<Box<str>>,
        /// Why.
        reason: Reason,
        /// Until when the reason is told, in store time.
        until: Timestamp,
    },
    /// The usage counts of one metric of one organization stand at `used` now.
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
    /// A usage report was counted: its idempotency key counts nothing again until `until`.
    Reported {
        /// The indexer that reported.
        indexer: Option<Box<str>>,
        /// Its idempotency key.
        key: Box<str>,
        /// Until when it is remembered, in store time.
        until: Timestamp,
    },
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
