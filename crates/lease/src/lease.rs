//! What a lease is.

use std::fmt;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::id::{BorrowId, LeaseId};

/// The longest minimal life a return may ask for; a longer one is clamped to it.
pub const MAX_MINIMAL_LIFE: Duration = Duration::from_secs(600);

/// The longest TTL terms may set; a longer one is clamped to it.
pub const MAX_TTL: Duration = Duration::from_secs(7 * 24 * 3600);

/// A TTL as leases have it: in whole milliseconds, rounded up.
pub fn whole_milliseconds(ttl: Duration) -> u32 {
    u32::try_from(ttl.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX)
}

/// What a lease is the right to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// To run one stream.
    Session,
    /// To run one job under a stream.
    Worker,
}

/// Why a lease was revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// An operator ended it.
    Operator,
    /// Its organization is disabled.
    OrganizationDisabled,
    /// Its API key is disabled.
    ApiKeyDisabled,
    /// A usage budget of its organization is spent.
    BudgetSpent,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 4] =
        [Self::Operator, Self::OrganizationDisabled, Self::ApiKeyDisabled, Self::BudgetSpent];

    /// Why no lease of an organization and an API key may live, if one of them is disabled. Where both
    /// are, the organization is named.
    pub const fn of_disabled(organization: bool, api_key: bool) -> Option<Self> {
        match (organization, api_key) {
            (true, _) => Some(Self::OrganizationDisabled),
            (false, true) => Some(Self::ApiKeyDisabled),
            (false, false) => None,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Operator => "revoked by an operator",
            Self::OrganizationDisabled => "the organization is disabled",
            Self::ApiKeyDisabled => "the API key is disabled",
            Self::BudgetSpent => "a usage budget of the organization is spent",
        })
    }
}

/// Everything a store keeps of one lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its key.
    pub id: LeaseId,
    /// Session or worker.
    pub kind: Kind,
    /// The indexer that holds it; `None` for one borrowed while no indexer was configured.
    pub indexer: Option<Box<str>>,
    /// The service it counts against.
    pub service: Box<str>,
    /// The organization it counts against.
    pub organization: Box<str>,
    /// The API key id it counts against; empty when there is none.
    pub api_key: Box<str>,
    /// The trace it runs under; empty when there is none that forms a scope.
    pub trace: Box<str>,
    /// When it was granted, in store time.
    pub granted_at: Timestamp,
    /// How long it lives without a keep-alive, fixed at the grant.
    pub ttl: Duration,
    /// When it ends whatever happens, once it was returned younger than its minimal life.
    pub lingers_until: Option<Timestamp>,
    /// What the borrow was called and asked for, while a retry may still come.
    pub borrowed_as: Option<BorrowedAs>,
}

/// The part of a borrow that only its retries need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BorrowedAs {
    /// The caller's name for the borrow.
    pub id: BorrowId,
    /// [`Request::fingerprint`](crate::Request::fingerprint) of the borrow.
    pub fingerprint: u64,
}
