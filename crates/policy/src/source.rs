//! The source of a number of the policy.

use serde::{Deserialize, Serialize};

/// Where a limit or a switch of the policy in force comes from. The first source that sets it wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
            Self::Override => "an override",
            Self::Own => "its own entry",
            Self::Plan => "its plan",
            Self::Service => "the service",
            Self::Default => "the default service",
            Self::Nothing => "nothing",
        }
    }
}
