//! How a lease ends without a revocation: it is returned, it expires, or its session ends.
//!
//! A lease that is past its end, or whose trace has ended, *counts as ended* for every answer at
//! once. It is taken out of the table, and off the counts of its scopes, at most
//! [`RECORDS_PER_HOLD`] at a time. An operation that needs it before that takes it out.

use std::time::Duration;

use crate::change::{Change, End};
use crate::clock::Timestamp;
use crate::id::{BorrowId, LeaseId};
use crate::lease::{Kind, MAX_MINIMAL_LIFE};
use crate::slab::{NONE, RECORDS_PER_HOLD};
use crate::table::{Entry, Sessions};
use crate::terms::{MemoryFull, Released, Remembers};

use super::remembered_borrow::RememberedBorrow;
use super::{EndedTrace, Ledger};

/// Facts of each kind that an operation forgets in passing.
const FORGET_IN_PASSING: usize = 64;

/// How long the end of a borrow id is remembered when no lease has a TTL for it.
const BORROW_ID_MEMORY: Duration = Duration::from_secs(60);

/// Taking out what counts as ended.
impl Ledger {
    /// Takes out leases that have ended by `now`, in the order of their ends: at most [`RECORDS_PER_HOLD`]
    /// leases. See [`Ledger::has_backlog`].
    pub fn expire(&mut self, now: Timestamp) {
        self.advance(now);
        self.forget_past(self.records_per_hold / 4);
        if !self.paused {
            self.take_out(self.records_per_hold);
        }
    }

    /// Whether [`Ledger::expire`] has more to take out at the latest `now`.
    pub fn has_backlog(&self) -> bool {
        self.is_behind()
            || self.borrows.has_past(self.now)
            || self.revoked.has_past(self.now)
            || self.revoked_traces.has_past(self.now)
            || self.usage.has_past(self.now)
    }

    /// Whether leases that have ended may still be in the table.
    fn is_behind(&self) -> bool {
        !self.ended.is_empty() || self.timer.is_behind(self.now)
    }

    /// Leaves leases that have ended in the table, or takes them out again. They count as ended either way.
    ///
    /// Every lease taken out is a change. A store pauses while too many changes wait for
    /// the disk.
    pub fn pause_expiry(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// A time at which [`Ledger::expire`] may have something to end; never later than the next end.
    pub fn next_expiry(&self) -> Option<Timestamp> {
        if self.ended.is_empty() { self.timer.next() } else { Some(self.now) }
    }

    /// Moves the time of the ledger on to `now`.
    pub(super) fn advance(&mut self, now: Timestamp) {
        if now > self.now {
            self.now = now;
            self.looks = RECORDS_PER_HOLD / 2;
            self.forget_past(FORGET_IN_PASSING);
        }
    }

    /// Forgets at most so many facts of each kind whose time is past.
    pub(super) fn forget_past(&mut self, most: usize) {
        self.borrows.expire(self.now, most);
        self.revoked.expire(self.now, most);
        self.revoked_traces.expire(self.now, most);
        self.usage.expire(self.now, most);
    }

    /// Starts an operation: takes out some of what has ended, once at each point of time, so that
    /// the answer shows how things are, and leaves as much of the hold to the operation itself.
    pub(super) fn begin(&mut self, now: Timestamp) {
        self.advance(now);
        if self.begun < self.now && !self.paused {
            self.begun = self.now;
            self.take_out(self.records_per_hold.div_ceil(2));
        }
    }

    fn take_out(&mut self, mut allowance: usize) {
        let now = self.now;
        loop {
            self.take_out_with_traces(&mut allowance);
            let leases = &self.table.leases;
            let end_of = |slot| leases.get(slot).map(|entry| entry.ends_at);
            let Some(slot) = self.timer.pop(now, &mut allowance, end_of) else { break };
            let end = past_end(&self.table.leases[slot]);
            self.end_lease(slot, end);
        }
        self.journal_ended_traces();
    }

    /// Takes out leases of traces that have ended, the trace that ended first before the others.
    fn take_out_with_traces(&mut self, allowance: &mut usize) {
        while let Some(&EndedTrace { trace, .. }) = self.ended.front()
            && *allowance > 0
        {
            *allowance -= 1;
            if let Some(slot) = self.table.first_of_trace(trace) {
                let entry = &self.table.leases[slot];
                let end = match entry.kind() {
                    Kind::Session => past_end(entry),
                    Kind::Worker => End::WithSession,
                };
                self.end_lease(slot, end);
            }
            if self.table.first_of_trace(trace).is_some() {
                continue;
            }
            self.table.forget_trace(trace);
            if let Some(EndedTrace { journaled: Some(end), .. }) = self.ended.pop_front() {
                self.record(|| Change::TraceGone(end));
            }
        }
    }

    /// Takes one lease out of the table. With the last session of its trace the trace ends.
    pub(super) fn end_lease(&mut self, slot: u32, end: End) {
        let Some((entry, orphaned)) = self.table.remove(slot) else { return };
        self.record_end(slot, &entry, end);
        if let Some(trace) = orphaned {
            self.end_trace(trace);
        }
    }

    /// Records that a lease has left the table, and that its borrow id gets no lease while it is
    /// remembered.
    pub(super) fn record_end(&mut self, slot: u32, entry: &Entry, end: End) {
        self.ends.add(end);
        self.record(|| Change::Ended { id: entry.id(slot), end });
        let Some(fact) = self.borrows.at(entry.borrow) else { return };
        let (until, borrow) = (fact.until, fact.what);
        if borrow.serial != entry.serial.get() || until <= self.now {
            return;
        }
        let indexer = self.table.indexer_name(entry.indexer()).map(Into::into);
        self.record(|| Change::BorrowEnded {
            indexer,
            id: borrow.borrow_id(),
            fingerprint: borrow.fingerprint(),
            until,
        });
    }

    /// Ends a lease, and the workers that end with it, as many as one operation may handle.
    pub(super) fn end_with_workers(&mut self, slot: u32, end: End) {
        self.end_lease(slot, end);
        if !self.paused {
            let mut allowance = self.records_per_hold.div_ceil(2);
            self.take_out_with_traces(&mut allowance);
        }
        self.journal_ended_traces();
    }

    pub(super) fn end_trace(&mut self, trace: u32) {
        self.table.end_trace(trace);
        let before = self.next_serial.get();
        self.ended.push_back(EndedTrace { trace, before, journaled: None });
    }

    /// Records which traces have ended, as far as that is not known from the ends of
    /// all their leases: a restart must not revive a worker whose session is known to have ended.
    pub(super) fn journal_ended_traces(&mut self) {
        for at in (0..self.ended.len()).rev() {
            let EndedTrace { trace, before, ref journaled } = self.ended[at];
            if journaled.is_some() {
                break;
            }
            let end = Box::new(self.table.trace_end(trace, before));
            self.ended[at].journaled = Some(end.clone());
            self.record(|| Change::TraceEnded(end));
        }
    }

    /// Checks that exactly the traces that have ended wait to be taken out.
    pub(super) fn audit_ended(&self) -> Result<(), String> {
        let waiting =
            |it: &EndedTrace| self.table.trace_has_ended(it.trace) && it.journaled.is_some();
        if !self.ended.iter().all(waiting) {
            return Err("a trace waits to be taken out and has not ended".to_owned());
        }
        let ended = self.table.ended_traces();
        if ended != self.ended.len() {
            return Err(format!("{ended} traces have ended, {} wait", self.ended.len()));
        }
        Ok(())
    }
}

/// What counts as ended.
impl Ledger {
    /// How the lease at a slot has ended, if it has ended and is still in the table.
    pub(super) fn ended(&mut self, slot: u32) -> Option<End> {
        let mut looks = self.looks;
        let end = self.ended_within(self.table.leases.get(slot)?, &mut looks);
        self.looks = looks;
        end
    }

    /// As [`Ledger::ended`], checking no more than `looks` sessions; a worker for which that is not
    /// enough counts as live.
    pub(super) fn ended_within(&self, entry: &Entry, looks: &mut usize) -> Option<End> {
        if !self.is_behind() {
            return None;
        }
        if entry.ends_at <= self.now {
            return Some(past_end(entry));
        }
        let trace = self.table.trace_of(entry);
        let ended = self.table.trace_has_ended(trace)
            || entry.kind() == Kind::Worker
                && self.timer.is_behind(self.now)
                && self.table.sessions_of(trace, self.now, looks) == Sessions::Ended;
        ended.then_some(End::WithSession)
    }

    /// The live lease of that id; one that has ended is taken out.
    pub(super) fn live(&mut self, id: LeaseId) -> Option<&mut Entry> {
        self.table.find(id)?;
        self.live_at(id.slot)
    }

    /// The live lease at a slot; one that has ended is taken out.
    pub(super) fn live_at(&mut self, slot: u32) -> Option<&mut Entry> {
        if self.is_behind()
            && let Some(end) = self.ended(slot)
        {
            self.end_lease(slot, end);
            self.journal_ended_traces();
        }
        self.table.leases.get_mut(slot)
    }
}

fn past_end(entry: &Entry) -> End {
    if entry.lingers() { End::Lingered } else { End::Expired }
}

/// Returning leases.
impl Ledger {
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
        self.begin(now);
        let now = self.now;
        if !self.holds(id, caller) {
            return Released::Missing;
        }
        let Some(entry) = self.live_at(id.slot) else { return Released::Missing };
        let asked = entry.granted_at + minimal_life.min(MAX_MINIMAL_LIFE);
        let until = if entry.lingers() { asked.min(entry.ends_at) } else { asked };
        let as_before = entry.lingers() && until == entry.ends_at;
        if until <= now {
            self.end_with_workers(id.slot, End::Returned);
            return Released::Returned;
        }
        if as_before {
            return Released::Lingers { until };
        }
        self.table.leases[id.slot].linger(until);
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
        self.begin(now);
        let indexer = self.table.indexer(caller);
        if let Some(&borrow) = self.borrows.get(indexer, borrow_id.halves(), self.now) {
            let id = borrow.lease_in(&self.table.leases).map(|entry| entry.id(borrow.slot));
            return Ok(
                id.map_or(Released::Missing, |id| self.release(id, caller, minimal_life, now))
            );
        }
        let room = self.borrows.check_room(indexer, self.now);
        room.map_err(|most| self.memory_full(Remembers::BorrowIds, indexer, most))?;
        let until = self.now + BORROW_ID_MEMORY;
        self.borrows.remember(indexer, RememberedBorrow::ended(borrow_id, None), until);
        self.record(|| Change::BorrowEnded {
            indexer: caller.map(Into::into),
            id: borrow_id,
            fingerprint: None,
            until,
        });
        Ok(Released::Missing)
    }

    /// Takes back a grant whose answer could not be delivered, so that its lease has no holder.
    ///
    /// Its borrow id is free again, because the caller may retry. Answers whether there was
    /// anything to take back.
    pub fn undo(&mut self, id: LeaseId, borrow_id: Option<BorrowId>, now: Timestamp) -> bool {
        self.begin(now);
        let Some(indexer) = self.live(id).map(|entry| entry.indexer()) else { return false };
        if let Some(borrow_id) = borrow_id {
            let known = self.borrows.find(indexer, borrow_id.halves(), self.now);
            self.borrows.forget(known.unwrap_or(NONE));
        }
        self.end_with_workers(id.slot, End::Returned);
        true
    }

    /// Whether `caller` may keep alive and return the lease of that id.
    pub(super) fn holds(&self, id: LeaseId, caller: Option<&str>) -> bool {
        self.table.find(id).is_some_and(|entry| self.table.belongs_to(entry, caller))
    }
}
