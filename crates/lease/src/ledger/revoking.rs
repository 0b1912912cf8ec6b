//! Ending leases for a reason: one, all of an organization, or whatever a judge picks.
//!
//! Many leases are ended in parts of [`RECORDS_PER_HOLD`] at most, so that whoever keeps the ledger
//! behind a lock can let go of it between two parts.
//!
//! [`RECORDS_PER_HOLD`]: crate::RECORDS_PER_HOLD

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
use crate::table::{AtPool, Place};
use crate::terms::Refusal;

use super::Ledger;
use super::reading::Holder;

/// The shortest time the reason of a revocation is remembered.
const REVOCATION_MEMORY: Duration = Duration::from_secs(600);

/// How far the revocation of all leases of an organization has come.
///
/// Workers come before sessions, so that a worker whose session goes too is told the reason and not
/// just that it is gone.
#[derive(Clone, Debug, Default)]
pub struct RevocationWalk {
    workers_done: bool,
    at: AtPool,
    done: bool,
}

impl RevocationWalk {
    /// Whether the organization has no lease left that was to be revoked.
    pub const fn is_done(&self) -> bool {
        self.done
    }

    /// Leaves the leases alone that are left.
    pub const fn end(&mut self) {
        self.done = true;
    }
}

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
        self.live(id)?;
        let entry = &self.table.leases[id.slot];
        let is_last = self.table.sessions_beside(entry) == 0;
        let workers = if is_last { self.table.workers_under(entry) } else { 0 };
        self.revoke_slot(id.slot, reason.into());
        Some((id, 1 + workers))
    }

    /// Ends the next leases of an organization for that reason, at most [`RECORDS_PER_HOLD`] of them,
    /// and answers their keys. `spares` names the services whose leases live on.
    ///
    /// It is called with the same `walk` until that is done. What is borrowed meanwhile may be
    /// ended too.
    ///
    /// [`RECORDS_PER_HOLD`]: crate::RECORDS_PER_HOLD
    pub fn revoke_organization(
        &mut self,
        organization: &str,
        why: &RevokedFor,
        spares: impl Fn(&str) -> bool,
        walk: &mut RevocationWalk,
        now: Timestamp,
    ) -> Vec<LeaseId> {
        self.advance(now);
        let mut revoked = Vec::new();
        for _ in 0..self.records_per_hold {
            let Some(pool) = self.table.pool_at(organization, walk.at) else {
                if walk.workers_done || !self.table.has_leases_of(organization) {
                    walk.done = true;
                    break;
                }
                (walk.workers_done, walk.at) = (true, AtPool::Start);
                continue;
            };
            let next = self.table.after_pool(pool);
            let kind = if walk.workers_done { Kind::Session } else { Kind::Worker };
            let lease = self.table.first_of_pool(pool, kind);
            let lease = lease.filter(|_| !spares(self.table.service_of_pool(pool)));
            walk.at = AtPool::Pool(pool);
            if let Some(slot) = lease {
                revoked.extend(self.revoke_or_end(slot, why.clone()));
            }
            if lease.is_none() || !self.table.has_pool(pool) {
                walk.at = next;
            }
        }
        self.journal_ended_traces();
        revoked
    }

    /// Ends every lease of that kind in one part of the table that `judge` gives a reason for, and
    /// answers their keys; `None` past the last part.
    ///
    /// Parts are those of [`Ledger::holders`]. To revoke all that a judge picks, walk over the
    /// workers and then over the sessions.
    pub fn revoke_part(
        &mut self,
        part: u32,
        kind: Kind,
        mut judge: impl FnMut(&Holder<'_>) -> Option<Reason>,
        now: Timestamp,
    ) -> Option<Vec<(LeaseId, Reason)>> {
        self.advance(now);
        let leases = self.table.leases.part(part)?.filter(|(_, entry)| entry.kind() == kind);
        let judged =
            leases.filter_map(|(slot, entry)| Some((slot, judge(&self.holder_at(slot, entry))?)));
        let judged: Vec<(u32, Reason)> = judged.collect();
        let revoked = judged
            .into_iter()
            .filter_map(|(slot, reason)| Some((self.revoke_or_end(slot, reason.into())?, reason)));
        let revoked = revoked.collect();
        self.journal_ended_traces();
        Some(revoked)
    }

    /// Revokes the lease at a slot; one that has ended already is taken out as what it is.
    fn revoke_or_end(&mut self, slot: u32, why: RevokedFor) -> Option<LeaseId> {
        let entry = self.table.leases.get(slot)?;
        let id = entry.id(slot);
        if let Some(end) = self.ended(slot) {
            self.end_one(slot, end);
            return None;
        }
        let end = End::Revoked(why.reason);
        self.remember_reason(slot, why);
        self.end_one(slot, end);
        Some(id)
    }

    fn revoke_slot(&mut self, slot: u32, why: RevokedFor) {
        let end = End::Revoked(why.reason);
        self.remember_reason(slot, why);
        self.end(slot, end);
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

    /// Of several sessions of one trace the one that is remembered longest counts, whatever the
    /// order in which they are told.
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
    pub(super) fn has_session(
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

    /// Checks that every trace stands for a revocation that is remembered as long.
    pub(super) fn audit_revoked(&self) -> Result<(), String> {
        for trace in self.revoked_traces.iter().filter(|trace| trace.until > self.now) {
            let session = self.revoked.find(trace.indexer, trace.what.serial, self.now);
            let until = session.and_then(|at| self.revoked.at(at)).map(|session| session.until);
            if until != Some(trace.until) {
                return Err("a trace is remembered otherwise than the revocation".to_owned());
            }
        }
        Ok(())
    }
}
