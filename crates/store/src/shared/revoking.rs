//! Operations that revoke leases, and the pushes to the listeners that subscribed to them.

use lease::{LeaseId, LeaseNumber, Ledger, Reason, Reporting, RevokedFor, Timestamp};
use parking_lot::MutexGuard;
use policy::Policy;
use policy::overrides::AuditEntry;

use super::{Part, Shared, State, Wait, newest};
use crate::answers::{ReportError, Unavailable};
use crate::attached::Push;

/// The leases that one operation revoked.
type Revoked = Vec<(LeaseId, RevokedFor)>;

impl Shared {
    /// Ends one lease. It ends whether there is room for the change or not, because an operator or a
    /// policy demands it; so do the leases of the operations below.
    pub(crate) fn revoke(&self, id: LeaseId, reason: Reason) -> Result<(bool, Wait), Unavailable> {
        let mut state = self.state.lock();
        state.check_writable(&*self.clock)?;
        let (found, wait) = self.apply(&mut state, |ledger, now| ledger.revoke(id, reason, now));
        self.push_revocations(state, found.then_some((id, reason.into())).into_iter().collect());
        Ok((found, wait))
    }

    /// Does one part of an operation that revokes many leases, unless the disk is busy. Returns how many
    /// leases the part revoked.
    ///
    /// The operation gets the policy in force, and returns the leases that it revoked. The audit entry
    /// of that number, if there is one, counts them in the same batch.
    pub(crate) fn revoke_part(
        &self,
        entry: Option<u64>,
        begun: &mut Option<u64>,
        operation: impl FnOnce(&mut Ledger, Timestamp, &Policy) -> Revoked,
    ) -> Result<Part<(usize, Wait)>, Unavailable> {
        let mut records = entry.map(|number| (number, self.records.lock()));
        let mut state = self.state.lock();
        state.check_part(*begun, &*self.clock)?;
        if let Some(batch) = state.batch_if_busy() {
            return Ok(Part::Busy(batch));
        }
        *begun = Some(state.term);
        let policy = state.policy.clone();
        let (revoked, mut wait) =
            self.apply(&mut state, |ledger, now| operation(ledger, now, &policy));
        let count = revoked.len();
        if let Some((number, records)) = &mut records
            && let Some(record) = records.count_ended(*number, count)
        {
            wait = self.gather_records(&mut state, std::slice::from_ref(&record));
            records.apply(record);
        }
        self.push_revocations(state, revoked);
        Ok(Part::Done((count, wait)))
    }

    /// Ends the lease of that number, and records in the same batch the audit entry of the operator
    /// with the number of leases that ended. Returns the entry, or `None` when there is no such lease;
    /// then nothing is recorded.
    pub(crate) fn revoke_number(
        &self,
        number: LeaseNumber,
        reason: Reason,
        entry: AuditEntry,
    ) -> Result<(Option<AuditEntry>, Wait), Unavailable> {
        let mut records = self.records.lock();
        let mut state = self.state.lock();
        state.check_writable(&*self.clock)?;
        let (revoked, wait) =
            self.apply(&mut state, |ledger, now| ledger.revoke_number(number, reason, now));
        let Some((id, ended)) = revoked else { return Ok((None, wait)) };
        let entry = AuditEntry { number: records.next_number(), ended, ..entry };
        let new_records: Vec<_> = records.new_entry(entry.clone()).collect();
        let wait = self.gather_records(&mut state, &new_records);
        new_records.into_iter().for_each(|record| records.apply(record));
        drop(records);
        self.push_revocations(state, vec![(id, reason.into())]);
        Ok((Some(entry), wait))
    }

    /// Pushes revocations to the listeners once they are durable. Releases the lock fairly: a thread
    /// that waits for it gets it next.
    fn push_revocations(&self, mut state: MutexGuard<'_, State>, revoked: Revoked) {
        let pushes: Vec<Push> = revoked
            .into_iter()
            .filter_map(|(id, why)| {
                Some(Push { listener: state.attachments.listener(id)?, id, why })
            })
            .collect();
        if state.journaled {
            // The changes are in the gathering batch, and the pushes follow it.
            state.pending.pushes.extend(pushes);
            MutexGuard::unlock_fair(state);
        } else {
            MutexGuard::unlock_fair(state);
            pushes.into_iter().for_each(Push::deliver);
        }
    }

    /// Does the next part of a report of usage, under the later of `policy` and the policy in force.
    ///
    /// Counting needs room for its changes; the other parts need none. A part that `may_wait` is not done
    /// while the disk is busy. A thread that waits for the lock gets it before the next part.
    pub(crate) fn report_part(
        &self,
        policy: &Policy,
        reporting: &mut Reporting,
        begun: &mut Option<u64>,
        may_wait: bool,
    ) -> Result<Part<Wait>, ReportError> {
        let (wall, amounts) = (self.clock.wall(), reporting.amounts());
        let mut state = self.state.lock();
        state.check_part(*begun, &*self.clock)?;
        if may_wait && let Some(batch) = state.batch_if_busy() {
            return Ok(Part::Busy(batch));
        }
        if amounts > 0 {
            state.has_room(reporting.submission().caller.as_deref(), &*self.clock)?;
        }
        *begun = Some(state.term);
        let policy = newest(policy, &state.policy).clone();
        let (ended, wait) =
            self.apply(&mut state, |ledger, now| ledger.report(&policy, wall, reporting, now));
        state.charge(reporting.submission().caller.as_deref(), amounts);
        self.push_revocations(state, ended?);
        Ok(Part::Done(wait))
    }
}
