//! Limits and switches, and where they come from.

pub use ::policy::Source;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A limit and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ceiling {
    /// The most leases at once; `null` is no limit, 0 admits no lease.
    pub max: Option<u64>,
    /// Where it comes from.
    pub source: Source,
}

/// A switch and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Disabled {
    /// Whether borrows are refused and leases end.
    pub disabled: bool,
    /// Where that comes from.
    pub source: Source,
}
