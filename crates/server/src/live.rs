//! The policy in force with its counters, which a reload replaces together.

use std::sync::Arc;

use lease::{Invalid, organization_of};
use policy::{DEFAULT_SERVICE, Policy, ServiceId};

use crate::metrics::{BorrowCounters, Metrics};
use crate::refusals::RefusalLog;

/// A policy in force.
#[derive(Debug)]
pub(crate) struct Live {
    /// Shared with reports of usage, which use it for a while.
    pub(crate) policy: Arc<Policy>,
    borrows: Vec<BorrowCounters>,
    borrows_without_entry: BorrowCounters,
    /// Here, so that a call does not need to clone a reference.
    pub(crate) refusals: Arc<RefusalLog>,
    default_organization: Option<Arc<str>>,
}

impl Live {
    pub(crate) fn new(
        policy: Policy,
        metrics: &Metrics,
        refusals: Arc<RefusalLog>,
        default_organization: Option<Arc<str>>,
    ) -> Self {
        let borrows = policy.services().map(|service| metrics.borrows_of(service)).collect();
        let borrows_without_entry = metrics.borrows_of(DEFAULT_SERVICE);
        let policy = Arc::new(policy);
        Self { policy, borrows, borrows_without_entry, refusals, default_organization }
    }

    /// A copy with another `policy`.
    pub(crate) fn with_policy(&self, policy: Policy, metrics: &Metrics) -> Self {
        Self::new(policy, metrics, self.refusals.clone(), self.default_organization.clone())
    }

    /// Returns the organization for which a call counts that names this one: the default organization,
    /// if the name is empty. Every call uses this, so that a session, its workers and its usage count
    /// for the same organization.
    pub(crate) fn organization<'a>(&'a self, named: &'a str) -> Result<&'a str, Invalid> {
        organization_of(named, self.default_organization.as_deref())
    }

    /// The counters of the service entry, or those of services without an entry.
    pub(crate) fn borrows(&self, service: Option<ServiceId>) -> &BorrowCounters {
        service.and_then(|id| self.borrows.get(id.index())).unwrap_or(&self.borrows_without_entry)
    }
}
