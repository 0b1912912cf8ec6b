//! A summary of a policy file.

use std::time::Duration;

use crate::entries::Service;
use crate::policy::Policy;

/// The services of a policy and the numbers of its other entries, without their names.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary<'p> {
    /// The service entries, in the order of their ids.
    pub services: Vec<ServiceSummary<'p>>,
    /// How many plans there are.
    pub plans: usize,
    /// How many organizations have an entry of their own.
    pub organizations: usize,
    /// How many of those are disabled.
    pub disabled_organizations: usize,
    /// How many API keys have an entry of their own.
    pub api_keys: usize,
    /// How many of those are disabled.
    pub disabled_api_keys: usize,
    /// How many indexers there are; without any, callers need no key.
    pub indexers: usize,
}

/// One service entry. A ceiling that is absent is `None`; one of 0 admits nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServiceSummary<'p> {
    /// The name of the entry.
    pub name: &'p str,
    /// The ceiling over an organization that has none of its own.
    pub max_per_organization: Option<u64>,
    /// The ceiling over an API key that has none of its own.
    pub max_per_api_key: Option<u64>,
    /// The ceiling over the whole service.
    pub max_total: Option<u64>,
    /// How long a lease lives without a keep-alive.
    pub ttl: Duration,
    /// The minimal life that clients are told.
    pub minimal_life: Duration,
    /// Whether ceilings and budgets are counted but refuse nobody.
    pub observe: bool,
}

impl<'p> From<&'p Service> for ServiceSummary<'p> {
    fn from(service: &'p Service) -> Self {
        Self {
            name: &service.name,
            max_per_organization: service.limits.organization,
            max_per_api_key: service.limits.api_key,
            max_total: service.limits.service,
            ttl: service.ttl,
            minimal_life: service.minimal_life,
            observe: service.observe,
        }
    }
}

impl Policy {
    /// A summary of the file, without overrides.
    ///
    /// ```
    /// use policy::Policy;
    ///
    /// let policy = Policy::built_in();
    /// let summary = policy.summary();
    /// assert!(summary.services.iter().any(|service| service.name == "t1r"));
    /// assert_eq!((summary.organizations, summary.indexers), (0, 0));
    /// ```
    pub fn summary(&self) -> Summary<'_> {
        let entries = &self.entries;
        Summary {
            services: entries.services.iter().map(ServiceSummary::from).collect(),
            plans: entries.plans.len(),
            organizations: entries.organizations.len(),
            disabled_organizations: entries.organizations.values().filter(|o| o.disabled).count(),
            api_keys: entries.api_keys.len(),
            disabled_api_keys: entries.api_keys.values().filter(|key| key.disabled).count(),
            indexers: entries.indexers.iter().count(),
        }
    }
}
