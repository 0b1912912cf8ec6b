//! What operators read: leases, pools and usage, without changing anything.
//!
//! A big table is read in *parts* of about a thousand records, so that a lock around the ledger
//! is free between two parts. Records keep their place until they are gone:
//! a walk over all parts sees everything once that was there all the time.

use std::collections::HashSet;
use std::time::Duration;

use crate::budget::Used;
use crate::change::Ends;
use crate::clock::Timestamp;
use crate::id::LeaseNumber;
use crate::lease::Kind;
use crate::pool::{MAX_TRACES_LISTED, PoolCount, PoolUse};
use crate::slab::RECORDS_PER_HOLD;
use crate::table::{Entry, Named, TracesRead};

use super::Ledger;

/// A live lease, without its key. Its names are borrowed from the ledger (`&str`) or owned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedLease<N = Box<str>> {
    /// Its number, which is not its key.
    pub number: LeaseNumber,
    /// Session or worker.
    pub kind: Kind,
    /// The indexer that holds it; `None` for one borrowed while no indexer was configured.
    pub indexer: Option<N>,
    /// The service it counts against.
    pub service: N,
    /// The organization it counts against.
    pub organization: N,
    /// The API key id it counts against; empty when there is none.
    pub api_key: N,
    /// The trace it runs under; empty when there is none that forms a scope.
    pub trace: N,
    /// How long it has lived.
    pub age: Duration,
    /// How long it lives without a keep-alive.
    pub ttl: Duration,
    /// How long until it ends unless it is kept alive.
    pub ends_in: Duration,
    /// Whether it was returned before its minimal life was over, and is lingering.
    pub lingers: bool,
    /// How many workers of its indexer run under its trace; 0 for a worker.
    pub workers: u64,
}

impl From<ListedLease<&str>> for ListedLease {
    fn from(lease: ListedLease<&str>) -> Self {
        Self {
            number: lease.number,
            kind: lease.kind,
            indexer: lease.indexer.map(Into::into),
            service: lease.service.into(),
            organization: lease.organization.into(),
            api_key: lease.api_key.into(),
            trace: lease.trace.into(),
            age: lease.age,
            ttl: lease.ttl,
            ends_in: lease.ends_in,
            lingers: lease.lingers,
            workers: lease.workers,
        }
    }
}

/// A reading of a pool that is under way; see [`Ledger::read_pool`].
#[derive(Debug, Default)]
pub struct PoolReading {
    pool: PoolUse,
    read: TracesRead,
    seen: HashSet<Box<str>>,
    parts: usize,
    /// Distinct traces of the pool.
    distinct: u64,
    done: bool,
}

impl PoolReading {
    /// Whether the pool was read to its end, or as far as is listed.
    pub const fn is_done(&self) -> bool {
        self.done
    }

    /// What was read.
    pub fn finish(self) -> PoolUse {
        let Self { mut pool, distinct, .. } = self;
        // A trace that moved while the pool was read may be out of order.
        pool.traces.sort_by(|(_, one), (_, other)| other.cmp(one));
        pool.traces.truncate(MAX_TRACES_LISTED);
        pool.omitted = distinct.saturating_sub(pool.traces.len() as u64);
        pool
    }
}

impl Ledger {
    /// How many changes there were, collected or not: it rises with every grant, end and start of
    /// lingering, and with every count of usage. Keep-alives change nothing.
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// How many leases have ended since the ledger was made, and how. A lease that is taken
    /// back because its answer was lost counts as returned.
    pub const fn ends(&self) -> Ends {
        self.ends
    }

    /// The live leases of one part of the table, from part 0 on; `None` past the last one.
    pub fn listed(&self, part: u32) -> Option<impl Iterator<Item = ListedLease<&str>>> {
        let leases = self.table.leases.part(part)?;
        let mut looks = RECORDS_PER_HOLD;
        let live = leases.filter(move |(_, entry)| self.ended_within(entry, &mut looks).is_none());
        Some(live.map(|(slot, entry)| self.listed_at(slot, entry)))
    }

    /// The live lease of that number.
    pub fn find(&self, number: LeaseNumber) -> Option<ListedLease<&str>> {
        let entry = self.table.leases.get(number.slot)?;
        let is_live = entry.id(number.slot).number() == number
            && self.ended_within(entry, &mut { RECORDS_PER_HOLD }).is_none();
        is_live.then(|| self.listed_at(number.slot, entry))
    }

    /// The counts of the pools of one part, from part 0 on; `None` past the last one.
    pub fn pools(&self, part: u32) -> Option<impl Iterator<Item = PoolCount<&str>>> {
        self.table.pool_counts(part)
    }

    /// What was used of each metric by an organization.
    pub fn used<'a>(&'a self, organization: &'a str) -> impl Iterator<Item = (&'a str, Used)> {
        self.usage.of(organization)
    }

    /// What was used, by organization and metric, of one part of the counts, from part 0 on; `None`
    /// past the last one.
    pub fn usage(&self, part: u32) -> Option<impl Iterator<Item = (&str, &str, Used)>> {
        self.usage.part(part)
    }

    fn listed_at(&self, slot: u32, entry: &Entry) -> ListedLease<&str> {
        let Named { indexer, service, organization, api_key, trace } = self.table.names(entry);
        ListedLease {
            number: entry.id(slot).number(),
            kind: entry.kind(),
            indexer,
            service,
            organization,
            api_key,
            trace,
            age: self.now.since(entry.granted_at),
            ttl: entry.ttl(),
            ends_in: entry.ends_at.since(self.now),
            lingers: entry.lingers(),
            workers: self.table.workers_under(entry),
        }
    }

    /// Reads the next part of a pool: at most half of [`RECORDS_PER_HOLD`] traces.
    ///
    /// It is called with the same `reading` until that is done. What changes between two parts may
    /// show as it was or as it is; the counts of a pool that is read in one part are exact.
    pub fn read_pool(
        &mut self,
        service: &str,
        organization: &str,
        reading: &mut PoolReading,
        now: Timestamp,
    ) {
        self.begin(now);
        let most = self.records_per_hold.div_ceil(2);
        let PoolReading { pool, read, seen, parts, distinct, done } = reading;
        (pool.leases, *distinct) = self.table.pool_size(organization, service);
        for (trace, leases) in self.table.next_traces(organization, service, most, read) {
            if seen.insert(trace.clone()) {
                pool.traces.push((trace, leases));
            }
        }
        *parts += 1;
        // A reading ends, however much changes meanwhile.
        let enough =
            pool.traces.len() >= MAX_TRACES_LISTED || *parts > 2 * MAX_TRACES_LISTED / most;
        *done = read.is_done() || enough;
    }
}
