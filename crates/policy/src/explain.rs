//! Explains a policy: its numbers and their sources.

use lease::Budget;

use crate::about::About;
use crate::indexers::Indexer;
use crate::overrides::{OverrideKey, Subject};
use crate::policy::Policy;
use crate::service_id::ServiceId;
use crate::source::Source;

/// One plan of a policy.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PlanEntry<'p> {
    /// Its name.
    pub name: &'p str,
    /// Its ceilings over an organization, by service entry.
    pub limits: Vec<(&'p str, u64)>,
    /// Its usage budgets.
    pub budgets: &'p [Budget],
}

/// The numbers of a policy and their sources, for explanations. Decisions use [`Policy::terms`].
impl Policy {
    /// The ceiling over the pool of `organization` in `service`, and its source.
    ///
    /// ```
    /// use policy::Policy;
    /// use policy::Source;
    ///
    /// let policy = Policy::built_in();
    /// assert_eq!(policy.ceiling("acme", "t1r"), (Some(10), Source::Service));
    /// assert_eq!(policy.ceiling("acme", "t9"), (Some(10), Source::Default));
    /// ```
    pub fn ceiling(&self, organization: &str, service: &str) -> (Option<u64>, Source) {
        match self.service(service) {
            Some(service) => self.organization(organization).ceiling(service),
            None => (None, Source::Nothing),
        }
    }

    /// The ceiling over the leases of one organization with `api_key` in `service`, and its source.
    pub fn api_key_ceiling(&self, api_key: &str, service: &str) -> (Option<u64>, Source) {
        match self.service(service) {
            Some(service) => self.api_key(api_key).ceiling(service),
            None => (None, Source::Nothing),
        }
    }

    /// Whether `organization` is disabled, and the source of that.
    pub fn organization_disabled(&self, organization: &str) -> (bool, Source) {
        self.organization(organization).is_disabled()
    }

    /// Whether `api_key` is disabled, and the source of that.
    pub fn api_key_disabled(&self, api_key: &str) -> (bool, Source) {
        self.api_key(api_key).is_disabled()
    }

    /// The name of the plan of `organization`.
    pub fn plan_of(&self, organization: &str) -> Option<&str> {
        self.organization(organization).plan().map(|plan| &*plan.name)
    }

    /// Whether `organization` has an entry or an override.
    pub fn knows_organization(&self, organization: &str) -> bool {
        let About { set, own, .. } = self.organization(organization);
        set.is_some() || own.is_some()
    }

    /// Whether `api_key` has an entry or an override.
    pub fn knows_api_key(&self, api_key: &str) -> bool {
        let About { set, own, .. } = self.api_key(api_key);
        set.is_some() || own.is_some()
    }

    /// The organizations with an entry or an override, each once, in no order.
    pub fn organizations(&self) -> impl Iterator<Item = &str> {
        let own = &self.entries.organizations;
        let set = self.overlay.organizations.keys().filter(|name| !own.contains_key(*name));
        own.keys().chain(set).map(|name| &**name)
    }

    /// The API keys with an entry or an override, each once, in no order.
    pub fn api_keys(&self) -> impl Iterator<Item = &str> {
        let own = &self.entries.api_keys;
        let set = self.overlay.api_keys.keys().filter(|name| !own.contains_key(*name));
        own.keys().chain(set).map(|name| &**name)
    }

    /// The plans, by name.
    pub fn plans(&self) -> impl Iterator<Item = PlanEntry<'_>> {
        self.entries.plans.iter().map(|plan| PlanEntry {
            name: &plan.name,
            limits: plan.limits.iter().map(|(id, max)| (self.name_of(id), max)).collect(),
            budgets: &plan.budgets,
        })
    }

    /// The names of the indexers.
    pub fn indexers(&self) -> impl Iterator<Item = &str> {
        self.entries.indexers.iter().map(Indexer::name)
    }

    /// The number of overrides, including those that have no effect now.
    pub fn overrides(&self) -> usize {
        self.overlay.overrides
    }

    /// Whether an override has an effect. A limit for a service without an entry has none until the
    /// file has this entry again.
    pub fn is_effective(&self, key: &OverrideKey) -> bool {
        key.service.as_deref().is_none_or(|service| self.has_entry(service))
    }

    /// Whether there is an entry named `service`.
    pub fn has_entry(&self, service: &str) -> bool {
        self.entries.services_by_name.contains_key(service)
    }

    /// The ceiling of the subject `id` in `service`, and its source.
    pub fn ceiling_of(&self, subject: Subject, id: &str, service: &str) -> (Option<u64>, Source) {
        match subject {
            Subject::Organization => self.ceiling(id, service),
            Subject::ApiKey => self.api_key_ceiling(id, service),
        }
    }

    /// Whether the subject `id` is disabled.
    pub fn is_disabled(&self, subject: Subject, id: &str) -> bool {
        match subject {
            Subject::Organization => self.organization_disabled(id).0,
            Subject::ApiKey => self.api_key_disabled(id).0,
        }
    }

    fn name_of(&self, service: ServiceId) -> &str {
        &self.entries.services[service.index()].name
    }
}
