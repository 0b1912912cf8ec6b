//! Counting what organizations report to have used.

use crate::budget::{Budget, BudgetSpent, WallTime};
use crate::clock::Timestamp;
use crate::id::validate_id;
use crate::report::{Counted, ReportRefusal, Submission};
use crate::terms::Remembers;

use super::Ledger;

impl Ledger {
    /// Counts the next amounts of a report of usage, at most [`RECORDS_PER_HOLD`] of them.
    ///
    /// `from` is where to go on: 0 first, then [`Counted::next`] of the call before, until that is
    /// past the last amount. Under an idempotency key it is not looked at: the ledger knows how far
    /// a report of `caller` with that key has come in the last ten minutes, through restarts too, so
    /// that each of its amounts counts once. Under another report the key is refused.
    ///
    /// An amount that has no room is skipped, and all others count. Spent budgets end nothing by
    /// themselves: see [`Counted::spent`] and [`Ledger::revoke_organization`].
    ///
    /// # Errors
    ///
    /// The key is empty or too long, or names another report, or the caller has as many keys
    /// remembered as it may have. Nothing is counted then.
    ///
    /// [`RECORDS_PER_HOLD`]: crate::RECORDS_PER_HOLD
    pub fn report(
        &mut self,
        submission: &Submission<'_>,
        from: usize,
        now: Timestamp,
    ) -> Result<Counted, ReportRefusal> {
        self.begin(now);
        for forgotten in self.usage.forget_past(submission.wall) {
            self.record(|| forgotten);
        }
        if let Some(key) = submission.idempotency_key {
            validate_id("x-idempotency-key", key, true)?;
        }
        let indexer = self.table.indexer(submission.caller);
        let from = match submission.idempotency_key {
            Some(key) => match self.usage.resume(indexer, key, submission.report, self.now) {
                Ok(from) => from,
                Err(most) => {
                    let most = most.ok_or(ReportRefusal::KeyReused)?;
                    return Err(self.memory_full(Remembers::IdempotencyKeys, indexer, most).into());
                }
            },
            None => from,
        };
        let Self { usage, table, .. } = self;
        let holds_leases = |organization: &str| table.holds_leases(organization);
        let mut changes = Vec::new();
        let counted = usage.count(submission, indexer, from, &holds_leases, &mut changes);
        if let Some(key) = submission.idempotency_key
            && !counted.repeated
            && !submission.report.is_empty()
        {
            let indexer_name = submission.caller.map(Into::into);
            let report = (key, submission.report.fingerprint(), counted.next);
            changes.push(usage.reported(indexer, indexer_name, report, self.now));
        }
        self.revision += changes.len() as u64;
        if let Some(journal) = &mut self.changes {
            journal.extend(changes);
        }
        Ok(counted)
    }

    /// The first budget of `budgets` of which `organization` has nothing left.
    pub fn spent(
        &self,
        organization: &str,
        budgets: &[Budget],
        wall: WallTime,
    ) -> Option<BudgetSpent> {
        self.usage.spent(organization, budgets, wall)
    }
}
