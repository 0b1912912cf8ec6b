//! What every call looks at and a reload swaps as one: the policy, and what is counted by its names.

use std::sync::Arc;

use crate::admin::metrics::{BorrowCounters, Metrics};
use crate::policy::{DEFAULT_SERVICE, Policy, ServiceId};
use crate::refusals::Refusals;

/// A policy in force.
#[derive(Debug)]
pub(crate) struct Live {
    /// Shared with reports of usage, which go on for a while after they took it.
    pub(crate) policy: Arc<Policy>,
    borrows: Vec<BorrowCounters>,
    borrows_unknown: BorrowCounters,
    /// Here, so that a call need not count a reference to it.
    pub(crate) refusals: Arc<Refusals>,
}

impl Live {
    pub(crate) fn new(policy: Policy, metrics: &Metrics, refusals: Arc<Refusals>) -> Self {
        let borrows = policy.services().map(|service| metrics.borrows_of(service)).collect();
        let borrows_unknown = metrics.borrows_of(DEFAULT_SERVICE);
        Self { borrows, borrows_unknown, refusals, policy: Arc::new(policy) }
    }

    /// The counters of the service entry, or of services that nobody speaks for.
    pub(crate) fn borrows(&self, service: Option<ServiceId>) -> &BorrowCounters {
        service.and_then(|id| self.borrows.get(id.index())).unwrap_or(&self.borrows_unknown)
    }
}
