//! What a limit counts.

use std::fmt;

/// What has a limit, in the order in which a borrow checks them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// All leases of one service.
    Service,
    /// All leases of one organization and service: the pool that `WorkersState` describes.
    Organization,
    /// All leases of one organization, service and API key.
    ApiKey,
    /// The workers of one indexer, organization, service and trace.
    Trace,
}

impl Scope {
    /// Every scope, in the order in which a borrow checks them.
    pub const ALL: [Self; 4] = [Self::Service, Self::Organization, Self::ApiKey, Self::Trace];

    /// The name on the wire (`x-denied-scope`) and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Organization => "organization",
            Self::ApiKey => "api_key",
            Self::Trace => "trace",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether a trace id forms a scope: an empty one or one of zeros alone does not.
///
/// ```
/// assert!(lease::forms_a_scope("4bf92f3577b34da6a3ce929d0e0e4736"));
/// assert!(!lease::forms_a_scope("00000000000000000000000000000000"));
/// ```
pub fn forms_a_scope(trace: &str) -> bool {
    trace.bytes().any(|byte| byte != b'0')
}
