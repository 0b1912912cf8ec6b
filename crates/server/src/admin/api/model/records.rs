//! Refused borrows, and the audit list.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

pub use crate::refusals::Refusals;

/// How to list refusals.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct RefusalsQuery {
    /// Only of this organization.
    #[param(max_length = 256)]
    pub organization: Option<String>,
    /// How many to list at most; 100 by default.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<u32>,
}

/// The latest refused borrows, the latest first. The server keeps 1,000 of them, in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RefusalPage {
    /// The refusals.
    pub refusals: Vec<Refusal>,
}

/// A refused borrow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Refusal {
    /// When.
    pub at: i64,
    /// The organization of the borrow.
    pub organization: String,
    /// The service of the borrow.
    pub service: String,
    /// The API key id of the borrow.
    pub api_key: String,
    /// The trace id of the borrow.
    pub trace: String,
    /// The cause: `service`, `organization`, `api_key`, `trace`, `budget` or `disabled`.
    pub scope: String,
    /// The reason in words, as in the answer to the caller.
    pub reason: String,
    /// How many leases counted against the limit; `null` when no limit refused it.
    pub active: Option<u64>,
    /// The limit; `null` when no limit refused it.
    pub max: Option<u64>,
    /// Whether it was granted, because the service is only observed.
    pub observed: bool,
}

/// How to list the audit entries.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct AuditQuery {
    /// Only entries with a lower number than this: the lowest number of the page before.
    #[param(maximum = 9_007_199_254_740_991_u64)]
    pub before: Option<u64>,
    /// How many to list at most; 100 by default.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<u32>,
}

/// Audit entries, the latest first. The server keeps 10,000 of them, durably.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditPage {
    /// The entries.
    pub entries: Vec<AuditEntry>,
}

/// One act of an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditEntry {
    /// Its number. Later entries have higher numbers.
    pub number: u64,
    /// When.
    pub at: i64,
    /// Where it came from: the address of the caller, or `signal` or `file` for a reload.
    pub from: String,
    /// A description of the change.
    pub action: String,
    /// Why, as the operator wrote it.
    pub note: String,
    /// How many leases it ended.
    pub ended: u64,
}
