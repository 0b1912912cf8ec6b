//! Every way a lease ends: returned, expired, revoked, or with its session.

use std::time::Duration;

use crate::change::{Change, End};
use crate::slab::NONE;
use crate::table::Entry;
use crate::terms::{MemoryFull, Released, Remembers};
use crate::types::{BorrowId, Kind, LeaseId, MAX_MINIMAL_LIFE, Reason, Timestamp};

use super::{Bought, Holder, Ledger, Revocation, halves};

/// How long the end of a borrow id is remembered when no lease tells a TTL.
const BORROW_ID_MEMORY: Duration = Duration::from_secs(60);

/// The shortest time the reason of a revocation is remembered.
const REVOCATION_MEMORY: Duration = Duration::from_secs(600);

impl Ledger {
    /// Ends what has ended by `now`, in the order of the ends.
    pub fn expire(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
        let now = self.now;
        while let Some(slot) = {
            let leases = &self.table.leases;
            self.timer.pop(now, |slot| leases.get(slot).map(|entry| entry.ends_at))
        } {
            let lingers = self.table.leases[slot].lingers();
            self.end(slot, if lingers { End::Lingered } else { End::Expired });
        }
        self.borrows.expire(now);
        self.revoked.expire(now);
        self.usage.expire(now);
    }

    /// A time at which [`Ledger::expire`] may have something to end; never later than the next end.
    pub fn next_expiry(&self) -> Option<Timestamp> {
        self.timer.next()
    }

    /// Takes a lease out of the table, and the workers of its trace after its last session.
    fn end(&mut self, slot: u32, end: End) {
        let Some((entry, orphaned)) = self.table.remove(slot) else { return };
        self.record_end(slot, &entry, end);
        let Some(trace) = orphaned else { return };
        while let Some(worker) = self.table.first_of_trace(trace) {
            let Some((entry, _)) = self.table.remove(worker) else { return };
            self.record_end(worker, &entry, End::WithSession);
        }
    }

    /// Records that a lease has left the table, and that its borrow id buys nothing while it is
    /// remembered.
    fn record_end(&mut self, slot: u32, entry: &Entry, end: End) {
        self.ends.add(end);
        self.record(|| Change::Ended { id: entry.id(slot), end });
        let Some(fact) = self.borrows.at(entry.bought) else { return };
        let (until, bought) = (fact.until, fact.what);
        if bought.serial != entry.serial.get() || until <= self.now {
            return;
        }
        let indexer = self.table.indexer_name(entry.indexer()).map(Into::into);
        self.record(|| Change::BorrowEnded {
            indexer,
            id: bought.borrow_id(),
            fingerprint: bought.fingerprint(),
            until,
        });
    }

    /// Returns a lease, if `caller` holds it.
    ///
    /// One younger than `minimal_life` (clamped to [`MAX_MINIMAL_LIFE`]) lingers: it counts until
    /// it reaches that age and cannot be kept alive. A further return may only bring the end nearer.
    pub fn release(
        &mut self,
        id: LeaseId,
        caller: Option<&str>,
        minimal_life: Duration,
        now: Timestamp,
    ) -> Released {
        self.expire(now);
        let now = self.now;
        let Some(entry) = self.table.find(id).filter(|e| self.table.belongs_to(e, caller)) else {
            return Released::Missing;
        };
        let asked = entry.granted_at + minimal_life.min(MAX_MINIMAL_LIFE);
        let until = if entry.lingers() { asked.min(entry.ends_at) } else { asked };
        if until <= now {
            self.end(id.slot, End::Returned);
            return Released::Returned;
        }
        if entry.lingers() && until == entry.ends_at {
            return Released::Lingers { until };
        }
        if let Some(entry) = self.table.find_mut(id) {
            entry.linger(until);
        }
        self.timer.set(id.slot, until);
        self.record(|| Change::Lingers { id, until });
        Released::Lingers { until }
    }

    /// Returns whatever the borrow of that id took, as [`Ledger::release`] does.
    ///
    /// A try of the borrow that arrives later is refused, so a caller that gave up leaves nothing
    /// behind even if its borrow was still on the way.
    ///
    /// # Errors
    ///
    /// [`MemoryFull`] when the borrow has not arrived and the caller has as many borrow ids
    /// remembered as it may have.
    pub fn release_borrow(
        &mut self,
        borrow_id: BorrowId,
        caller: Option<&str>,
        minimal_life: Duration,
        now: Timestamp,
    ) -> Result<Released, MemoryFull> {
        self.expire(now);
        let indexer = self.table.indexer(caller);
        if let Some(&bought) = self.borrows.get(indexer, halves(borrow_id), self.now) {
            let entry = self.table.leases.get(bought.slot);
            let entry = entry.filter(|entry| entry.serial.get() == bought.serial);
            let id = entry.map(|entry| entry.id(bought.slot));
            return Ok(
                id.map_or(Released::Missing, |id| self.release(id, caller, minimal_life, now))
            );
        }
        let room = self.borrows.room(indexer);
        room.map_err(|most| self.memory_full(Remembers::BorrowIds, indexer, most))?;
        let until = self.now + BORROW_ID_MEMORY;
        self.borrows.remember(indexer, Bought::ended(borrow_id, None), until);
        self.record(|| Change::BorrowEnded {
            indexer: caller.map(Into::into),
            id: borrow_id,
            fingerprint: None,
            until,
        });
        Ok(Released::Missing)
    }

    /// Takes back a grant whose answer could not be delivered: nobody holds the lease.
    ///
    /// Its borrow id is free again, because the caller may retry. Answers whether there was
    /// anything to take back.
    pub fn undo(&mut self, id: LeaseId, borrow_id: Option<BorrowId>, now: Timestamp) -> bool {
        self.expire(now);
        let Some(indexer) = self.table.find(id).map(Entry::indexer) else { return false };
        if let Some(borrow_id) = borrow_id {
            let known = self.borrows.find(indexer, halves(borrow_id), self.now);
            self.borrows.forget(known.unwrap_or(NONE));
        }
        self.end(id.slot, End::Returned);
        true
    }

    /// Ends one lease at once and remembers why. Answers whether there was such a lease.
    pub fn revoke(&mut self, id: LeaseId, reason: Reason, now: Timestamp) -> bool {
        self.expire(now);
        let found = self.table.find(id).is_some();
        if found {
            self.revoke_slot(id.slot, reason);
        }
        found
    }

    /// Ends every lease that `judge` gives a reason for, and answers how many those are.
    ///
    /// It looks at every lease once, and ends workers before sessions, so that a worker whose
    /// session goes too is told the reason and not just that it is gone.
    pub fn revoke_matching(
        &mut self,
        now: Timestamp,
        mut judge: impl FnMut(&Holder<'_>) -> Option<Reason>,
    ) -> usize {
        self.expire(now);
        let mut sentenced = Vec::new();
        for (slot, entry) in self.table.leases.iter() {
            if let Some(reason) = judge(&self.holder_at(slot, entry)) {
                sentenced.push((entry.kind() == Kind::Session, slot, reason));
            }
        }
        sentenced.sort_by_key(|&(is_session, slot, _)| (is_session, slot));
        for &(_, slot, reason) in &sentenced {
            self.revoke_slot(slot, reason);
        }
        sentenced.len()
    }

    fn revoke_slot(&mut self, slot: u32, reason: Reason) {
        let entry = &self.table.leases[slot];
        let id = entry.id(slot);
        let until = self.now + REVOCATION_MEMORY.max(entry.ttl().saturating_mul(10));
        let at = entry.indexer();
        let indexer = self.table.indexer_name(at).map(Into::into);
        self.record(|| Change::Revoked { id, indexer, reason, until });
        self.revoked.remember(at, Revocation { id, reason }, until);
        self.end(slot, End::Revoked(reason));
    }
}
