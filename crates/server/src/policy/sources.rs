//! Which of several entries speaks, and so where each number comes from.
//!
//! The calls and the explanations go the same way: a number and its source cannot disagree.

use lease::Budget;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::entries::{ApiKey, Organization, Plan, ServiceId};
use super::overlay::Set;
use super::overrides::{OverrideKey, Subject};
use super::{Indexer, Policy};

/// Where a number or a switch of the policy in force comes from. The first that says something wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
    /// The entry `default`, for a service without one of its own.
    Default,
    /// Nothing says anything.
    Nothing,
}

impl Source {
    /// Its name in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Override => "override",
            Self::Own => "own",
            Self::Plan => "plan",
            Self::Service => "service",
            Self::Default => "default",
            Self::Nothing => "nothing",
        }
    }

    /// What sets it, in words: `40 by its own entry`.
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

/// All that is said about one organization or API key: what was set, and its own entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct About<'p, E> {
    set: Option<&'p Set>,
    own: Option<&'p E>,
}

impl<'p> About<'p, Organization> {
    pub(super) fn is_disabled(&self) -> (bool, Source) {
        switch(self.set, self.own.is_some_and(|own| own.disabled))
    }

    pub(super) fn plan(&self, policy: &'p Policy) -> Option<&'p Plan> {
        self.own.and_then(|own| own.plan).map(|plan| &policy.entries.plans[plan])
    }

    pub(super) fn ceiling(&self, policy: &'p Policy, service: ServiceId) -> (Option<u64>, Source) {
        if let Some(max) = self.set.and_then(|set| set.limits.get(service)) {
            return (Some(max), Source::Override);
        }
        if let Some(max) = self.own.and_then(|own| own.limits.get(service)) {
            return (Some(max), Source::Own);
        }
        if let Some(max) = self.plan(policy).and_then(|plan| plan.limits.get(service)) {
            return (Some(max), Source::Plan);
        }
        policy.of_service(service, policy.entries.services[service.index()].limits.organization)
    }
}

impl About<'_, ApiKey> {
    pub(super) fn is_disabled(&self) -> (bool, Source) {
        switch(self.set, self.own.is_some_and(|own| own.disabled))
    }

    pub(super) fn ceiling(&self, policy: &Policy, service: ServiceId) -> (Option<u64>, Source) {
        if let Some(max) = self.set.and_then(|set| set.limits.get(service)) {
            return (Some(max), Source::Override);
        }
        if let Some(max) = self.own.and_then(|own| own.limits.get(service)) {
            return (Some(max), Source::Own);
        }
        policy.of_service(service, policy.entries.services[service.index()].limits.api_key)
    }
}

fn switch(set: Option<&Set>, own: bool) -> (bool, Source) {
    match set.and_then(|set| set.disabled) {
        Some(disabled) => (disabled, Source::Override),
        None => (own, if own { Source::Own } else { Source::Nothing }),
    }
}

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

/// What the policy says, and why: for whoever explains it. Calls get [`Policy::terms`].
impl Policy {
    /// The ceiling over the pool of `organization` in `service`, and where it comes from.
    ///
    /// ```
    /// use tgm_session_server::Policy;
    /// use tgm_session_server::policy::Source;
    ///
    /// let policy = Policy::built_in();
    /// assert_eq!(policy.ceiling("acme", "t1r"), (Some(10), Source::Service));
    /// assert_eq!(policy.ceiling("acme", "t9"), (Some(10), Source::Default));
    /// ```
    pub fn ceiling(&self, organization: &str, service: &str) -> (Option<u64>, Source) {
        match self.service(service) {
            Some(service) => self.organization(organization).ceiling(self, service),
            None => (None, Source::Nothing),
        }
    }

    /// The ceiling over the leases of one organization with `api_key` in `service`, and where it
    /// comes from.
    pub fn api_key_ceiling(&self, api_key: &str, service: &str) -> (Option<u64>, Source) {
        match self.service(service) {
            Some(service) => self.api_key(api_key).ceiling(self, service),
            None => (None, Source::Nothing),
        }
    }

    /// Whether `organization` is disabled, and where that comes from.
    pub fn organization_disabled(&self, organization: &str) -> (bool, Source) {
        self.organization(organization).is_disabled()
    }

    /// Whether `api_key` is disabled, and where that comes from.
    pub fn api_key_disabled(&self, api_key: &str) -> (bool, Source) {
        self.api_key(api_key).is_disabled()
    }

    /// The name of the plan of `organization`.
    pub fn plan_of(&self, organization: &str) -> Option<&str> {
        self.organization(organization).plan(self).map(|plan| &*plan.name)
    }

    /// Whether the file or an operator says something about `organization`.
    pub fn knows_organization(&self, organization: &str) -> bool {
        let About { set, own } = self.organization(organization);
        set.is_some() || own.is_some()
    }

    /// Whether the file or an operator says something about `api_key`.
    pub fn knows_api_key(&self, api_key: &str) -> bool {
        let About { set, own } = self.api_key(api_key);
        set.is_some() || own.is_some()
    }

    /// The organizations that the file or an operator says something about, each once, in no order.
    pub fn organizations(&self) -> impl Iterator<Item = &str> {
        let own = &self.entries.organizations;
        let set = self.overlay.organizations.keys().filter(|name| !own.contains_key(*name));
        own.keys().chain(set).map(|name| &**name)
    }

    /// The API keys that the file or an operator says something about, each once, in no order.
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

    /// How many overrides lie over the file, those too that say nothing now.
    pub fn overrides(&self) -> usize {
        self.overlay.overrides
    }

    /// Whether an override says something: a limit over a service without an entry does not, until
    /// a file has the entry again.
    pub fn is_effective(&self, key: &OverrideKey) -> bool {
        key.service.as_deref().is_none_or(|service| self.has_entry(service))
    }

    /// Whether `service` has an entry of its own, or is `default` and there is one.
    pub fn has_entry(&self, service: &str) -> bool {
        self.entries.services_by_name.contains_key(service)
    }

    /// What is set for `subject` called `id` over `service` now, and where it comes from.
    pub(crate) fn ceiling_of(
        &self,
        subject: Subject,
        id: &str,
        service: &str,
    ) -> (Option<u64>, Source) {
        match subject {
            Subject::Organization => self.ceiling(id, service),
            Subject::ApiKey => self.api_key_ceiling(id, service),
        }
    }

    /// Whether `subject` called `id` is disabled.
    pub(crate) fn is_disabled(&self, subject: Subject, id: &str) -> bool {
        match subject {
            Subject::Organization => self.organization_disabled(id).0,
            Subject::ApiKey => self.api_key_disabled(id).0,
        }
    }

    pub(super) fn organization(&self, name: &str) -> About<'_, Organization> {
        let own = self.entries.organizations.get(name);
        About { set: self.overlay.organizations.get(name), own }
    }

    pub(super) fn api_key(&self, name: &str) -> About<'_, ApiKey> {
        About { set: self.overlay.api_keys.get(name), own: self.entries.api_keys.get(name) }
    }

    /// A number that the entry of a service says.
    fn of_service(&self, service: ServiceId, max: Option<u64>) -> (Option<u64>, Source) {
        let source = match max {
            None => Source::Nothing,
            Some(_) if self.entries.default_service == Some(service) => Source::Default,
            Some(_) => Source::Service,
        };
        (max, source)
    }

    fn name_of(&self, service: ServiceId) -> &str {
        &self.entries.services[service.index()].name
    }
}
