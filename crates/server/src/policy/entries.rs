//! What a policy file says, with every name that points somewhere resolved.

use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use lease::{Budget, Limits};

use super::indexers::Indexers;

/// A table that is filled by operators only: nobody outside chooses its keys.
pub(super) type Table<T> = HashMap<Box<str>, T, RandomState>;

/// All entries of a file. They never change; another file makes other entries.
#[derive(Debug, Default)]
pub(super) struct Entries {
    pub(super) is_built_in: bool,
    pub(super) services: Vec<Service>,
    pub(super) services_by_name: Table<ServiceId>,
    pub(super) default_service: Option<ServiceId>,
    /// Most services that the default speaks for of which one indexer may hold leases at once.
    pub(super) max_unnamed_services: u64,
    pub(super) plans: Vec<Plan>,
    pub(super) organizations: Table<Organization>,
    pub(super) api_keys: Table<ApiKey>,
    pub(super) indexers: Indexers,
}

/// Names one service entry of one policy file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId(pub(super) u32);

impl ServiceId {
    /// The place of the entry in [`Policy::services`](super::Policy::services).
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Debug)]
pub(super) struct Service {
    pub(super) name: Box<str>,
    pub(super) limits: Limits,
    pub(super) ttl: Duration,
    pub(super) minimal_life: Duration,
    pub(super) observe: bool,
}

/// Ceilings by service.
#[derive(Debug, Default)]
pub(super) struct ServiceLimits(Box<[(ServiceId, u64)]>);

impl ServiceLimits {
    pub(super) fn get(&self, service: ServiceId) -> Option<u64> {
        let at = self.0.binary_search_by_key(&service, |(id, _)| *id).ok()?;
        Some(self.0[at].1)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (ServiceId, u64)> {
        self.0.iter().copied()
    }
}

/// Each service is there once; the order does not matter.
impl FromIterator<(ServiceId, u64)> for ServiceLimits {
    fn from_iter<I: IntoIterator<Item = (ServiceId, u64)>>(limits: I) -> Self {
        let mut limits: Box<[_]> = limits.into_iter().collect();
        limits.sort_unstable();
        Self(limits)
    }
}

#[derive(Debug)]
pub(super) struct Plan {
    pub(super) name: Box<str>,
    pub(super) limits: ServiceLimits,
    pub(super) budgets: Box<[Budget]>,
}

#[derive(Debug)]
pub(super) struct Organization {
    pub(super) plan: Option<usize>,
    pub(super) limits: ServiceLimits,
    pub(super) disabled: bool,
}

#[derive(Debug)]
pub(super) struct ApiKey {
    pub(super) limits: ServiceLimits,
    pub(super) disabled: bool,
}
