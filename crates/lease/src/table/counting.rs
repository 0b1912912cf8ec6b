//! Counting a lease in and out of each scope. Only [`Table::insert`] and [`Table::remove`] do it.

use crate::lease::Kind;
use crate::request::Request;
use crate::scope::forms_a_scope;
use crate::slab::NONE;

use super::entry::Entry;
use super::links::{Heads, Links};
use super::scopes::{Cell, KeyScope, Organization, Pool, Rank, Service, Trace};
use super::{Place, Table};

/// Counting a lease in.
impl Table {
    pub(super) fn count_in_pool(&mut self, request: &Request<'_>, place: &mut Place, kind: Kind) {
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
            let organization = &mut self.organizations[organization];
            organization.pools += 1;
            let head = &mut organization.head;
            Links::enter(&mut self.pools, head, place.pool, |pool| &mut pool.in_organization);
        }
        let pool = &mut self.pools[place.pool];
        pool.leases += 1;
        pool.sessions += u32::from(kind == Kind::Session);
    }

    pub(super) fn count_in_key(&mut self, request: &Request<'_>, pool: u32, key: u32) -> u32 {
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

    pub(super) fn count_in_trace(
        &mut self,
        request: &Request<'_>,
        indexer: u32,
        place: &mut Place,
        kind: Kind,
    ) {
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

    pub(super) fn link(&mut self, slot: u32, pool: u32, cell: u32) {
        let Self { leases, pools, traces, cells, .. } = self;
        let kind = leases[slot].kind();
        let head = pools[pool].heads.of_mut(kind);
        Links::enter(leases, head, slot, |entry| &mut entry.in_pool);
        if cell != NONE {
            let head = traces[cells[cell].trace].heads.of_mut(kind);
            Links::enter(leases, head, slot, |entry| &mut entry.in_trace);
        }
    }
}

/// Counting a lease out.
impl Table {
    pub(super) fn unlink(&mut self, entry: &Entry) {
        let Self { leases, pools, traces, cells, .. } = self;
        let head = pools[entry.pool].heads.of_mut(entry.kind());
        entry.in_pool.leave(leases, head, |entry| &mut entry.in_pool);
        if entry.cell != NONE {
            let head = traces[cells[entry.cell].trace].heads.of_mut(entry.kind());
            entry.in_trace.leave(leases, head, |entry| &mut entry.in_trace);
        }
    }

    pub(super) fn count_out_trace(&mut self, entry: &Entry) -> Option<u32> {
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
            // The ledger removes it after its last lease.
            return None;
        }
        let orphaned = entry.kind() == Kind::Session && trace.sessions == 0;
        if trace.heads.are_empty() {
            self.traces.remove(at);
            return None;
        }
        orphaned.then_some(at)
    }

    pub(super) fn count_out_pool(&mut self, at: u32, kind: Kind) {
        let pool = &mut self.pools[at];
        let (service, organization) = (pool.service, pool.organization);
        pool.leases -= 1;
        pool.sessions -= u32::from(kind == Kind::Session);
        if pool.leases == 0 {
            let links = pool.in_organization;
            self.pools.remove(at);
            let record = &mut self.organizations[organization];
            links.leave(&mut self.pools, &mut record.head, |pool| &mut pool.in_organization);
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
