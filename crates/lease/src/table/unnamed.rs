//! The services of each indexer that have no entry in the policy.

use std::collections::HashMap;

use crate::slab::RECORDS_PER_HOLD;

/// How many leases an indexer holds of each service that the policy did not name at their grant.
///
/// After a restart the service of every lease counts as unnamed until the next check, because no policy
/// is known then.
#[derive(Debug, Default)]
pub(crate) struct Unnamed(HashMap<u32, HashMap<u32, u32>>);

impl Unnamed {
    /// Counts one more lease.
    pub(super) fn enter(&mut self, indexer: u32, service: u32) {
        *self.0.entry(indexer).or_default().entry(service).or_insert(0) += 1;
    }

    /// Counts one lease less.
    pub(super) fn leave(&mut self, indexer: u32, service: u32) {
        let Some(services) = self.0.get_mut(&indexer) else { return };
        // None, when the service was named meanwhile.
        let Some(leases) = services.get_mut(&service) else { return };
        *leases -= 1;
        if *leases == 0 {
            services.remove(&service);
            if services.is_empty() {
                self.0.remove(&indexer);
            }
        }
    }

    /// Whether the indexer may hold a lease of `service`, where it may hold those of `max` services.
    /// Services that turn out to have a name count no more.
    pub(crate) fn has_room(
        &mut self,
        indexer: u32,
        service: u32,
        max: u64,
        is_named: impl Fn(u32) -> bool,
    ) -> bool {
        let Some(services) = self.0.get_mut(&indexer) else { return max > 0 };
        if services.contains_key(&service) || (services.len() as u64) < max {
            return true;
        }
        let named: Vec<u32> = services
            .keys()
            .copied()
            .take(RECORDS_PER_HOLD)
            .filter(|&other| is_named(other))
            .collect();
        for other in named {
            services.remove(&other);
        }
        (services.len() as u64) < max
    }

    /// What is counted, for an audit.
    pub(super) fn counts(&self) -> impl Iterator<Item = ((u32, u32), u32)> {
        self.0.iter().flat_map(|(&indexer, services)| {
            services.iter().map(move |(&service, &leases)| ((indexer, service), leases))
        })
    }
}
