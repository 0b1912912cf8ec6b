//! What the ledger asks of a policy, beside the terms of each borrow.

use std::fmt;

use crate::budget::Budget;

/// What the ledger asks of a policy when it counts usage and ends leases.
pub trait Policy: fmt::Debug {
    /// Whether the policy has an entry for the organization.
    fn knows(&self, organization: &str) -> bool;

    /// The usage budgets of the organization.
    fn budgets(&self, organization: &str) -> &[Budget];

    /// Whether the organization is disabled.
    fn is_organization_disabled(&self, organization: &str) -> bool;

    /// Whether the API key of that id is disabled.
    fn is_api_key_disabled(&self, api_key: &str) -> bool;

    /// Whether the service only observes: its ceilings and budgets are counted, refuse nobody and end
    /// no lease.
    fn observes(&self, service: &str) -> bool;

    /// Whether leases of the organization may have to end: it is disabled, or has usage budgets.
    fn may_stop(&self, organization: &str) -> bool {
        self.is_organization_disabled(organization) || !self.budgets(organization).is_empty()
    }
}

/// Knows no organization and disables nothing.
impl Policy for () {
    fn knows(&self, _: &str) -> bool {
        false
    }

    fn budgets(&self, _: &str) -> &[Budget] {
        &[]
    }

    fn is_organization_disabled(&self, _: &str) -> bool {
        false
    }

    fn is_api_key_disabled(&self, _: &str) -> bool {
        false
    }

    fn observes(&self, _: &str) -> bool {
        false
    }
}
