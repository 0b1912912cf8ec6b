//! A ledger that comes back from what a store kept.

use std::num::NonZeroU64;
use std::time::Duration;

use crate::change::{Change, End, TraceEnd};
use crate::clock::Timestamp;
use crate::id::Invalid;
use crate::lease::{BorrowedAs, Kind, Lease, MAX_MINIMAL_LIFE};
use crate::request::Request;
use crate::revocation::{Revocation, RevokedLease};
use crate::table::NewLease;

use super::Ledger;
use super::remembered_borrow::RememberedBorrow;

/// How much longer than its TTL a recovered lease may live: the ends of leases that came back at one
/// moment are spread over this, so that they do not all end at one moment.
///
/// A lease that is not kept alive is gone within one second after its TTL; this leaves the rest of
/// that second for taking it out.
pub const RESUME_SPREAD: Duration = Duration::from_millis(800);

impl Ledger {
    /// Restores the content of a change, in a ledger on which no operation has run yet.
    ///
    /// A store gives back the leases it kept as [`Change::Granted`], with
    /// the present [`Lease::lingers_until`]; then ends of traces, revocations, usage counts and
    /// report keys, in any order. [`Ledger::resume`] has to follow.
    ///
    /// Leases that have ended with their trace are taken out at once, which is a change like any other.
    ///
    /// # Errors
    ///
    /// [`Invalid`] when the change contradicts what was restored before it: the store is damaged.
    pub fn restore(&mut self, change: Change) -> Result<(), Invalid> {
        match change {
            Change::Granted(lease) => self.restore_lease(&lease)?,
            Change::Revoked(revocation) => {
                self.skip_serial(revocation.id.serial());
                self.remember_revocation(*revocation);
            }
            Change::Used { organization, metric, used } => {
                self.usage.restore_used(&organization, &metric, used);
            }
            Change::Reported { indexer, key, until, fingerprint, applied } => {
                let indexer = self.table.indexer(indexer.as_deref());
                self.usage.restore_reported(indexer, key, until, fingerprint, applied);
            }
            Change::BorrowEnded { indexer, id, fingerprint, until } => {
                let indexer = self.table.indexer(indexer.as_deref());
                let borrow = RememberedBorrow::ended(id, fingerprint);
                self.borrows.remember(indexer, borrow, until);
            }
            Change::TraceEnded(end) => self.restore_trace_end(*end),
            Change::Lingers { .. }
            | Change::Ended { .. }
            | Change::TraceGone(_)
            | Change::Unused { .. } => {
                return Err(Invalid { field: "change", problem: "is part of another record" });
            }
        }
        Ok(())
    }

    fn restore_lease(&mut self, lease: &Lease) -> Result<(), Invalid> {
        let Some(serial) = NonZeroU64::new(lease.id.serial()) else {
            return Err(Invalid { field: "lease", problem: "has no serial number" });
        };
        if u64::from(lease.id.slot) >= self.max_slot() {
            return Err(Invalid { field: "lease", problem: "stands at a slot out of all bounds" });
        }
        let request = Request {
            indexer: lease.indexer.as_deref(),
            service: &lease.service,
            organization: &lease.organization,
            api_key: &lease.api_key,
            trace: &lease.trace,
            max_workers: i64::from(lease.kind == Kind::Worker),
            borrow_id: None,
        };
        request.validate()?;
        let indexer = self.table.indexer(request.indexer);
        let new = NewLease {
            serial,
            secret: lease.id.secret,
            kind: lease.kind,
            granted_at: lease.granted_at,
            ends_at: lease.lingers_until.unwrap_or(lease.granted_at),
            ttl: lease.ttl,
            // No policy is known yet; a borrow that finds too many looks again.
            unnamed: true,
        };
        let mut place = self.table.place(&request, indexer);
        let slot = self
            .table
            .insert(new, &request, indexer, &mut place, Some(lease.id.slot))
            .ok_or(Invalid { field: "lease", problem: "stands at the slot of another" })?;
        if let Some(until) = lease.lingers_until {
            self.table.leases[slot].linger(until);
        }
        if let Some(BorrowedAs { id, fingerprint }) = lease.borrowed_as {
            let borrow = RememberedBorrow::live(id, lease.id, fingerprint);
            let until = lease.granted_at + lease.ttl;
            self.table.leases[slot].borrow = self.borrows.remember(indexer, borrow, until);
        }
        self.skip_serial(lease.id.serial());
        Ok(())
    }

    /// Takes out what ended with its trace and was still kept when the server stopped.
    fn restore_trace_end(&mut self, end: TraceEnd) {
        for slot in self.table.leases_of(&end) {
            // What was granted later is another trace, whatever left it now.
            let Some((entry, _)) = self.table.remove(slot) else { continue };
            self.record_end(slot, &entry, End::WithSession);
        }
        self.skip_serial(end.before.saturating_sub(1));
        self.record(|| Change::TraceGone(Box::new(end)));
    }

    /// A table never has more slots than it held leases, but `max_leases` may have been lowered.
    fn max_slot(&self) -> u64 {
        self.max_leases.max(1 << 24)
    }

    fn skip_serial(&mut self, used: u64) {
        let next = NonZeroU64::MIN.saturating_add(used);
        self.next_serial = self.next_serial.max(next);
    }

    /// Goes on after a restart at `now`: every lease has its full TTL, and at most [`RESUME_SPREAD`]
    /// more; a lingering one has what was left of its minimal life at `last`, the latest time the
    /// store kept.
    ///
    /// `next_serial` is the one the store kept: keys of leases long gone are not used again. It looks
    /// at every lease, so it comes before anybody is served.
    pub fn resume(&mut self, last: Timestamp, next_serial: u64, now: Timestamp) {
        self.now = now.max(last);
        self.forget_past(usize::MAX);
        self.skip_serial(next_serial.saturating_sub(1));
        self.table.leases.find_free_slots();
        self.timer.start_at(self.now);
        let leases = self.table.leases.iter();
        let mut slots: Vec<(u64, u32)> =
            leases.map(|(slot, entry)| (entry.serial.get(), slot)).collect();
        slots.sort_unstable();
        let step = RESUME_SPREAD / u32::try_from(slots.len().max(1)).unwrap_or(u32::MAX);
        for (place, (_, slot)) in (0..).zip(slots) {
            let entry = &mut self.table.leases[slot];
            // Nothing was granted later than the store knew of.
            entry.granted_at = entry.granted_at.min(last);
            let left = if entry.lingers() {
                entry.ends_at.since(last).min(MAX_MINIMAL_LIFE)
            } else {
                entry.ttl() + step * place
            };
            entry.ends_at = self.now + left;
            self.timer.set(slot, entry.ends_at);
        }
    }

    /// Gives every lease its full TTL from `now`, also one that is past its end: nobody could keep a
    /// lease alive in the time before. A lingering lease keeps its end. It looks at every lease.
    pub fn extend_all(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
        let slots: Vec<u32> = self.table.leases.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            let now = self.now;
            let entry = &mut self.table.leases[slot];
            if !entry.lingers() {
                entry.extend(now);
            }
        }
    }

    /// Everything that [`Ledger::restore`] needs to make this ledger again.
    pub fn snapshot(&self) -> impl Iterator<Item = Change> {
        let mut looks = usize::MAX;
        let leases = self.table.leases.iter();
        let live = leases.filter(move |(_, entry)| self.ended_within(entry, &mut looks).is_none());
        let leases = live.map(|(slot, entry)| {
            let borrow = self.borrows.at(entry.borrow).map(|fact| &fact.what);
            let borrow = borrow.filter(|borrow| borrow.serial == entry.serial.get());
            let borrowed_as = borrow.map(|borrow| BorrowedAs {
                id: borrow.borrow_id(),
                fingerprint: borrow.fingerprint,
            });
            Change::Granted(Box::new(Lease { borrowed_as, ..self.lease(slot, entry) }))
        });
        let name = |indexer| self.table.indexer_name(indexer).map(Into::into);
        let revoked = self.revoked.iter().map(move |fact| {
            let RevokedLease { id, why, trace_at } = &fact.what;
            let trace = self.revoked_traces.at(*trace_at).map(|trace| &trace.what);
            let trace = trace.filter(|trace| trace.serial == id.serial());
            Change::Revoked(Box::new(Revocation {
                id: *id,
                indexer: name(fact.indexer),
                why: why.clone(),
                trace: trace.map(|trace| trace.digest),
                until: fact.until,
            }))
        });
        let is_live = |borrow: &RememberedBorrow| {
            let lease = borrow.lease_in(&self.table.leases);
            lease.is_some_and(|entry| self.ended_within(entry, &mut { usize::MAX }).is_none())
        };
        let ended = self.borrows.iter().filter(move |fact| !is_live(&fact.what));
        let ended = ended.map(move |fact| Change::BorrowEnded {
            indexer: name(fact.indexer),
            id: fact.what.borrow_id(),
            fingerprint: fact.what.fingerprint(),
            until: fact.until,
        });
        leases.chain(revoked).chain(ended).chain(self.usage.snapshot(name))
    }
}
