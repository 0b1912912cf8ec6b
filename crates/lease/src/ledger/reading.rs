//! What an operator reads: leases, pools and usage, without changing anything.
//!
//! A big table is read in *parts* of about a thousand records, so that a lock around the ledger
//! is free between two parts. Records keep their place until they are gone:
//! a walk over all parts sees everything once that was there all the time.

use std::time::Duration;

use crate::budget::Used;
use crate::change::Ends;
use crate::clock::Timestamp;
use crate::id::{LeaseId, LeaseNumber};
use crate::lease::Kind;
use crate::pool::PoolCount;
use crate::slab::RECORDS_PER_HOLD;
use crate::table::Entry;

use super::Ledger;

/// A live lease as it stands in the table: who holds it, what it counts against, when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder<'a> {
    /// The lease.
    pub id: LeaseId,
    /// Session or worker.
    pub kind: Kind,
    /// The indexer that holds the lease.
    pub indexer: Option<&'a str>,
    /// Its service.
    pub service: &'a str,
    /// Its organization.
    pub organization: &'a str,
    /// Its API key id; empty when there is none.
    pub api_key: &'a str,
    /// The trace it runs under; empty when there is none that forms a scope.
    pub trace: &'a str,
    /// When it was granted, in store time.
    pub granted_at: Timestamp,
    /// How long it lives without a keep-alive.
    pub ttl: Duration,
    /// When it ends unless it is kept alive, in store time.
    pub ends_at: Timestamp,
    /// Whether it was returned young and only lasts out its minimal life.
    pub lingers: bool,
}

impl Ledger {
    /// How many changes there were, collected or not: it rises with every grant, end and start of
    /// lingering, and with every count of usage. Keep-alives change nothing.
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// How many leases have ended since the ledger was made, and how. One that is taken back because
    /// nobody heard of it counts as returned.
    pub const fn ends(&self) -> Ends {
        self.ends
    }

    /// The live leases of one part of the table, from part 0 on; `None` past the last one.
    pub fn holders(&self, part: u32) -> Option<impl Iterator<Item = Holder<'_>>> {
        let leases = self.table.leases.part(part)?;
        let mut looks = RECORDS_PER_HOLD;
        let live = leases.filter(move |(_, entry)| self.ended_within(entry, &mut looks).is_none());
        Some(live.map(|(slot, entry)| self.holder_at(slot, entry)))
    }

    /// The live lease of that number.
    pub fn holder(&self, number: LeaseNumber) -> Option<Holder<'_>> {
        let entry = self.live_entry(number)?;
        Some(self.holder_at(number.slot, entry))
    }

    fn live_entry(&self, number: LeaseNumber) -> Option<&Entry> {
        let entry = self.table.leases.get(number.slot);
        let entry = entry.filter(|entry| entry.id(number.slot).number() == number)?;
        let mut looks = RECORDS_PER_HOLD;
        self.ended_within(entry, &mut looks).is_none().then_some(entry)
    }

    /// Whether the organization holds any lease.
    pub fn has_leases_of(&self, organization: &str) -> bool {
        self.table.has_leases_of(organization)
    }

    /// How many workers of its indexer run under the trace of a session; 0 for a worker, and for
    /// what is not there.
    pub fn workers_under(&self, number: LeaseNumber) -> u64 {
        self.live_entry(number).map_or(0, |entry| self.table.workers_under(entry))
    }

    /// The counts of the pools of one part, from part 0 on; `None` past the last one.
    pub fn pools(&self, part: u32) -> Option<impl Iterator<Item = PoolCount<'_>>> {
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

    pub(super) fn holder_at(&self, slot: u32, entry: &Entry) -> Holder<'_> {
        let names = self.table.names(entry);
        Holder {
            id: entry.id(slot),
            kind: entry.kind(),
            indexer: names.indexer,
            service: names.service,
            organization: names.organization,
            api_key: names.api_key,
            trace: names.trace,
            granted_at: entry.granted_at,
            ttl: entry.ttl(),
            ends_at: entry.ends_at,
            lingers: entry.lingers(),
        }
    }
}
