//! The terms of this server in a fleet: it leads for a term, or stands by.

use std::sync::atomic::Ordering;
use std::time::Duration;

use lease::StoreClock;

use super::pending::{Disk, Pending};
use super::{Shared, State};
use crate::answers::Unavailable;
use crate::fleet::FleetSecret;
use crate::journal::{Restored, Stamp};
use crate::role::{Phase, Role};
use crate::term::Term;

/// A new leader leaves out so many serial numbers and audit numbers.
const NUMBERS_LEFT_OUT: u64 = 1 << 32;

impl Shared {
    /// Makes this server one of the fleet that shares `secret`. It stands by first.
    pub(crate) fn join_fleet(&self, secret: FleetSecret) {
        self.state.lock().role = Role::Standby;
        self.leads.store(false, Ordering::Release);
        self.terms.send_replace(None);
        // A store joins one fleet, once.
        let _ = self.fleet_secret.set(secret);
    }

    /// Begins a term as leader with what the journal restored, and returns its number; `None` if the term
    /// is over. It serves from [`Shared::serve_term`].
    pub(crate) fn lead(&self, restored: Restored, stamp: Stamp, term: &Term) -> Option<u64> {
        let Restored { mut ledger, mut records } = restored;
        // An earlier leader may have used numbers that the database has lost.
        let next_serial = stamp.next_serial + NUMBERS_LEFT_OUT;
        records.leave_out(NUMBERS_LEFT_OUT);
        ledger.resume(stamp.time, next_serial, stamp.time);
        let mut own_records = self.records.lock();
        let mut state = self.state.lock();
        if term.is_over() {
            return None;
        }
        let valid_until = term.valid_until();
        ledger.refuse_terms_before(state.policy.number());
        *own_records = records;
        state.role = Role::Leader { valid_until, phase: Phase::Begins };
        state.time = StoreClock::starting_at(stamp.time, self.clock.monotonic());
        (state.probed_at, state.stamped) = (stamp.time, stamp.time);
        let number = self.replace_ledger(&mut state, ledger);
        self.terms.send_replace(Some(number));
        Some(number)
    }

    /// Serves from now on in the term of that number, if it is not over. Every lease has its full TTL.
    pub(crate) fn serve_term(&self, number: u64) {
        let mut state = self.state.lock();
        if state.term == number
            && let Role::Leader { phase: phase @ Phase::Begins, .. } = &mut state.role
        {
            *phase = Phase::Serves;
            let now = self.now(&mut state);
            state.ledger.extend_all(now);
            self.leads.store(true, Ordering::Release);
        }
    }

    /// Notes that the database has refused a renewal because it is full.
    pub(crate) fn database_is_full(&self) {
        self.state.lock().is_database_full = true;
    }

    /// Extends the term of the leader. If it had lapsed, every lease first gets its full TTL.
    pub(crate) fn extend_term(&self, until: Duration) {
        let mut state = self.state.lock();
        let Role::Leader { valid_until, phase } = state.role else { return };
        if phase == Phase::Serves && self.clock.boot() >= valid_until {
            let now = self.now(&mut state);
            state.ledger.extend_all(now);
            tracing::info!("leads again: every lease has its full TTL");
        }
        state.role = Role::Leader { valid_until: until, phase };
        state.is_database_full = false;
        if std::mem::take(&mut state.rewriting) {
            // Nothing was lost after all.
            self.work.notify_all();
        }
    }

    /// Makes no more changes in this term: calls are answered with [`Unavailable::Standby`]. What was made
    /// is committed. Returns whether this server leads, and serves already.
    pub(crate) fn stop_applying(&self) -> bool {
        let mut state = self.state.lock();
        let Role::Leader { phase: phase @ Phase::Serves, .. } = &mut state.role else {
            return false;
        };
        *phase = Phase::StepsDown;
        self.leads.store(false, Ordering::Release);
        true
    }

    /// Whether everything that this server has applied is committed.
    pub(crate) fn has_committed_all(&self) -> bool {
        let state = self.state.lock();
        state.pending.is_empty() && state.committing.is_none() && !state.rewriting
    }

    /// Goes on after [`Shared::stop_applying`]. Every lease has its full TTL.
    pub(crate) fn apply_again(&self) {
        let mut state = self.state.lock();
        if let Role::Leader { phase: phase @ Phase::StepsDown, .. } = &mut state.role {
            *phase = Phase::Serves;
            let now = self.now(&mut state);
            state.ledger.extend_all(now);
            self.leads.store(true, Ordering::Release);
        }
    }

    /// Ends the term: `empty` takes the place of the ledger, and calls that wait for the journal are
    /// answered.
    pub(crate) fn stand_by(&self, empty: Restored) {
        let mut own_records = self.records.lock();
        let mut state = self.state.lock();
        *own_records = empty.records;
        state.role = Role::Standby;
        self.leads.store(false, Ordering::Release);
        self.terms.send_replace(None);
        let pending = std::mem::take(&mut state.pending);
        let batches = [state.committing.take(), Some(std::mem::take(&mut state.gathering))];
        self.replace_ledger(&mut state, empty.ledger);
        drop((state, own_records));
        // A large batch takes time to drop.
        drop::<Pending>(pending);
        for batch in batches.into_iter().flatten() {
            batch.settle(Err(Unavailable::TermEnded));
        }
        self.work.notify_all();
    }

    fn replace_ledger(&self, state: &mut State, ledger: lease::Ledger) -> u64 {
        state.counted = ledger.revision();
        state.ledger = ledger;
        state.undelivered.clear();
        state.shares.clear();
        state.disk = Disk::default();
        (state.batches, state.rewriting) = (0, false);
        state.term += 1;
        self.revision.fetch_add(1, Ordering::Relaxed);
        state.term
    }

    /// Whether the ledger answers: its lock is free within `time`, and it is not poisoned.
    pub(crate) fn answers(&self, time: Duration) -> Answers {
        match self.state.try_lock_for(time) {
            None => Answers::No,
            Some(state) if state.applying || state.failed.is_some() => Answers::Poisoned,
            Some(_) => Answers::Yes,
        }
    }

    /// Whether no other server uses the store.
    pub(crate) fn is_alone(&self) -> bool {
        self.state.lock().role == Role::Alone
    }

    /// Wakes whoever waits in [`Shared::wait_for_closing`].
    pub(crate) fn wake(&self) {
        self.closing.notify_all();
    }

    /// Waits for `time`, or until the store closes. It may wake earlier.
    pub(crate) fn wait_for_closing(&self, time: Duration) -> bool {
        let mut state = self.state.lock();
        if !state.closing {
            self.closing.wait_for(&mut state, time);
        }
        state.closing
    }
}

/// Whether the ledger answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answers {
    Yes,
    /// Its lock was not free in time.
    No,
    /// An operation panicked, or the journal failed.
    Poisoned,
}

#[cfg(test)]
mod tests;
