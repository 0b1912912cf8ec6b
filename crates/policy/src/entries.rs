//! The entries of a policy file, with all names resolved.

use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use lease::{Budget, Limits};

use crate::indexers::Indexers;
use crate::service_id::ServiceId;

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
    pub(crate) plans: Vec<Plan>,
    pub(crate) organizations: Table<Organization>,
    pub(crate) api_keys: Table<ApiKey>,
    pub(crate) indexers: Indexers,
}

#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) name: Box<str>,
    pub(crate) limits: Limits,
    pub(crate) ttl: Duration,
    pub(crate) minimal_life: Duration,
    pub(crate) observe: bool,
}

/// Ceilings by service.
#[derive(Debug, Default)]
pub(crate) struct ServiceLimits(Box<[(ServiceId, u64)]>);

impl ServiceLimits {
    pub(crate) fn get(&self, service: ServiceId) -> Option<u64> {
        let at = self.0.binary_search_by_key(&service, |(id, _)| *id).ok()?;
        Some(self.0[at].1)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (ServiceId, u64)> {
        self.0.iter().copied()
    }
}

/// Each service may occur once, in any order.
impl FromIterator<(ServiceId, u64)> for ServiceLimits {
    fn from_iter<I: IntoIterator<Item = (ServiceId, u64)>>(limits: I) -> Self {
        let mut limits: Box<[_]> = limits.into_iter().collect();
        limits.sort_unstable();
        Self(limits)
    }
}

#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) name: Box<str>,
    pub(crate) limits: ServiceLimits,
    pub(crate) budgets: Box<[Budget]>,
}

#[derive(Debug)]
pub(crate) struct Organization {
    pub(crate) plan: Option<usize>,
    pub(crate) limits: ServiceLimits,
    pub(crate) disabled: bool,
}

#[derive(Debug)]
pub(crate) struct ApiKey {
    pub(crate) limits: ServiceLimits,
    pub(crate) disabled: bool,
}
