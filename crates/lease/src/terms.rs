//! The terms of one borrow, and the answers of the ledger.

use std::time::Duration;

use crate::budget::{Budget, BudgetSpent, WallTime};
use crate::clock::Timestamp;
use crate::id::LeaseId;
use crate::policy::Policy;
use crate::pool::PoolState;
use crate::revocation::RevokedFor;
use crate::scope::Scope;

/// The limits of one borrow: `None` is no limit, `Some(0)` admits nobody.
///
/// The limit of a trace is not among them: the request itself carries it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Of all leases of the service.
    pub service: Option<u64>,
    /// Of the leases of the organization and service.
    pub organization: Option<u64>,
    /// Of the leases of the organization, service and API key.
    pub api_key: Option<u64>,
}

/// Everything the policy says about one borrow.
///
/// Terms are an argument of each borrow and never part of the table, so a changed policy applies
/// to the next call, and a lowered limit ends no lease.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// The limits.
    pub limits: Limits,
    /// How long the lease lives without a keep-alive; kept with the lease.
    pub ttl: Duration,
    /// The minimal life that the borrower is told. The rules do not enforce it.
    pub minimal_life: Duration,
    /// Whether limits and budgets are counted and reported, but refuse nobody.
    pub observe: bool,
    /// The usage budgets of the organization.
    pub budgets: &'a [Budget],
    /// The wall clock, which budget windows follow; ignored without budgets.
    pub wall: WallTime,
    /// The bound on services of the indexer that have no entry in the policy, where the service of
    /// the borrow is one of them.
    pub unnamed: Option<UnnamedServices<'a>>,
    /// The number of the policy that they come from. See
    /// [`Ledger::refuse_terms_before`](crate::Ledger::refuse_terms_before).
    pub policy: u64,
}

/// How many services without an entry in the policy one indexer may hold leases of at once.
#[derive(Clone, Copy, Debug)]
pub struct UnnamedServices<'a> {
    /// The most services.
    pub max: u64,
    /// Knows which services have an entry by now.
    pub policy: &'a dyn Policy,
}

impl Default for Terms<'_> {
    /// No limits, no budgets, a TTL of 60 s and a minimal life of 5 s, by the policy with the number 0.
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            ttl: Duration::from_secs(60),
            minimal_life: Duration::from_secs(5),
            observe: false,
            budgets: &[],
            wall: WallTime::default(),
            unnamed: None,
            policy: 0,
        }
    }
}

/// A granted borrow.
#[derive(Clone, Debug, PartialEq)]
pub struct Grant {
    /// The key of the lease.
    pub id: LeaseId,
    /// How long it lives without a keep-alive.
    pub ttl: Duration,
    /// The pool after the borrow.
    pub pool: PoolState,
    /// Whether the lease was there already, from an earlier try under the same borrow id.
    pub replayed: bool,
    /// What would have refused the borrow if its service were not observed.
    pub observed: Option<Box<Refusal>>,
}

/// A borrow that was not granted. Nothing changed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// A usage budget of the organization is spent.
    #[error(transparent)]
    BudgetSpent(BudgetSpent),
    /// A limit is reached.
    #[error(transparent)]
    Denied(Denied),
    /// The session of the worker's trace was revoked, and the trace has no other that is live.
    #[error("the session of the trace has ended: {0}")]
    Revoked(RevokedFor),
    /// The table holds as many leases as this server may hold.
    #[error("the server holds {max_leases} leases, its own limit")]
    Full {
        /// The limit.
        max_leases: u64,
    },
    /// The ids of all leases take up as many bytes as they may on this server.
    #[error("the ids of all leases take up {max_id_bytes} bytes, the most of max_id_bytes")]
    IdsFull {
        /// The most.
        max_id_bytes: u64,
    },
    /// The indexer holds leases of as many services without an entry in the policy as it may.
    #[error(
        "the caller holds leases of {max} services that the policy does not name, the most of \
         max_unnamed_services"
    )]
    TooManyServices {
        /// The most.
        max: u64,
    },
    /// There is no room to remember the borrow id, or a revocation of the lease later.
    #[error(transparent)]
    MemoryFull(#[from] MemoryFull),
    /// Too many leases of the trace have ended and are still in the table, so the trace of the borrow is
    /// not known yet. A moment later the borrow can be decided.
    #[error("the server is still taking out leases of the trace that have ended")]
    Behind,
    /// The terms come from a policy that another policy has replaced. The borrow has to be decided under
    /// the new one.
    #[error("the policy has changed meanwhile")]
    OldTerms,
    /// The borrow id names another request.
    #[error("x-borrow-id names a borrow with other fields")]
    BorrowIdReused,
    /// The lease of this borrow id has ended, or was returned before this try of it arrived: one
    /// borrow id gets one lease.
    #[error("the lease of this x-borrow-id has ended")]
    BorrowEnded,
}

/// An indexer has the most facts remembered that it may have. No fact is forgotten early to make room.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{most} {memory} of {} are remembered, the most there may be",
    indexer.as_deref().map_or("callers without a name".to_owned(), |name| format!("indexer {name:?}"))
)]
pub struct MemoryFull {
    /// The kind of fact.
    pub memory: Remembers,
    /// The indexer; `None` for callers without a name.
    pub indexer: Option<Box<str>>,
    /// How many that are.
    pub most: u64,
}

/// What a ledger remembers for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remembers {
    /// The ids of borrows, for one TTL.
    BorrowIds,
    /// The idempotency keys of reports, for ten minutes.
    IdempotencyKeys,
    /// Why leases were revoked, for ten minutes or ten TTLs.
    Revocations,
}

impl std::fmt::Display for Remembers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::BorrowIds => "borrow ids",
            Self::IdempotencyKeys => "idempotency keys",
            Self::Revocations => "revocations",
        })
    }
}

/// A limit that is reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {scope} limit is reached: {active}/{max}")]
pub struct Denied {
    /// Which limit.
    pub scope: Scope,
    /// How many leases the scope holds.
    pub active: u64,
    /// How many it may hold.
    pub max: u64,
    /// The pool, unchanged.
    pub pool: PoolState,
}

/// What a keep-alive answers.
#[derive(Clone, Debug, PartialEq)]
pub enum KeptAlive {
    /// The lease has its full TTL again.
    Extended {
        /// That TTL.
        ttl: Duration,
    },
    /// There is no such lease, or it was returned.
    Failed,
    /// The lease was revoked.
    Revoked(RevokedFor),
}

/// What a release answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// There is no such lease.
    Missing,
    /// The lease is gone and its slot free.
    Returned,
    /// The lease is younger than the minimal life asked for and counts until it reaches it.
    Lingers {
        /// When it ends.
        until: Timestamp,
    },
}
