//! What a pool (organization, service) holds, read in parts.

use std::collections::HashSet;

use crate::clock::Timestamp;
use crate::pool::{MAX_TRACES_TOLD, PoolUse};
use crate::table::TracesRead;

use super::Ledger;

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
    /// Whether the pool was read to its end, or as far as is told.
    pub const fn is_done(&self) -> bool {
        self.done
    }

    /// What was read.
    pub fn finish(self) -> PoolUse {
        let Self { mut pool, distinct, .. } = self;
        // What moved while it was read may stand out of order.
        pool.traces.sort_by(|(_, one), (_, other)| other.cmp(one));
        pool.traces.truncate(MAX_TRACES_TOLD);
        pool.omitted = distinct.saturating_sub(pool.traces.len() as u64);
        pool
    }
}

impl Ledger {
    /// Reads the next part of a pool: at most half of [`RECORDS_PER_HOLD`] traces.
    ///
    /// It is called with the same `reading` until that is done. What changes between two parts may
    /// show as it was or as it is; a pool that is read in one part is told exactly.
    ///
    /// [`RECORDS_PER_HOLD`]: crate::RECORDS_PER_HOLD
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
        // However much moves meanwhile, a reading comes to an end.
        let enough = pool.traces.len() >= MAX_TRACES_TOLD || *parts > 2 * MAX_TRACES_TOLD / most;
        *done = read.is_done() || enough;
    }

    /// The counts of the pool (organization, service), read in one go.
    pub fn state(&mut self, service: &str, organization: &str, now: Timestamp) -> PoolUse {
        let mut reading = PoolReading::default();
        while !reading.is_done() {
            self.read_pool(service, organization, &mut reading, now);
        }
        reading.finish()
    }
}
