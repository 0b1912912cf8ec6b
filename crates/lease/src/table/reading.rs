//! Looking at what the table holds.

use crate::lease::Kind;
use crate::pool::PoolCount;
use crate::slab::NONE;

use super::Table;
use super::entry::Entry;

/// The names of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Named<'a> {
    pub(crate) indexer: Option<&'a str>,
    pub(crate) service: &'a str,
    pub(crate) organization: &'a str,
    pub(crate) api_key: &'a str,
    pub(crate) trace: &'a str,
}

impl Table {
    pub(crate) fn names(&self, entry: &Entry) -> Named<'_> {
        let pool = &self.pools[entry.pool];
        Named {
            indexer: self.indexer_name(entry.indexer()),
            service: &self.services[pool.service].name,
            organization: &self.organizations[pool.organization].name,
            api_key: self.keys.get(entry.key).map_or("", |key| &key.name),
            trace: self.cells.get(entry.cell).map_or("", |cell| &self.traces[cell.trace].id),
        }
    }

    /// Other sessions of the trace of a session.
    pub(crate) fn sessions_beside(&self, entry: &Entry) -> u64 {
        let trace = self.traces.get(self.trace_of(entry));
        trace.map_or(0, |trace| u64::from(trace.sessions).saturating_sub(1))
    }

    /// The workers under the trace of a session; none for a worker.
    pub(crate) fn workers_under(&self, entry: &Entry) -> u64 {
        match (entry.kind(), self.cells.get(entry.cell)) {
            (Kind::Session, Some(cell)) => u64::from(self.traces[cell.trace].workers),
            _ => 0,
        }
    }

    /// The leases of a pool, and how many distinct traces they have.
    pub(crate) fn pool_size(&self, organization: &str, service: &str) -> (u64, u64) {
        let pool = self.pools.get(self.find_pool(organization, service));
        pool.map_or((0, 0), |pool| (pool.leases, pool.traces))
    }

    /// The counts of the pools of one part, as [`Slab::part`](crate::slab::Slab::part) cuts them.
    pub(crate) fn pool_counts(&self, part: u32) -> Option<impl Iterator<Item = PoolCount<&str>>> {
        let pools = self.pools.part(part)?;
        Some(pools.map(|(_, pool)| PoolCount {
            service: &*self.services[pool.service].name,
            organization: &*self.organizations[pool.organization].name,
            leases: pool.leases,
            sessions: u64::from(pool.sessions),
        }))
    }

    pub(crate) fn leases_by_service(&self) -> impl Iterator<Item = (&str, u64)> {
        self.services.iter().map(|(_, service)| (&*service.name, service.leases))
    }
}

/// Finding records. A record of [`NONE`] has none under it.
impl Table {
    pub(super) fn find_pool(&self, organization: &str, service: &str) -> u32 {
        match (self.organizations.find(organization), self.services.find(service)) {
            (NONE, _) | (_, NONE) => NONE,
            key => self.pools.find(key),
        }
    }

    pub(super) fn find_cell(&self, trace: u32, pool: u32) -> u32 {
        match (trace, pool) {
            (NONE, _) | (_, NONE) => NONE,
            key => self.cells.find(key),
        }
    }
}
