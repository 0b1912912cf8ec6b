//! Limits and switches, and where they come from.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where a limit or a switch of the policy in force comes from. The first source that sets it wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// An operator set it through the API.
    Override,
    /// The organization's or API key's own entry in the policy file.
    Own,
    /// The organization's plan.
    Plan,
    /// The entry of the service.
    Service,
    /// The entry `default`, for a service without an entry.
    Default,
    /// No source sets it.
    Nothing,
}

impl Source {
    /// The source in words, as in `40 by its own entry`.
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::Override => policy::Source::Override,
            Self::Own => policy::Source::Own,
            Self::Plan => policy::Source::Plan,
            Self::Service => policy::Source::Service,
            Self::Default => policy::Source::Default,
            Self::Nothing => policy::Source::Nothing,
        }
        .in_words()
    }
}

/// A ceiling and where it comes from.
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
