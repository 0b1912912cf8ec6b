//! Ending one lease for a reason, and remembering why.

use std::time::Duration;

use crate::change::{Change, End};
use crate::clock::Timestamp;
use crate::digest::TraceDigest;
use crate::id::{LeaseId, LeaseNumber};
use crate::lease::{Kind, Reason};
use crate::request::Request;
use crate::revocation::{Revocation, RevokedFor, RevokedLease, RevokedTrace};
use crate::scope::forms_a_scope;
use crate::slab::NONE;
use crate::table::Place;
use crate::terms::Refusal;

use super::Ledger;

/// The shortest time the reason of a revocation is remembered.
const REVOCATION_MEMORY: Duration = Duration::from_secs(600);

impl Ledger {
    /// Ends one lease at once and remembers why. Answers whether there was such a lease.
    pub fn revoke(&mut self, id: LeaseId, reason: Reason, now: Timestamp) -> bool {
        self.begin(now);
        let found = self.live(id).is_some();
        if found {
            self.revoke_slot(id.slot, reason.into());
        }
        found
    }

    /// Ends the lease of that number at once and remembers why.
    ///
    /// The answer is its key, and how many leases end: it, and with the last session of a trace the
    /// trace's workers.
    pub fn revoke_number(
        &mut self,
        number: LeaseNumber,
        reason: Reason,
        now: Timestamp,
    ) -> Option<(LeaseId, u64)> {
        self.begin(now);
        let id = self.table.leases.get(number.slot).map(|entry| entry.id(number.slot));
        let id = id.filter(|id| id.number() == number)?;
        self.live_at(id.slot)?;
        let entry = &self.table.leases[id.slot];
        let is_last = self.table.sessions_beside(entry) == 0;
        let workers = if is_last { self.table.workers_under(entry) } else { 0 };
        self.revoke_slot(id.slot, reason.into());
        Some((id, 1 + workers))
    }

    /// Revokes the lease at a slot; one that has ended already is taken out as what it is.
    pub(super) fn revoke_or_end(&mut self, slot: u32, why: RevokedFor) -> Option<LeaseId> {
        let entry = self.table.leases.get(slot)?;
        let id = entry.id(slot);
        if let Some(end) = self.ended(slot) {
            self.end_lease(slot, end);
            return None;
        }
        let end = End::Revoked(why.reason);
        self.remember_reason(slot, why);
        self.end_lease(slot, end);
        Some(id)
    }

    fn revoke_slot(&mut self, slot: u32, why: RevokedFor) {
        let end = End::Revoked(why.reason);
        self.remember_reason(slot, why);
        self.end_with_workers(slot, end);
    }

    fn remember_reason(&mut self, slot: u32, why: RevokedFor) {
        let entry = &self.table.leases[slot];
        let names = self.table.names(entry);
        let ends_a_trace = entry.kind() == Kind::Session && forms_a_scope(names.trace);
        let revocation = Revocation {
            id: entry.id(slot),
            indexer: names.indexer.map(Into::into),
            why,
            trace: ends_a_trace.then(|| TraceDigest::of(names.organization, names.trace)),
            until: self.now + REVOCATION_MEMORY.max(entry.ttl().saturating_mul(10)),
        };
        self.record(|| Change::Revoked(Box::new(revocation.clone())));
        self.remember_revocation(revocation);
    }

    pub(super) fn remember_revocation(&mut self, revocation: Revocation) {
        let Revocation { id, indexer, why, trace, until } = revocation;
        let indexer = self.table.indexer(indexer.as_deref());
        let trace_at = trace.map_or(NONE, |digest| {
            self.remember_trace(indexer, RevokedTrace { digest, serial: id.serial }, until)
        });
        self.revoked.remember(indexer, RevokedLease { id, why, trace_at }, until);
    }

    /// Of several sessions of one trace the one that is remembered longest counts, whatever the order
    /// in which they were revoked or restored.
    fn remember_trace(&mut self, indexer: u32, trace: RevokedTrace, until: Timestamp) -> u32 {
        let known = self.revoked_traces.find(indexer, trace.digest, self.now);
        let known = known.and_then(|at| self.revoked_traces.at(at));
        if known.is_some_and(|fact| (fact.until, fact.what.serial) > (until, trace.serial)) {
            return NONE;
        }
        self.revoked_traces.remember(indexer, trace, until)
    }

    /// Refuses a worker after the revocation of its session: as long as that is remembered, and no
    /// other session of the trace is live.
    pub(super) fn check_session(
        &self,
        request: &Request<'_>,
        indexer: u32,
        place: Place,
    ) -> Result<(), Refusal> {
        if request.kind() != Kind::Worker
            || !forms_a_scope(request.trace)
            || self.revoked_traces.is_empty()
            || self.table.has_sessions(place.trace())
        {
            return Ok(());
        }
        let digest = TraceDigest::of(request.organization, request.trace);
        let trace = self.revoked_traces.get(indexer, digest, self.now);
        let session = trace.and_then(|trace| self.revoked.get(indexer, trace.serial, self.now));
        session.map_or(Ok(()), |session| Err(Refusal::Revoked(session.why.clone())))
    }

    /// Checks that every trace belongs to a revocation that is remembered as long.
    pub(super) fn audit_revoked(&self) -> Result<(), String> {
        for trace in self.revoked_traces.iter().filter(|trace| trace.until > self.now) {
            let session = self.revoked.find(trace.indexer, trace.what.serial, self.now);
            let until = session.and_then(|at| self.revoked.at(at)).map(|session| session.until);
            if until != Some(trace.until) {
                return Err("a trace is not remembered as long as its revocation".to_owned());
            }
        }
        Ok(())
    }
}
