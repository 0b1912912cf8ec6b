//! The table of live leases and the counts beside it.
//!
//! Every scope keeps one count. The counts change in [`Table::insert`] and [`Table::remove`] and
//! nowhere else, in the same call that changes the table; [`Table::audit`] recomputes them all.

use std::num::NonZeroU64;
use std::time::Duration;

use foldhash::fast::FixedState;

use crate::clock::Timestamp;
use crate::id::{LeaseId, Secret};
use crate::lease::Kind;
use crate::pool::{PoolCount, PoolState};
use crate::records::Records;
use crate::request::Request;
use crate::scope::forms_a_scope;
use crate::slab::{NONE, Slab};
use crate::terms::UnnamedServices;

mod audit;
mod ending;
mod ranking;
mod scopes;
mod unnamed;

pub(crate) use ending::{AtPool, Sessions, TraceNames};
pub(crate) use ranking::TracesRead;
use ranking::{Level, Rank};
use scopes::{Cell, KeyScope, Organization, Pool, Service, Trace};
use unnamed::Unnamed;

/// One live lease. The names it counts against stand in the records that the numbers point to.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Not zero, so that an empty slot needs no room of its own.
    pub(crate) serial: NonZeroU64,
    pub(crate) granted_at: Timestamp,
    /// When it ends without a keep-alive, or whatever happens while it lingers.
    pub(crate) ends_at: Timestamp,
    pub(crate) secret: Secret,
    ttl_ms: u32,
    pool: u32,
    key: u32,
    /// Its (trace, pool) record, or [`NONE`] without a trace.
    cell: u32,
    /// The number of what is remembered of its borrow id, which may be another's by now; [`NONE`]
    /// without a borrow id.
    pub(crate) bought: u32,
    /// The indexer and, above it, the facts below: a table of a million leases feels 8 bytes.
    flags_and_indexer: u32,
    in_pool: Links,
    in_trace: Links,
}

/// Stands for no indexer in particular; numbers of indexers are lower.
pub(crate) const ANYBODY: u32 = IS_UNNAMED - 1;
/// Its service had no entry in the policy when it was granted.
const IS_UNNAMED: u32 = 1 << 29;
const IS_WORKER: u32 = 1 << 30;
const LINGERS: u32 = 1 << 31;

impl Entry {
    pub(crate) const fn id(&self, slot: u32) -> LeaseId {
        LeaseId::new(slot, self.serial.get(), self.secret)
    }

    pub(crate) const fn ttl(&self) -> Duration {
        Duration::from_millis(self.ttl_ms as u64)
    }

    pub(crate) const fn kind(&self) -> Kind {
        if self.flags_and_indexer & IS_WORKER == 0 { Kind::Session } else { Kind::Worker }
    }

    pub(crate) const fn lingers(&self) -> bool {
        self.flags_and_indexer & LINGERS != 0
    }

    /// Lets the lease end at `until` and at no other time.
    pub(crate) const fn linger(&mut self, until: Timestamp) {
        self.flags_and_indexer |= LINGERS;
        self.ends_at = until;
    }

    const fn is_unnamed(&self) -> bool {
        self.flags_and_indexer & IS_UNNAMED != 0
    }

    pub(crate) const fn indexer(&self) -> u32 {
        self.flags_and_indexer & ANYBODY
    }
}

/// Neighbours in a list that runs through the table.
#[derive(Clone, Copy, Debug)]
struct Links {
    next: u32,
    prev: u32,
}

impl Links {
    const NONE: Self = Self { next: NONE, prev: NONE };
}

/// The first of a list of sessions and of one of workers.
///
/// They are apart, so that the workers of a pool are told of a revocation before the sessions they
/// would end with, and a session of a trace is found without looking at workers.
#[derive(Clone, Copy, Debug)]
struct Heads {
    sessions: u32,
    workers: u32,
}

impl Heads {
    const EMPTY: Self = Self { sessions: NONE, workers: NONE };

    const fn of(&self, kind: Kind) -> u32 {
        match kind {
            Kind::Session => self.sessions,
            Kind::Worker => self.workers,
        }
    }

    const fn of_mut(&mut self, kind: Kind) -> &mut u32 {
        match kind {
            Kind::Session => &mut self.sessions,
            Kind::Worker => &mut self.workers,
        }
    }

    const fn are_empty(&self) -> bool {
        self.sessions == NONE && self.workers == NONE
    }
}

/// The names of a lease, as they stand in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Named<'a> {
    pub(crate) indexer: Option<&'a str>,
    pub(crate) service: &'a str,
    pub(crate) organization: &'a str,
    pub(crate) api_key: &'a str,
    pub(crate) trace: &'a str,
}

/// Where a request's scopes stand, [`NONE`] for those that hold no lease.
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
    /// Traces of the organization under that id, ended ones too.
    traces: usize,
}

impl Place {
    /// The trace that a lease would join, or [`NONE`].
    pub(crate) const fn trace(&self) -> u32 {
        self.trace
    }

    /// How many traces had to be looked at to find that one.
    pub(crate) const fn traces_looked_at(&self) -> usize {
        self.traces
    }
}

/// What one scope after the other holds, as a borrow compares it with the ceilings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) service: u64,
    pub(crate) organization: u64,
    pub(crate) api_key: u64,
    pub(crate) trace_workers: u64,
}

/// A lease to insert.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewLease {
    pub(crate) serial: NonZeroU64,
    pub(crate) secret: Secret,
    pub(crate) kind: Kind,
    pub(crate) granted_at: Timestamp,
    pub(crate) ends_at: Timestamp,
    pub(crate) ttl: Duration,
    /// Whether its service has no entry in the policy, as far as is known.
    pub(crate) unnamed: bool,
}

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

    /// The number that stands for an indexer, for as long as the table does.
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

    /// The number that stands for an indexer, if it has one.
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

    /// Whether an organization holds a lease.
    pub(crate) fn holds_leases(&self, organization: &str) -> bool {
        self.organizations.find(organization) != NONE
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
            |at| services.get(at).is_none_or(|service| unnamed.names.is_named(&service.name));
        self.unnamed.has_room(indexer, place.service, unnamed.max, is_named)
    }

    /// The name that [`Table::indexer`] gave the number to.
    pub(crate) fn indexer_name(&self, indexer: u32) -> Option<&str> {
        self.indexers.get(indexer as usize).map(|name| &**name)
    }

    /// Whether `caller` may keep and return the lease: it holds it, or nobody in particular does.
    pub(crate) fn belongs_to(&self, entry: &Entry, caller: Option<&str>) -> bool {
        entry.indexer() == ANYBODY || self.indexer_name(entry.indexer()) == caller
    }

    /// The live lease of that id.
    pub(crate) fn find(&self, id: LeaseId) -> Option<&Entry> {
        self.leases.get(id.slot).filter(|entry| id.proves(entry.serial.get(), &entry.secret))
    }

    pub(crate) fn find_mut(&mut self, id: LeaseId) -> Option<&mut Entry> {
        self.leases.get_mut(id.slot).filter(|entry| id.proves(entry.serial.get(), &entry.secret))
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
        self.take_pool(request, place, new.kind);
        let pool = place.pool;
        let key = self.take_key(request, pool, place.key);
        self.take_cell(request, indexer, place, new.kind);
        let cell = place.cell;
        let entry = Entry {
            serial: new.serial,
            granted_at: new.granted_at,
            ends_at: new.ends_at,
            secret: new.secret,
            ttl_ms: whole_milliseconds(new.ttl),
            pool,
            key,
            cell,
            bought: NONE,
            flags_and_indexer: indexer
                | if new.kind == Kind::Worker { IS_WORKER } else { 0 }
                | if new.unnamed { IS_UNNAMED } else { 0 },
            in_pool: Links::NONE,
            in_trace: Links::NONE,
        };
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
        let left = self.leave_trace(&entry);
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
        self.leave_pool(entry.pool, entry.kind());
        Some((entry, left))
    }

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

    /// The counts of the pools of one part, as [`Slab::part`] cuts them.
    pub(crate) fn pool_counts(&self, part: u32) -> Option<impl Iterator<Item = PoolCount<'_>>> {
        let pools = self.pools.part(part)?;
        Some(pools.map(|(_, pool)| PoolCount {
            service: &self.services[pool.service].name,
            organization: &self.organizations[pool.organization].name,
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
    fn find_pool(&self, organization: &str, service: &str) -> u32 {
        match (self.organizations.find(organization), self.services.find(service)) {
            (NONE, _) | (_, NONE) => NONE,
            key => self.pools.find(key),
        }
    }

    fn find_cell(&self, trace: u32, pool: u32) -> u32 {
        match (trace, pool) {
            (NONE, _) | (_, NONE) => NONE,
            key => self.cells.find(key),
        }
    }
}

/// Counting a lease in.
impl Table {
    fn take_pool(&mut self, request: &Request<'_>, place: &mut Place, kind: Kind) {
        if place.service == NONE {
            let name = request.service.into();
            place.service = self.services.insert(Service { name, leases: 0 });
        }
        self.services[place.service].leases += 1;
        if place.organization == NONE {
            let name = request.organization.into();
            let organization = Organization { name, pools: 0, head: NONE };
            place.organization = self.organizations.insert(organization);
        }
        if place.pool == NONE {
            let Place { organization, service, .. } = *place;
            place.pool = self.pools.insert(Pool::new(organization, service));
            self.link_pool(organization, place.pool);
        }
        let pool = &mut self.pools[place.pool];
        pool.leases += 1;
        pool.sessions += u32::from(kind == Kind::Session);
    }

    fn take_key(&mut self, request: &Request<'_>, pool: u32, key: u32) -> u32 {
        let name = request.api_key;
        if name.is_empty() {
            return NONE;
        }
        let key = match key {
            NONE => self.keys.insert(KeyScope { pool, name: name.into(), leases: 0 }),
            at => at,
        };
        self.keys[key].leases += 1;
        key
    }

    fn take_cell(&mut self, request: &Request<'_>, indexer: u32, place: &mut Place, kind: Kind) {
        if !forms_a_scope(request.trace) {
            return;
        }
        if place.trace == NONE {
            let (organization, id) = (place.organization, request.trace.into());
            let heads = Heads::EMPTY;
            let trace = Trace { indexer, organization, id, sessions: 0, workers: 0, heads };
            place.trace = self.traces.insert(trace);
        }
        let Place { trace, pool, other, .. } = *place;
        let is_new = place.cell == NONE;
        if is_new {
            if other == NONE {
                self.pools[pool].traces += 1;
            }
            let rank = Rank::Behind { first: NONE };
            place.cell = self.cells.insert(Cell { trace, pool, leases: 0, workers: 0, rank });
        }
        self.rank_up(place.cell, is_new, other);
        let cell = &mut self.cells[place.cell];
        cell.leases += 1;
        match kind {
            Kind::Session => self.traces[trace].sessions += 1,
            Kind::Worker => {
                cell.workers += 1;
                self.traces[trace].workers += 1;
            }
        }
    }

    fn link_pool(&mut self, organization: u32, pool: u32) {
        let organization = &mut self.organizations[organization];
        organization.pools += 1;
        let head = std::mem::replace(&mut organization.head, pool);
        self.pools[pool].in_organization.next = head;
        if let Some(next) = self.pools.get_mut(head) {
            next.in_organization.prev = pool;
        }
    }

    fn link(&mut self, slot: u32, pool: u32, cell: u32) {
        let kind = self.leases[slot].kind();
        let head = std::mem::replace(self.pools[pool].heads.of_mut(kind), slot);
        self.leases[slot].in_pool.next = head;
        if head != NONE {
            self.leases[head].in_pool.prev = slot;
        }
        if cell != NONE {
            let trace = self.cells[cell].trace;
            let head = std::mem::replace(self.traces[trace].heads.of_mut(kind), slot);
            self.leases[slot].in_trace.next = head;
            if head != NONE {
                self.leases[head].in_trace.prev = slot;
            }
        }
    }
}

/// Counting a lease out.
impl Table {
    fn unlink(&mut self, entry: &Entry) {
        let Links { next, prev } = entry.in_pool;
        if next != NONE {
            self.leases[next].in_pool.prev = prev;
        }
        match prev {
            NONE => *self.pools[entry.pool].heads.of_mut(entry.kind()) = next,
            prev => self.leases[prev].in_pool.next = next,
        }
        if entry.cell == NONE {
            return;
        }
        let Links { next, prev } = entry.in_trace;
        if next != NONE {
            self.leases[next].in_trace.prev = prev;
        }
        match prev {
            NONE => {
                let trace = self.cells[entry.cell].trace;
                *self.traces[trace].heads.of_mut(entry.kind()) = next;
            }
            prev => self.leases[prev].in_trace.next = next,
        }
    }

    fn leave_trace(&mut self, entry: &Entry) -> Option<u32> {
        if entry.cell == NONE {
            return None;
        }
        if self.rank_down(entry.cell) {
            self.pools[entry.pool].traces -= 1;
        }
        let cell = &mut self.cells[entry.cell];
        let at = cell.trace;
        cell.leases -= 1;
        if entry.kind() == Kind::Worker {
            cell.workers -= 1;
        }
        if cell.leases == 0 {
            self.hand_over(entry.cell);
            self.cells.remove(entry.cell);
        }
        let trace = &mut self.traces[at];
        match entry.kind() {
            Kind::Session => trace.sessions -= 1,
            Kind::Worker => trace.workers -= 1,
        }
        if trace.has_ended() {
            // It goes when whoever takes out its leases finds none.
            return None;
        }
        let orphaned = entry.kind() == Kind::Session && trace.sessions == 0;
        if trace.heads.are_empty() {
            self.traces.remove(at);
            return None;
        }
        orphaned.then_some(at)
    }

    fn leave_pool(&mut self, at: u32, kind: Kind) {
        let pool = &mut self.pools[at];
        let (service, organization) = (pool.service, pool.organization);
        pool.leases -= 1;
        pool.sessions -= u32::from(kind == Kind::Session);
        if pool.leases == 0 {
            let Links { next, prev } = pool.in_organization;
            self.pools.remove(at);
            if let Some(next) = self.pools.get_mut(next) {
                next.in_organization.prev = prev;
            }
            match prev {
                NONE => self.organizations[organization].head = next,
                prev => self.pools[prev].in_organization.next = next,
            }
            let record = &mut self.organizations[organization];
            record.pools -= 1;
            if record.pools == 0 {
                self.organizations.remove(organization);
            }
        }
        let record = &mut self.services[service];
        record.leases -= 1;
        if record.leases == 0 {
            self.services.remove(service);
        }
    }
}

/// A TTL as the table keeps it: whole milliseconds, a fraction counting as one.
pub(crate) fn whole_milliseconds(ttl: Duration) -> u32 {
    u32::try_from(ttl.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX)
}
