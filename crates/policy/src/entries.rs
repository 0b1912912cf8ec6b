//! The entries of a policy file, with all names resolved.

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use lease::Budget;

use crate::indexers::Indexers;
use crate::overrides::Subject;
use crate::services::{Service, ServiceId, ServiceLimits};

/// A table with a fast hash. Only operators choose its keys, never callers.
pub(crate) type Table<T> = HashMap<Box<str>, T, RandomState>;

/// All entries of a file. They never change; a changed file has new entries.
#[derive(Debug, Default)]
pub(crate) struct Entries {
    pub(crate) is_built_in: bool,
    pub(crate) services: Vec<Service>,
    pub(crate) services_by_name: Table<ServiceId>,
    pub(crate) default_service: Option<ServiceId>,
    /// The most services without an entry of which one indexer may hold leases at once.
    pub(crate) max_unnamed_services: u64,
    /// In the order of their names.
    pub(crate) plans: Vec<Plan>,
    pub(crate) subjects: Subjects,
    pub(crate) indexers: Indexers,
}

#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) name: Box<str>,
    pub(crate) limits: ServiceLimits,
    pub(crate) budgets: Box<[Budget]>,
}

/// What a file, or the overrides, say about one organization or API key.
#[derive(Debug, Default)]
pub(crate) struct SubjectEntry {
    /// The position of its plan. API keys and overrides have none.
    pub(crate) plan: Option<usize>,
    pub(crate) limits: ServiceLimits,
    /// `None` where nothing is said: it is not disabled.
    pub(crate) disabled: Option<bool>,
}

/// Organizations and API keys by name.
#[derive(Debug, Default)]
pub(crate) struct Subjects {
    pub(crate) organizations: Table<SubjectEntry>,
    pub(crate) api_keys: Table<SubjectEntry>,
}

impl Subjects {
    pub(crate) const fn of(&self, subject: Subject) -> &Table<SubjectEntry> {
        match subject {
            Subject::Organization => &self.organizations,
            Subject::ApiKey => &self.api_keys,
        }
    }

    pub(crate) const fn of_mut(&mut self, subject: Subject) -> &mut Table<SubjectEntry> {
        match subject {
            Subject::Organization => &mut self.organizations,
            Subject::ApiKey => &mut self.api_keys,
        }
    }
}
