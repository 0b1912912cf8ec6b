//! What leases count against: one record, with its count, for each scope that holds a lease.

use std::num::NonZeroU32;

use compact_str::CompactString;

use crate::records::Record;
use crate::slab::NONE;

use super::links::{Heads, Links};

#[derive(Debug)]
pub(super) struct Service {
    pub(super) name: Box<str>,
    pub(super) leases: u64,
}

impl Record for Service {
    type Key<'a> = &'a str;

    fn key(&self) -> &str {
        &self.name
    }

    fn id_bytes(&self) -> u64 {
        self.name.len() as u64
    }
}

#[derive(Debug)]
pub(super) struct Organization {
    pub(super) name: CompactString,
    pub(super) pools: u32,
    /// The first of its pools.
    pub(super) head: u32,
}

impl Record for Organization {
    type Key<'a> = &'a str;

    fn key(&self) -> &str {
        &self.name
    }

    fn id_bytes(&self) -> u64 {
        self.name.len() as u64
    }
}

/// An organization's leases of one service.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) organization: u32,
    pub(super) service: u32,
    pub(super) leases: u64,
    /// Distinct traces among them, whichever indexer holds them.
    pub(super) traces: u64,
    pub(super) sessions: u32,
    /// Its sessions and its workers.
    pub(super) heads: Heads,
    pub(super) in_organization: Links,
    /// The levels of its traces with the most leases and with the fewest.
    pub(super) top: u32,
    pub(super) bottom: u32,
}

impl Pool {
    pub(super) const fn new(organization: u32, service: u32) -> Self {
        Self {
            organization,
            service,
            leases: 0,
            traces: 0,
            sessions: 0,
            heads: Heads::EMPTY,
            in_organization: Links::NONE,
            top: NONE,
            bottom: NONE,
        }
    }
}

impl Record for Pool {
    type Key<'a> = (u32, u32);

    fn key(&self) -> (u32, u32) {
        (self.organization, self.service)
    }
}

/// The leases of a pool that came with one API key.
#[derive(Debug)]
pub(super) struct KeyScope {
    pub(super) pool: u32,
    pub(super) name: CompactString,
    pub(super) leases: u64,
}

impl Record for KeyScope {
    type Key<'a> = (u32, &'a str);

    fn key(&self) -> (u32, &str) {
        (self.pool, &self.name)
    }

    fn id_bytes(&self) -> u64 {
        self.name.len() as u64
    }
}

/// One indexer's leases of an organization under one trace id, of any service.
///
/// The key leaves the indexer out, so the traces of different indexers that share an id are found
/// in one probe. One that has ended stays until its last lease is taken out; nothing joins it.
#[derive(Debug)]
pub(super) struct Trace {
    /// The indexer in the lower bits, and [`HAS_ENDED`]. A trace that has ended belongs to no indexer.
    pub(super) indexer: u32,
    pub(super) organization: u32,
    pub(super) id: Box<str>,
    pub(super) sessions: u32,
    /// Its workers of all pools.
    pub(super) workers: u32,
    /// Its sessions and its workers.
    pub(super) heads: Heads,
}

/// Set in [`Trace::indexer`] of a trace that has ended.
pub(super) const HAS_ENDED: u32 = 1 << 31;

impl Trace {
    pub(super) const fn has_ended(&self) -> bool {
        self.indexer & HAS_ENDED != 0
    }
}

impl Record for Trace {
    type Key<'a> = (u32, &'a str);

    fn key(&self) -> (u32, &str) {
        (self.organization, &self.id)
    }

    fn id_bytes(&self) -> u64 {
        self.id.len() as u64
    }
}

/// The leases of one [`Trace`] in one [`Pool`].
#[derive(Debug)]
pub(super) struct Cell {
    pub(super) trace: u32,
    pub(super) pool: u32,
    pub(super) leases: u32,
    pub(super) workers: u32,
    pub(super) rank: Rank,
}

impl Record for Cell {
    type Key<'a> = (u32, u32);

    fn key(&self) -> (u32, u32) {
        (self.trace, self.pool)
    }
}

/// The place of a cell in the order of its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rank {
    /// The cell represents its trace: its level, and its neighbours there.
    Represents { level: u32, next: u32, prev: u32 },
    /// Another cell, of another indexer, represents the trace.
    Behind { first: u32 },
}

/// The traces of a pool that have the same number of leases there.
#[derive(Debug)]
pub(super) struct Level {
    pub(super) leases: NonZeroU32,
    /// The first of the cells that represent the traces.
    pub(super) head: u32,
    /// The level with more leases, and the one with fewer.
    pub(super) above: u32,
    pub(super) below: u32,
}
