//! What every call looks at and a reload swaps as one: the policy, and what is counted by its names.

use crate::admin::metrics::{BorrowCounters, Metrics};
use crate::policy::{DEFAULT_SERVICE, Policy, ServiceId};

/// A policy in force.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) policy: Policy,
    borrows: Vec<BorrowCounters>,
    borrows_unknown: BorrowCounters,
}

impl Live {
    pub(crate) fn new(policy: Policy, metrics: &Metrics) -> Self {
        let borrows = policy.services().map(|service| metrics.borrows_of(service)).collect();
        Self { borrows, borrows_unknown: metrics.borrows_of(DEFAULT_SERVICE), policy }
    }

    /// The counters of the service entry, or of services that nobody speaks for.
    pub(crate) fn borrows(&self, service: Option<ServiceId>) -> &BorrowCounters {
        service.and_then(|id| self.borrows.get(id.index())).unwrap_or(&self.borrows_unknown)
    }
}
