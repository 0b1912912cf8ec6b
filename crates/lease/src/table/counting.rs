//! Counting a lease in and out of each scope. Only [`Table::insert`] and [`Table::remove`] do it.

use crate::lease::Kind;
use crate::request::Request;
use crate::scope::forms_a_scope;
use crate::slab::NONE;

use super::Table;
use super::entry::Entry;
use super::links::{Heads, Links};
use super::place::Place;
use super::scopes::{Cell, KeyScope, Organization, Pool, Rank, Service, Trace};

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
            self.link_pool(organization, place.pool);
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

    pub(super) fn link_pool(&mut self, organization: u32, pool: u32) {
        let organization = &mut self.organizations[organization];
        organization.pools += 1;
        let head = std::mem::replace(&mut organization.head, pool);
        self.pools[pool].in_organization.next = head;
        if let Some(next) = self.pools.get_mut(head) {
            next.in_organization.prev = pool;
        }
    }

    pub(super) fn link(&mut self, slot: u32, pool: u32, cell: u32) {
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
    pub(super) fn unlink(&mut self, entry: &Entry) {
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

    pub(super) fn count_out_pool(&mut self, at: u32, kind: Kind) {
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
