//! Operations that revoke leases, and the pushes to the listeners that named those.

use lease::{LeaseId, LeaseNumber, Ledger, Reason, Reporting, RevokedFor, Timestamp};
use parking_lot::MutexGuard;
use policy::Policy;
use policy::overrides::AuditEntry;

use super::{Part, Shared, State, Wait, newest};
use crate::answers::{ReportError, Unavailable};
use crate::attached::Push;
use crate::journal::Operated;

/// The leases that one operation revoked.
type Revoked = Vec<(LeaseId, RevokedFor)>;

impl Shared {
    /// Applies an operation that ends leases for a reason, and sees to it that whoever named them
    /// is told once that is durable. The operation adds what it revoked to its last argument. It is
    /// the operator's, or what a policy demands, and waits for no room.
    pub(crate) fn revoke<R>(
        &self,
        operation: impl FnOnce(&mut Ledger, Timestamp, &mut Revoked) -> R,
    ) -> Result<(R, Wait), Unavailable> {
        let mut revoked = Revoked::new();
        let mut state = self.state.lock();
        state.sound()?;
        let (answer, wait) =
            self.apply(&mut state, |ledger, now| operation(ledger, now, &mut revoked));
        self.tell(state, revoked);
        Ok((answer, wait))
    }

    /// As [`Shared::revoke`], for one part of an operation that has many, unless the disk is busy.
    /// Answers how many leases the part revoked.
    ///
    /// The operation is told the policy in force, and answers what it revoked. The audit entry of that
    /// number, if there is one, counts that from the moment at which it is durable.
    pub(crate) fn revoke_part(
        &self,
        entry: Option<u64>,
        operation: impl FnOnce(&mut Ledger, Timestamp, &Policy) -> Revoked,
    ) -> Result<Part<(usize, Wait)>, Unavailable> {
        let mut kept = entry.map(|number| (number, self.kept.lock()));
        let mut state = self.state.lock();
        state.sound()?;
        if let Some(batch) = state.busy() {
            return Ok(Part::Busy(batch));
        }
        let policy = state.policy.clone();
        let (revoked, mut wait) =
            self.apply(&mut state, |ledger, now| operation(ledger, now, &policy));
        let count = revoked.len();
        if let Some((number, kept)) = &mut kept
            && let Some(operated) = kept.ended_more(*number, count)
        {
            wait = self.keep_locked(&mut state, std::slice::from_ref(&operated));
            kept.apply(operated);
        }
        self.tell(state, revoked);
        Ok(Part::Done((count, wait)))
    }

    /// Ends the lease of that number, and writes down in the same batch that an operator did it, and
    /// how many leases ended. Answers the entry; `None`, and nothing is written down, when there is
    /// no such lease.
    pub(crate) fn revoke_number(
        &self,
        number: LeaseNumber,
        reason: Reason,
        entry: AuditEntry,
    ) -> Result<(Option<AuditEntry>, Wait), Unavailable> {
        let mut kept = self.kept.lock();
        let mut state = self.state.lock();
        state.sound()?;
        let (revoked, wait) =
            self.apply(&mut state, |ledger, now| ledger.revoke_number(number, reason, now));
        let Some((id, ended)) = revoked else { return Ok((None, wait)) };
        let entry = AuditEntry { number: kept.next_number(), ended, ..entry };
        let operated = Operated::Audit(entry.clone());
        let wait = self.keep_locked(&mut state, std::slice::from_ref(&operated));
        kept.apply(operated);
        drop(kept);
        self.tell(state, vec![(id, reason.into())]);
        Ok((Some(entry), wait))
    }

    /// Sees to it that whoever named revoked leases is told, and lets go of the lock, to those first
    /// who wait for it.
    fn tell(&self, mut state: MutexGuard<'_, State>, revoked: Revoked) {
        let pushes: Vec<Push> = revoked
            .into_iter()
            .filter_map(|(id, why)| Some(Push { listener: state.attached.listener(id)?, id, why }))
            .collect();
        if state.journaled {
            // Their changes are in the gathering batch.
            state.pending.pushes.extend(pushes);
            MutexGuard::unlock_fair(state);
        } else {
            MutexGuard::unlock_fair(state);
            pushes.into_iter().for_each(Push::deliver);
        }
    }

    /// Does the next part of a report of usage, under the later of `policy` and the policy in force.
    ///
    /// Counting needs room for its changes. Ending leases waits for no room, and for the disk while that
    /// is busy. Reading needs neither. Who waits for the lock meanwhile gets it before the next part.
    pub(crate) fn report_part(
        &self,
        policy: &Policy,
        reporting: &mut Reporting,
    ) -> Result<Part<Wait>, ReportError> {
        let (wall, amounts) = (self.clock.wall(), reporting.amounts());
        let mut state = self.state.lock();
        if amounts > 0 {
            state.has_room(reporting.submission().caller.as_deref())?;
        } else {
            state.sound()?;
        }
        if reporting.ends_leases()
            && let Some(batch) = state.busy()
        {
            return Ok(Part::Busy(batch));
        }
        let policy = newest(policy, &state.policy).clone();
        let (ended, wait) =
            self.apply(&mut state, |ledger, now| ledger.report(&policy, wall, reporting, now));
        state.charge(reporting.submission().caller.as_deref(), amounts);
        self.tell(state, ended?);
        Ok(Part::Done(wait))
    }
}
