//! Explains a policy: its numbers and their sources, and a summary of its file.

use lease::Budget;

use crate::entries::{SubjectEntry, Subjects, Table};
use crate::indexers::Indexer;
use crate::overrides::{OverrideKey, Subject};
use crate::policy::Policy;
use crate::services::{Service, ServiceId};
use crate::source::Source;

/// One plan of a policy.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PlanEntry<'p> {
    /// Its name.
    pub name: &'p str,
    /// Its limits of an organization, by service entry.
    pub limits: Vec<(&'p str, u64)>,
    /// Its usage budgets.
    pub budgets: &'p [Budget],
}

/// The services of a policy and the numbers of its other entries, without their names.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary<'p> {
    /// The service entries, in the order of their ids.
    pub services: &'p [Service],
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

/// The numbers of a policy and their sources, for explanations. Decisions use [`Policy::terms`].
impl Policy {
    /// The limit of the pool of `organization` in `service`, and its source.
    ///
    /// ```
    /// use policy::Policy;
    /// use policy::Source;
    ///
    /// let policy = Policy::built_in();
    /// assert_eq!(policy.limit("acme", "t1r"), (Some(10), Source::Service));
    /// assert_eq!(policy.limit("acme", "t9"), (Some(10), Source::Default));
    /// ```
    pub fn limit(&self, organization: &str, service: &str) -> (Option<u64>, Source) {
        self.limit_of(Subject::Organization, organization, service)
    }

    /// The limit of the subject `id` in `service`, and its source.
    pub fn limit_of(&self, subject: Subject, id: &str, service: &str) -> (Option<u64>, Source) {
        match self.service(service) {
            Some(service) => self.about(subject, id).limit(service),
            None => (None, Source::Nothing),
        }
    }

    /// Whether the subject `id` is disabled, and the source of that.
    pub fn disabled_by(&self, subject: Subject, id: &str) -> (bool, Source) {
        self.about(subject, id).is_disabled()
    }

    /// The name of the plan of `organization`.
    pub fn plan_of(&self, organization: &str) -> Option<&str> {
        self.about(Subject::Organization, organization).plan().map(|plan| &*plan.name)
    }

    /// Whether the subject `id` has an entry or an override.
    pub fn is_known(&self, subject: Subject, id: &str) -> bool {
        let about = self.about(subject, id);
        about.overrides.is_some() || about.own.is_some()
    }

    /// The organizations or API keys with an entry or an override, each once, in no order.
    pub fn subjects(&self, subject: Subject) -> impl Iterator<Item = &str> {
        let own = self.entries.subjects.of(subject);
        let set = self.overlay.subjects.of(subject).keys().filter(|name| !own.contains_key(*name));
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

    /// A summary of the file, without overrides.
    ///
    /// ```
    /// use policy::Policy;
    ///
    /// let policy = Policy::built_in();
    /// let summary = policy.summary();
    /// assert!(summary.services.iter().any(|service| &*service.name == "t1r"));
    /// assert_eq!((summary.organizations, summary.indexers), (0, 0));
    /// ```
    pub fn summary(&self) -> Summary<'_> {
        let entries = &self.entries;
        let Subjects { organizations, api_keys } = &entries.subjects;
        let disabled = |table: &Table<SubjectEntry>| {
            table.values().filter(|entry| entry.disabled == Some(true)).count()
        };
        Summary {
            services: &entries.services,
            plans: entries.plans.len(),
            organizations: organizations.len(),
            disabled_organizations: disabled(organizations),
            api_keys: api_keys.len(),
            disabled_api_keys: disabled(api_keys),
            indexers: entries.indexers.iter().count(),
        }
    }

    fn name_of(&self, service: ServiceId) -> &str {
        &self.entries.services[service.index()].name
    }
}
