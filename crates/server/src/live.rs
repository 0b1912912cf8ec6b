//! What every call looks at and a reload swaps as one: the policy, and what is counted by its names.

use std::sync::Arc;

use lease::{Invalid, organization_of};
use policy::{DEFAULT_SERVICE, Policy, ServiceId};

use crate::metrics::{BorrowCounters, Metrics};
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
    default_organization: Option<Arc<str>>,
}

impl Live {
    pub(crate) fn new(
        policy: Policy,
        metrics: &Metrics,
        refusals: Arc<Refusals>,
        default_organization: Option<Arc<str>>,
    ) -> Self {
        let borrows = policy.services().map(|service| metrics.borrows_of(service)).collect();
        let borrows_unknown = metrics.borrows_of(DEFAULT_SERVICE);
        let policy = Arc::new(policy);
        Self { policy, borrows, borrows_unknown, refusals, default_organization }
    }

    /// The same under another `policy`.
    pub(crate) fn under(&self, policy: Policy, metrics: &Metrics) -> Self {
        Self::new(policy, metrics, self.refusals.clone(), self.default_organization.clone())
    }

    /// The organization that whoever `named` this one counts for. Everything that comes from a
    /// caller asks here, so that a session, its workers and its usage meet under one name.
    pub(crate) fn organization<'a>(&'a self, named: &'a str) -> Result<&'a str, Invalid> {
        organization_of(named, self.default_organization.as_deref())
    }

    /// The counters of the service entry, or of services that nobody speaks for.
    pub(crate) fn borrows(&self, service: Option<ServiceId>) -> &BorrowCounters {
        service.and_then(|id| self.borrows.get(id.index())).unwrap_or(&self.borrows_unknown)
    }
}
