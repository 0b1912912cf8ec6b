//! Granting a lease, or refusing it.

use std::time::Duration;

use rand_chacha::rand_core::Rng as _;

use crate::change::Change;
use crate::clock::Timestamp;
use crate::id::LeaseId;
use crate::lease::{BorrowedAs, Kind, Lease, MAX_TTL, whole_milliseconds};
use crate::request::Request;
use crate::scope::{Scope, forms_a_scope};
use crate::slab::RECORDS_PER_HOLD;
use crate::table::{NewLease, Place, Sessions};
use crate::terms::{Denied, Grant, Refusal, Remembers, Terms};

use super::Ledger;
use super::remembered_borrow::RememberedBorrow;

impl Ledger {
    /// Grants one lease, or refuses it. The request must be valid.
    ///
    /// Within one TTL a retry under the same borrow id gets the same live lease, with its full TTL
    /// again. All limits are checked before anything changes.
    ///
    /// # Errors
    ///
    /// The first [`Refusal`] that applies, in the order: old terms, borrow id, budgets, the limits in
    /// the order of [`Scope::ALL`], a revoked session, the ledger's own bounds. [`Refusal::Behind`]
    /// when too much of the trace has ended and is not taken out yet.
    pub fn borrow(
        &mut self,
        request: &Request<'_>,
        terms: &Terms<'_>,
        now: Timestamp,
    ) -> Result<Grant, Refusal> {
        if terms.policy < self.policy {
            return Err(Refusal::OldTerms);
        }
        self.begin(now);
        let indexer = self.table.indexer(request.indexer);
        if let Some(replayed) = self.replay(request, terms, indexer)? {
            return Ok(replayed);
        }
        let mut place = self.find_place(request, indexer)?;
        let observed = match self.check_limits(request, terms, place) {
            Err(refusal) if terms.observe => Some(Box::new(refusal)),
            admitted => admitted.map(|()| None)?,
        };
        self.check_session(request, indexer, place)?;
        self.check_bounds(request, terms, indexer, place)?;
        let (id, ttl) = self.grant(request, terms, indexer, &mut place);
        let pool = self.table.pool_state(place, terms.limits.organization);
        Ok(Grant { id, ttl, pool, replayed: false, observed })
    }

    /// The records of the scopes of a borrow. No lease joins a trace that has ended.
    fn find_place(&mut self, request: &Request<'_>, indexer: u32) -> Result<Place, Refusal> {
        let place = self.table.place(request, indexer);
        if place.traces_checked() > RECORDS_PER_HOLD / 2 {
            return Err(Refusal::Behind);
        }
        if !self.timer.is_behind(self.now) {
            return Ok(place);
        }
        match self.table.sessions_of(place.trace(), self.now, &mut self.looks) {
            Sessions::Live => Ok(place),
            Sessions::Unknown => Err(Refusal::Behind),
            Sessions::Ended => {
                self.end_trace(place.trace());
                self.journal_ended_traces();
                Ok(self.table.place(request, indexer))
            }
        }
    }

    /// Checks the budgets and the limits, and changes nothing.
    fn check_limits(
        &self,
        request: &Request<'_>,
        terms: &Terms<'_>,
        place: Place,
    ) -> Result<(), Refusal> {
        if let Some(spent) = self.spent(request.organization, terms.budgets, terms.wall) {
            return Err(Refusal::BudgetSpent(spent));
        }
        let counts = self.table.counts(place);
        // What forms no scope has no limit.
        let api_key = terms.limits.api_key.filter(|_| !request.api_key.is_empty());
        let workers = (request.kind() == Kind::Worker && forms_a_scope(request.trace))
            .then(|| request.max_workers.unsigned_abs());
        for scope in Scope::ALL {
            let (active, limit) = match scope {
                Scope::Service => (counts.service, terms.limits.service),
                Scope::Organization => (counts.organization, terms.limits.organization),
                Scope::ApiKey => (counts.api_key, api_key),
                Scope::Trace => (counts.trace_workers, workers),
            };
            if let Some(max) = limit.filter(|&max| active >= max) {
                let pool = self.table.pool_state(place, terms.limits.organization);
                return Err(Refusal::Denied(Denied { scope, active, max, pool }));
            }
        }
        Ok(())
    }

    /// Checks the bounds of the ledger itself, whatever the policy allows.
    fn check_bounds(
        &mut self,
        request: &Request<'_>,
        terms: &Terms<'_>,
        indexer: u32,
        place: Place,
    ) -> Result<(), Refusal> {
        if self.table.leases.len() as u64 >= self.max_leases {
            return Err(Refusal::Full { max_leases: self.max_leases });
        }
        if self.table.id_bytes() >= self.max_id_bytes {
            return Err(Refusal::IdsFull { max_id_bytes: self.max_id_bytes });
        }
        if let Some(unnamed) = terms.unnamed
            && !self.table.has_room_for_unnamed(indexer, place, unnamed)
        {
            return Err(Refusal::TooManyServices { max: unnamed.max });
        }
        // A revocation is never refused, so it has to have room before there is a lease to revoke.
        let room = self.revoked.check_room(indexer, self.now);
        room.map_err(|most| self.memory_full(Remembers::Revocations, indexer, most))?;
        if request.borrow_id.is_some() {
            let room = self.borrows.check_room(indexer, self.now);
            room.map_err(|most| self.memory_full(Remembers::BorrowIds, indexer, most))?;
        }
        Ok(())
    }

    fn grant(
        &mut self,
        request: &Request<'_>,
        terms: &Terms<'_>,
        indexer: u32,
        place: &mut Place,
    ) -> (LeaseId, Duration) {
        let serial = self.next_serial;
        // 2^64 grants take longer than the hardware lasts.
        self.next_serial = serial.saturating_add(1);
        let mut secret = [0; 12];
        self.secrets.fill_bytes(&mut secret);
        let ttl = Duration::from_millis(whole_milliseconds(terms.ttl.min(MAX_TTL)).into());
        let ends_at = self.now + ttl;
        let (kind, granted_at) = (request.kind(), self.now);
        let unnamed = terms.unnamed.is_some();
        let new = NewLease { serial, secret, kind, granted_at, ends_at, ttl, unnamed };
        let slot = self
            .table
            .insert(new, request, indexer, place, None)
            .expect("an unnamed slot is never taken");
        self.timer.set(slot, ends_at);
        let id = LeaseId::new(slot, serial.get(), secret);
        if let Some(borrow_id) = request.borrow_id {
            let borrow = RememberedBorrow::live(borrow_id, id, request.fingerprint());
            self.table.leases[slot].borrow = self.borrows.remember(indexer, borrow, ends_at);
        }
        self.revision += 1;
        if self.changes.is_some() {
            let borrowed_as =
                request.borrow_id.map(|id| BorrowedAs { id, fingerprint: request.fingerprint() });
            let lease = Lease { borrowed_as, ..self.lease(slot, &self.table.leases[slot]) };
            self.collect(|| Change::Granted(Box::new(lease)));
        }
        (id, ttl)
    }

    /// The lease that an earlier try of the same borrow was granted.
    fn replay(
        &mut self,
        request: &Request<'_>,
        terms: &Terms<'_>,
        indexer: u32,
    ) -> Result<Option<Grant>, Refusal> {
        let Some(borrow_id) = request.borrow_id else { return Ok(None) };
        let Some(&borrow) = self.borrows.get(indexer, borrow_id.halves(), self.now) else {
            return Ok(None);
        };
        if borrow.fingerprint().is_some_and(|known| known != request.fingerprint()) {
            return Err(Refusal::BorrowIdReused);
        }
        let now = self.now;
        borrow.lease_in(&self.table.leases).ok_or(Refusal::BorrowEnded)?;
        let entry = self.live_at(borrow.slot).filter(|entry| !entry.lingers());
        let entry = entry.ok_or(Refusal::BorrowEnded)?;
        let (id, ttl) = (entry.id(borrow.slot), entry.extend(now));
        let place = self.table.place(request, indexer);
        let pool = self.table.pool_state(place, terms.limits.organization);
        Ok(Some(Grant { id, ttl, pool, replayed: true, observed: None }))
    }
}
