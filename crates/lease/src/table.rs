//! The table of live leases and the counts beside it.
//!
//! Every scope keeps one count. The counts change in [`Table::insert`] and [`Table::remove`] and
//! nowhere else, in the same call that changes the table; [`Table::audit`] recomputes them all.

use foldhash::fast::FixedState;

use crate::id::LeaseId;
use crate::pool::PoolState;
use crate::records::Records;
use crate::request::Request;
use crate::scope::forms_a_scope;
use crate::slab::{NONE, Slab};
use crate::terms::UnnamedServices;

mod audit;
mod counting;
mod ending;
mod entry;
mod links;
mod ranking;
mod reading;
mod scopes;
mod unnamed;

pub(crate) use ending::{AtPool, Sessions};
pub(crate) use entry::{ANYBODY, Entry, NewLease};
pub(crate) use ranking::TracesRead;
pub(crate) use reading::Named;
use scopes::{Cell, KeyScope, Level, Organization, Pool, Service, Trace};
use unnamed::Unnamed;

/// All leases, and the records of the scopes that they count against.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) leases: Slab<Entry>,
    /// Numbered for ever: the policy bounds them.
    indexers: Vec<Box<str>>,
    services: Records<Service>,
    organizations: Records<Organization>,
    pools: Records<Pool>,
    keys: Records<KeyScope>,
    traces: Records<Trace>,
    cells: Records<Cell>,
    unnamed: Unnamed,
    levels: Slab<Level>,
}

/// The records of a request's scopes, [`NONE`] for those that hold no lease.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    service: u32,
    organization: u32,
    pool: u32,
    key: u32,
    trace: u32,
    cell: u32,
    /// Leases of the pool under the same trace id that other indexers hold, or that go with a trace
    /// that has ended.
    others: u64,
    /// A cell of those.
    other: u32,
    /// How many traces the organization has under that id, ended ones too.
    traces: usize,
}

impl Place {
    /// The trace that a lease would join, or [`NONE`].
    pub(crate) const fn trace(&self) -> u32 {
        self.trace
    }

    /// How many traces had to be checked to find that one.
    pub(crate) const fn traces_checked(&self) -> usize {
        self.traces
    }
}

/// How many leases each scope holds, as a borrow compares it with its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) service: u64,
    pub(crate) organization: u64,
    pub(crate) api_key: u64,
    pub(crate) trace_workers: u64,
}

impl Table {
    pub(crate) fn new(hasher: &FixedState) -> Self {
        Self {
            leases: Slab::new(),
            indexers: Vec::new(),
            services: Records::new(hasher),
            organizations: Records::new(hasher),
            pools: Records::new(hasher),
            keys: Records::new(hasher),
            traces: Records::new(hasher),
            cells: Records::new(hasher),
            unnamed: Unnamed::default(),
            levels: Slab::new(),
        }
    }

    /// The number of an indexer. It stays as long as the table.
    pub(crate) fn indexer(&mut self, name: Option<&str>) -> u32 {
        let Some(name) = name else { return ANYBODY };
        let known = self.indexers.iter().position(|known| &**known == name);
        let at = known.unwrap_or_else(|| {
            self.indexers.push(name.into());
            self.indexers.len() - 1
        });
        u32::try_from(at)
            .ok()
            .filter(|&at| at < ANYBODY)
            .expect("a policy names fewer than 2^29 indexers")
    }

    /// The number of an indexer, if it has one.
    pub(crate) fn known_indexer(&self, name: Option<&str>) -> Option<u32> {
        let Some(name) = name else { return Some(ANYBODY) };
        let at = self.indexers.iter().position(|known| &**known == name)?;
        u32::try_from(at).ok()
    }

    /// How many bytes the ids of all leases take up, each counted once for each scope it forms.
    pub(crate) const fn id_bytes(&self) -> u64 {
        self.services.id_bytes()
            + self.organizations.id_bytes()
            + self.keys.id_bytes()
            + self.traces.id_bytes()
    }

    /// Whether `indexer` may hold a lease of the service of `place`, which the policy does not name.
    pub(crate) fn has_room_for_unnamed(
        &mut self,
        indexer: u32,
        place: Place,
        unnamed: UnnamedServices<'_>,
    ) -> bool {
        let services = &self.services;
        let is_named =
            |at| services.get(at).is_none_or(|service| unnamed.policy.is_named(&service.name));
        self.unnamed.has_room(indexer, place.service, unnamed.max, is_named)
    }

    /// The name that [`Table::indexer`] gave the number to.
    pub(crate) fn indexer_name(&self, indexer: u32) -> Option<&str> {
        self.indexers.get(indexer as usize).map(|name| &**name)
    }

    /// Whether `caller` may keep and return the lease: it holds the lease, or the lease was borrowed
    /// without an indexer.
    pub(crate) fn belongs_to(&self, entry: &Entry, caller: Option<&str>) -> bool {
        entry.indexer() == ANYBODY || self.indexer_name(entry.indexer()) == caller
    }

    /// The live lease of that id.
    pub(crate) fn find(&self, id: LeaseId) -> Option<&Entry> {
        self.leases.get(id.slot).filter(|entry| id.proves(entry.serial.get(), &entry.secret))
    }

    pub(crate) fn place(&self, request: &Request<'_>, indexer: u32) -> Place {
        let service = self.services.find(request.service);
        let organization = self.organizations.find(request.organization);
        let pool = match (organization, service) {
            (NONE, _) | (_, NONE) => NONE,
            key => self.pools.find(key),
        };
        let key = match (pool, request.api_key) {
            (NONE, _) | (_, "") => NONE,
            key => self.keys.find(key),
        };
        let (mut trace, mut others, mut other, mut traces) = (NONE, 0, NONE, 0);
        if organization != NONE && forms_a_scope(request.trace) {
            for at in self.traces.all((organization, request.trace)) {
                traces += 1;
                if self.traces[at].indexer == indexer {
                    trace = at;
                } else {
                    let cell = self.find_cell(at, pool);
                    others += self.cells.get(cell).map_or(0, |cell| u64::from(cell.leases));
                    other = if cell == NONE { other } else { cell };
                }
            }
        }
        let cell = self.find_cell(trace, pool);
        Place { service, organization, pool, key, trace, cell, others, other, traces }
    }

    pub(crate) fn counts(&self, place: Place) -> Counts {
        Counts {
            service: self.services.get(place.service).map_or(0, |service| service.leases),
            organization: self.pools.get(place.pool).map_or(0, |pool| pool.leases),
            api_key: self.keys.get(place.key).map_or(0, |key| key.leases),
            trace_workers: self.cells.get(place.cell).map_or(0, |cell| u64::from(cell.workers)),
        }
    }

    /// The pool of a place as the answer to a borrow shows it.
    pub(crate) fn pool_state(&self, place: Place, max: Option<u64>) -> PoolState {
        let Some(pool) = self.pools.get(place.pool) else {
            return PoolState { max, ..PoolState::default() };
        };
        let own = self.cells.get(place.cell).map_or(0, |cell| u64::from(cell.leases));
        let own_trace = own + place.others;
        PoolState { borrowed: pool.leases, max, traces: pool.traces, own_trace }
    }

    /// Puts a lease into the table, and one more onto the count of each of its scopes.
    ///
    /// `slot` is where a restored lease stood. Answers the slot, and updates the place; `None`, with
    /// nothing changed, when that slot is taken.
    pub(crate) fn insert(
        &mut self,
        new: NewLease,
        request: &Request<'_>,
        indexer: u32,
        place: &mut Place,
        slot: Option<u32>,
    ) -> Option<u32> {
        if slot.is_some_and(|slot| self.leases.get(slot).is_some()) {
            return None;
        }
        self.count_in_pool(request, place, new.kind);
        let pool = place.pool;
        let key = self.count_in_key(request, pool, place.key);
        self.count_in_trace(request, indexer, place, new.kind);
        let cell = place.cell;
        let entry = Entry::new(new, indexer, pool, key, cell);
        let slot = match slot {
            None => self.leases.insert(entry),
            Some(slot) => self.leases.insert_at(slot, entry).map(|()| slot).ok()?,
        };
        self.link(slot, pool, cell);
        if new.unnamed {
            self.unnamed.enter(indexer, place.service);
        }
        Some(slot)
    }

    /// Takes a lease out of the table, and one off the count of each of its scopes.
    ///
    /// The second answer is the trace that has lost its last session with this lease.
    pub(crate) fn remove(&mut self, slot: u32) -> Option<(Entry, Option<u32>)> {
        let entry = self.leases.remove(slot)?;
        self.unlink(&entry);
        let left = self.count_out_trace(&entry);
        if entry.key != NONE {
            let key = &mut self.keys[entry.key];
            key.leases -= 1;
            if key.leases == 0 {
                self.keys.remove(entry.key);
            }
        }
        if entry.is_unnamed() {
            self.unnamed.leave(entry.indexer(), self.pools[entry.pool].service);
        }
        self.count_out_pool(entry.pool, entry.kind());
        Some((entry, left))
    }
}
