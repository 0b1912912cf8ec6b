//! Counting what organizations report to have used, and ending the leases of those that spend a
//! budget with it.

use crate::budget::{Budget, BudgetSpent, WallTime};
use crate::clock::Timestamp;
use crate::id::{LeaseId, validate_id};
use crate::policy::Policy;
use crate::report::{ReportRefusal, Reported, Submission};
use crate::revocation::RevokedFor;
use crate::slab::RECORDS_PER_HOLD;
use crate::terms::Remembers;
use crate::usage::Part;

use super::Ledger;
use super::enforcing::Enforcement;

/// The most organizations whose spent budgets the answer to a report lists.
pub const MAX_SPENT_LISTED: usize = 16;

/// A report of usage and how far it has come; see [`Ledger::report`].
///
/// All of the report is counted first. Then the leases end of each organization of which the report
/// spent a budget. Then the budgets are read of the organizations that the caller asked about.
#[derive(Debug)]
pub struct Reporting {
    submission: Submission,
    /// When the report came: all of its amounts count in the windows of that moment.
    wall: WallTime,
    /// The first amount that is not counted yet.
    next: usize,
    is_counted: bool,
    /// The end of the leases of organizations of which the report spent a budget.
    enforcement: Enforcement,
    /// The first organization that is not read yet.
    read: usize,
    reported: Reported,
}

impl Reporting {
    /// A report that comes at `wall`.
    pub fn new(submission: Submission, wall: WallTime) -> Self {
        Self {
            submission,
            wall,
            next: 0,
            is_counted: false,
            enforcement: Enforcement::default(),
            read: 0,
            reported: Reported::default(),
        }
    }

    /// The report.
    pub const fn submission(&self) -> &Submission {
        &self.submission
    }

    /// How many amounts the next part counts; 0 once all are counted.
    pub fn amounts(&self) -> usize {
        let left = self.submission.report.len().saturating_sub(self.next);
        left.min(RECORDS_PER_HOLD)
    }

    /// Whether the next part ends leases.
    pub fn ends_leases(&self) -> bool {
        self.is_counted && !self.enforcement.is_done()
    }

    /// Whether nothing is left to do.
    pub fn is_done(&self) -> bool {
        self.is_counted && self.enforcement.is_done() && self.is_read()
    }

    fn is_read(&self) -> bool {
        self.read >= self.submission.organizations.len()
            || self.reported.spent.len() >= MAX_SPENT_LISTED
    }

    /// The result of the report.
    pub fn finish(self) -> Reported {
        self.reported
    }
}

impl Ledger {
    /// Does the next part of a report of usage: counts at most [`RECORDS_PER_HOLD`] amounts, or ends
    /// at most as many leases, or reads at most as many budgets. Answers the keys of the leases that
    /// it ended, with the reasons.
    ///
    /// It is called with the same `reporting` until that is done, each time with the policy in force
    /// and the present time. Under an idempotency key the ledger knows how far a report of the caller
    /// has come in the last ten minutes, through restarts too, so that each of its amounts counts
    /// once. Under another report the key is refused.
    ///
    /// An amount that has no room is skipped, and all others count. Leases end of an organization of
    /// which this report spends a budget, and not of one that had spent it before. See
    /// [`Ledger::enforce`] for which.
    ///
    /// # Errors
    ///
    /// The key is empty or too long, or names another report, or the caller has as many keys
    /// remembered as it may have. Nothing is counted then.
    pub fn report(
        &mut self,
        policy: &dyn Policy,
        wall: WallTime,
        reporting: &mut Reporting,
        now: Timestamp,
    ) -> Result<Vec<(LeaseId, RevokedFor)>, ReportRefusal> {
        if !reporting.is_counted {
            self.count_part(policy, reporting, now)?;
        } else if !reporting.enforcement.is_done() {
            let ended = self.enforce(policy, wall, &mut reporting.enforcement, now);
            reporting.reported.revoked += ended.len();
            return Ok(ended);
        } else {
            self.read_spent(policy, reporting);
        }
        Ok(Vec::new())
    }

    fn count_part(
        &mut self,
        policy: &dyn Policy,
        reporting: &mut Reporting,
        now: Timestamp,
    ) -> Result<(), ReportRefusal> {
        self.begin(now);
        let Reporting { submission, wall, reported, .. } = reporting;
        let Submission { caller, idempotency_key, report, .. } = &*submission;
        for forgotten in self.usage.forget_past(*wall) {
            self.record(|| forgotten);
        }
        if let Some(key) = idempotency_key {
            validate_id("x-idempotency-key", key, true)?;
        }
        let indexer = self.table.indexer(caller.as_deref());
        let from = match idempotency_key {
            Some(key) => match self.usage.resume(indexer, key, report, self.now) {
                Ok(from) => from,
                Err(most) => {
                    let most = most.ok_or(ReportRefusal::KeyReused)?;
                    return Err(self.memory_full(Remembers::IdempotencyKeys, indexer, most).into());
                }
            },
            None => reporting.next,
        };
        let Self { usage, table, .. } = self;
        let holds_leases = |organization: &str| table.has_leases_of(organization);
        let mut changes = Vec::new();
        let (wall, most, holds_leases) = (*wall, self.records_per_hold, &holds_leases);
        let part = Part { policy, holds_leases, wall, indexer, from, most };
        let counted = usage.count(report, &part, &mut changes);
        if let Some(key) = idempotency_key
            && !counted.repeated
            && !report.is_empty()
        {
            let progress = (&**key, report.fingerprint(), counted.next);
            changes.push(usage.reported(indexer, caller.clone(), progress, self.now));
        }
        self.revision += changes.len() as u64;
        if let Some(journal) = &mut self.changes {
            journal.extend(changes);
        }
        reported.counted |= !counted.repeated;
        reported.skipped.iter_mut().zip(counted.skipped).for_each(|(sum, more)| *sum += more);
        reporting.enforcement.add_organizations(counted.spent);
        reporting.next = counted.next;
        reporting.is_counted = counted.next >= report.len();
        Ok(())
    }

    /// Reads which of the next organizations that were asked about have spent a budget.
    fn read_spent(&self, policy: &dyn Policy, reporting: &mut Reporting) {
        let Reporting { submission, wall, read, reported, .. } = reporting;
        let end = (*read + self.records_per_hold).min(submission.organizations.len());
        let spent = submission.organizations[*read..end].iter().filter_map(|name| {
            let spent = self.spent(name, policy.budgets(name), *wall)?;
            Some((name.clone(), spent))
        });
        reported.spent.extend(spent.take(MAX_SPENT_LISTED - reported.spent.len()));
        *read = end;
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
