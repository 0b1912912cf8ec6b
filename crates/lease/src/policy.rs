//! What the ledger asks of a policy, beside the terms of each borrow.

use std::fmt;

use crate::budget::Budget;

/// What the ledger asks of a policy when it counts usage, ends leases, and counts services without
/// an entry. By default a policy knows nothing and disables nothing.
pub trait Policy: fmt::Debug + Sync {
    /// Whether the policy has an entry for the organization.
    fn knows(&self, _organization: &str) -> bool {
        false
    }

    /// The usage budgets of the organization.
    fn budgets(&self, _organization: &str) -> &[Budget] {
        &[]
    }

    /// Whether the organization is disabled.
    fn is_organization_disabled(&self, _organization: &str) -> bool {
        false
    }

    /// Whether the API key of that id is disabled.
    fn is_api_key_disabled(&self, _api_key: &str) -> bool {
        false
    }

    /// Whether the service has an entry of its own.
    fn is_named(&self, _service: &str) -> bool {
        false
    }

    /// Whether the service only observes: its limits and budgets are counted, refuse nobody and end
    /// no lease.
    fn observes(&self, _service: &str) -> bool {
        false
    }

    /// Whether leases of the organization may have to end: it is disabled, or has usage budgets.
    fn may_stop(&self, organization: &str) -> bool {
        self.is_organization_disabled(organization) || !self.budgets(organization).is_empty()
    }
}

/// Knows nothing and disables nothing.
impl Policy for () {}
